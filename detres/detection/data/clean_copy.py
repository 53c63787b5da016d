"""A copy of annotated data, as COCO, without what is surely wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from detres.class_map import ClassMap
from detres.detection.annotations import Annotations
from detres.detection.data.box_checks import (
    NEARLY_THE_SAME,
    are_equal,
    doubled_boxes,
    find_faults,
)
from detres.detection.data.box_findings import DOUBTFUL
from detres.detection.data.convert import write_coco
from detres.detection.data.findings import Part
from detres.detection.data.image_findings import (
    AS_STORED,
    TURNED_BOXES,
    WRONG_SIZE,
    conventions,
    copies_of_later,
)
from detres.detection.structures import label_of
from detres.images.decode import upright_boxes

NOT_MENDED = (DOUBTFUL.name,)
"""Kinds of findings that a copy has as the data have them."""

Changes = dict[str, int]
"""What is different in a copy -> how often."""


def write_clean_copy(parts: Sequence[Part], folder: Path) -> list[str]:
    """Write the splits of a data set, whose files were looked at, into a new `folder` as COCO, as
    convert.write_coco lays it out, and return what is different in it, a line each.

    Left out: images that cannot be read, that are of another size than stated, or that a later
    split has too, exactly or as a copy; what else is in `cleaned`. All splits get the classes of
    all. Image files are copied as they are, the source is only read. Raises TakenFolderError for a
    folder that holds files, OSError for one that cannot be written.
    """
    class_map = _class_map(parts)
    said, clean = [], {}
    for part, copied in zip(parts, copies_of_later(parts), strict=True):
        images, left_out = _usable_images(part, copied)
        annotations, changed = cleaned(part, images)
        own = [class_map.names.index(name) for name in annotations.class_map.names]
        labels = label_of(np.array(own, np.int64)[annotations.class_indices])
        clean[part.name] = replace(annotations, class_map=class_map, labels=labels)
        counts = {**left_out, **changed}
        said += [f"{part.name}, {what}: {count}" for what, count in counts.items() if count]
    write_coco(clean, folder)
    return said


def _class_map(parts: Sequence[Part]) -> ClassMap:
    """The classes of all parts, each with the source id of the first part that has it, unless that
    is taken.
    """
    ids: dict[str, int] = {}
    for part in parts:
        class_map = part.annotations.class_map
        for name, source_id in zip(class_map.names, class_map.source_ids, strict=True):
            taken = source_id in ids.values()
            ids.setdefault(name, max(ids.values()) + 1 if taken else source_id)
    return ClassMap(tuple(ids), tuple(ids.values()))


def _usable_images(part: Part, copied: np.ndarray) -> tuple[np.ndarray, Changes]:
    """The rows of images that go into the copy, and how many do not; copied: (N,) bool, those that
    a later split has too.
    """
    unreadable = ~part.survey.readable
    wrong = np.zeros(len(unreadable), bool)
    wrong[conventions(part)[WRONG_SIZE]] = True
    copied = copied & ~unreadable & ~wrong
    left_out = {
        "images that cannot be read left out": int(unreadable.sum()),
        "images of another size than stated left out": int(wrong.sum()),
        "images that a later split has too left out": int(copied.sum()),
    }
    return np.flatnonzero(~(unreadable | wrong | copied)), left_out


def cleaned(part: Part, images: np.ndarray) -> tuple[Annotations, Changes]:
    """Return the annotations of some images of a part, (N',) int64 rows, with clean boxes, and what
    was changed.

    Boxes that follow the pixels as stored are turned upright, as EXIF says; swapped corners put in
    order; then boxes clipped to their image. Left out are those that are not finite, have no area,
    lie outside their image or fit it with x and y exchanged only, and all but the first of equal
    boxes of a class. What is only doubtful stays.
    """
    annotations = part.annotations
    sizes, conventional = part.survey.upright_sizes, conventions(part)
    here = np.zeros(len(annotations), bool)
    here[images] = True
    lying = np.concatenate((conventional[AS_STORED], conventional[TURNED_BOXES]))
    boxes = annotations.boxes.copy()
    for image in lying.tolist():
        rows = slice(*annotations.offsets[image : image + 2].tolist())
        orientation = int(part.survey.orientations[image])
        boxes[rows] = upright_boxes(boxes[rows], tuple(sizes[image].tolist()), orientation)

    of_boxes, ours = sizes[part.images], here[part.images]
    swapped = find_faults(boxes, of_boxes).swapped_corners
    low, high = np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])
    boxes = np.where(swapped[:, None], np.concatenate((low, high), axis=1), boxes)
    faults = find_faults(boxes, of_boxes)
    keep = faults.usable & ours
    boxes = np.clip(boxes, 0, of_boxes[:, [1, 0, 1, 0]])
    again = np.zeros(len(boxes), bool)
    again[_repeated(boxes, np.flatnonzero(keep & ~annotations.crowd), part)] = True
    changes = {
        "images whose boxes are turned upright": int(here[lying].sum()),
        "boxes with their corners put in order": int((swapped & keep).sum()),
        "boxes clipped to their image": int((faults.leaving & keep).sum()),
        "boxes that are not finite left out": int((faults.not_finite & ours).sum()),
        "boxes without area left out": int((faults.without_area & ours).sum()),
        "boxes outside their image left out": int((faults.outside & ours).sum()),
        "boxes with x and y exchanged left out": int((faults.exchanged_axes & ours).sum()),
        "boxes that are there twice left out": int(again.sum()),
    }
    keep &= ~again
    unchanged = (boxes == annotations.boxes).all(axis=1)
    areas = np.where(unchanged, annotations.areas, (boxes[:, 2:] - boxes[:, :2]).prod(axis=1))
    clean = replace(
        annotations, boxes=boxes, sides=None, areas=areas, image_sizes=sizes.astype(np.int32)
    ).with_objects(keep)
    return clean.subset(images, annotations.source), changes


def _repeated(boxes: np.ndarray, rows: np.ndarray, part: Part) -> np.ndarray:
    """Those of `rows` whose box and class an earlier one of them in the image has."""
    pairs = rows[doubled_boxes(boxes[rows], part.images[rows], NEARLY_THE_SAME)]
    labels = part.annotations.labels
    same = are_equal(boxes, pairs) & (labels[pairs[:, 0]] == labels[pairs[:, 1]])
    return np.unique(pairs[same, 1])

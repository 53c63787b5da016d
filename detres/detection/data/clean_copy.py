"""A copy of annotated data, as COCO, without what is surely wrong with them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from detres.detection.annotations import Annotations, offsets_of
from detres.detection.data.box_checks import (
    NEARLY_THE_SAME,
    are_equal,
    doubled_boxes,
    find_faults,
)
from detres.detection.data.findings import Part
from detres.detection.data.image_findings import (
    AS_STORED,
    TURNED_BOXES,
    WRONG_SIZE,
    conventions,
    copies_of_later,
)
from detres.files import write_text, writing_folder
from detres.images.decode import upright_boxes

_BAR_AFTER = 3.0
"""Seconds after which a progress bar is shown, on a terminal."""

_OF_OBJECTS = ("labels", "areas", "crowd", "difficult", "ids")

Changes = dict[str, int]
"""What is different in a copy -> how often."""


def write_clean_copy(parts: Sequence[Part], folder: Path) -> list[str]:
    """Write the splits of a data set, whose files were looked at, into a new `folder` as COCO, and
    return what is different in it, a line each.

    FOLDER/annotations/instances_SPLIT.json and the images in FOLDER/SPLIT, byte for byte. Left out:
    images that cannot be read, that are of another size than stated, or that a later split has a
    copy of; what else is in `cleaned`. Objects flagged difficult are flagged crowd there: neither
    is learnt. The source is only read. Raises TakenFolderError for a folder that holds files,
    OSError for one that cannot be written.
    """
    ids = _category_ids(parts)
    copied, said = copies_of_later(parts), []
    with writing_folder(folder) as temporary:
        (temporary / "annotations").mkdir()
        for part, of_part in zip(parts, copied, strict=True):
            images, left_out = _usable_images(part, of_part)
            clean, changed = cleaned(part, images)
            names = _copy_images(clean, temporary / part.name)
            content = json.dumps(_as_coco(clean, names, ids))
            write_text(temporary / "annotations" / f"instances_{part.name}.json", content)
            counts = {**left_out, **changed}
            said += [f"{part.name}, {what}: {count}" for what, count in counts.items() if count]
    return said


def _category_ids(parts: Sequence[Part]) -> dict[str, int]:
    """Name -> category id: that of the first split that has the class, unless it is taken."""
    ids: dict[str, int] = {}
    for part in parts:
        class_map = part.annotations.class_map
        for name, source_id in zip(class_map.names, class_map.source_ids, strict=True):
            taken = source_id in ids.values()
            ids.setdefault(name, max(ids.values()) + 1 if taken else source_id)
    return ids


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
    annotations = replace(annotations, areas=areas, image_sizes=sizes.astype(np.int32))
    clean = replace(
        annotations,
        boxes=boxes[keep],
        sides=None,
        offsets=offsets_of(part.images[keep], len(annotations)),
        **{name: getattr(annotations, name)[keep] for name in _OF_OBJECTS},
    )
    return clean.subset(images, annotations.source), changes


def _repeated(boxes: np.ndarray, rows: np.ndarray, part: Part) -> np.ndarray:
    """Those of `rows` whose box and class an earlier one of them in the image has."""
    pairs = rows[doubled_boxes(boxes[rows], part.images[rows], NEARLY_THE_SAME)]
    labels = part.annotations.labels
    same = are_equal(boxes, pairs) & (labels[pairs[:, 0]] == labels[pairs[:, 1]])
    return np.unique(pairs[same, 1])


def _copy_images(annotations: Annotations, folder: Path) -> list[str]:
    """Copy the image files of `annotations` into `folder`, and return their names in it: their
    paths from the folder that all of them are in.
    """
    files = annotations.image_files.tolist()
    folder.mkdir()
    base = os.path.commonpath({os.path.dirname(file) for file in files}) if files else ""
    names = [os.path.relpath(file, base) for file in files]
    for parent in {os.path.dirname(name) for name in names}:
        (folder / parent).mkdir(parents=True, exist_ok=True)
    bar = tqdm(
        zip(files, names, strict=True),
        total=len(files),
        desc=f"copying {folder.name}",
        unit="image",
        leave=False,
        disable=None,  # shown on a terminal only
        delay=_BAR_AFTER,
    )
    for file, name in bar:
        shutil.copyfile(file, folder / name)
    return names


def _as_coco(annotations: Annotations, names: list[str], ids: dict[str, int]) -> dict:
    """The content of a COCO file; image ids that are text are numbered from 1."""
    number = len(annotations)
    given = annotations.image_ids
    image_ids = given.tolist() if given.dtype.kind == "i" else list(range(1, number + 1))
    images = [
        {"id": image_id, "file_name": name, "height": height, "width": width}
        for image_id, name, (height, width) in zip(
            image_ids, names, annotations.image_sizes.tolist(), strict=True
        )
    ]
    owners = np.repeat(np.arange(number), np.diff(annotations.offsets)).tolist()
    category_ids = [ids[name] for name in annotations.class_map.names]
    ignored = (annotations.crowd | annotations.difficult).tolist()
    objects = zip(
        annotations.ids.tolist(),
        owners,
        annotations.class_indices.tolist(),
        annotations.xywh().tolist(),
        annotations.areas.tolist(),
        ignored,
        strict=True,
    )
    return {
        "images": images,
        "annotations": [
            {
                "id": object_id,
                "image_id": image_ids[owner],
                "category_id": category_ids[index],
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
            }
            for object_id, owner, index, box, area, crowd in objects
        ],
        "categories": [{"id": source_id, "name": name} for name, source_id in ids.items()],
    }

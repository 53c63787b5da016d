"""LabelMe's JSON files, one an image -> Annotations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detres.class_map import ClassMap
from detres.console import one_line, shown
from detres.detection.annotations import Annotations
from detres.detection.data.assemble import Labelled, assembled
from detres.detection.data.box_policy import LARGEST_SIDE, AnnotationError, BoxPolicy
from detres.detection.data.label_files import LabelledFiles, image_ids, match_labels
from detres.detection.data.read_each import read_each
from detres.user_files import JsonError, TextError, read_json
from detres.values import FLAG, flag_of, integer_of, number_of

SUFFIX = ".json"

_BOXED = ("rectangle", "polygon", "circle", "mask", "rotation", "oriented_rectangle")
"""Shapes that have a box: that around their points, of a circle that around it."""

_NOT_BOXED = ("point", "points", "line", "linestrip")


class LabelMeObject(NamedTuple):
    """One object: `number` counts the shapes of its file from 1, box is xyxy px."""

    number: int
    name: str
    box: tuple[float, float, float, float]
    difficult: bool


class LabelMeRecord(NamedTuple):
    """One file: size (h, w) px, 0 where it is not given, its objects, the image file that it names
    ("" where none), and the kinds of shapes that are no objects.
    """

    size: tuple[int, int]
    objects: list[LabelMeObject]
    file_name: str
    left_out: list[str]


def read_labelme(
    root: str | Path,
    entries: Sequence[str],
    folders: Sequence[str],
    class_map: ClassMap,
    *,
    box_policy: BoxPolicy = "drop",
) -> Annotations:
    """Read images that have LabelMe's JSON files beside them or in another folder; image ids are
    file stems, see label_files.image_ids.

    entries, folders: of JSON files, and of their images, see label_files.match_labels. Images
    without JSON file are left out and counted; the copy of the image in the file is not looked at.
    class_map: the classes; objects of others are left out and counted. An object is a rectangle, a
    polygon or a circle, by the box around it; shapes of one label and group_id are one object, as
    in LabelMe's own converters; points and lines are left out and counted. Raises what
    `match_labels`, `read_labelme_file` and `apply_box_policy` raise.
    """
    root = Path(root)
    matched = _matched(root, entries, folders)
    records = read_each(matched.labels, read_labelme_file)
    objects = [item for record in records for item in record.objects]
    rows = np.repeat(np.arange(len(records)), [len(record.objects) for record in records])
    boxes = np.array([item.box for item in objects], np.float64).reshape(-1, 4)
    left_out = Counter(kind for record in records for kind in record.left_out)
    notes = [
        f"{count} shapes of kind {kind} are no boxes and are left out"
        for kind, count in sorted(left_out.items())
    ]
    labelled = Labelled(
        source=f"{root}: {' + '.join(entries)}",
        ids=image_ids(matched.images),
        files=matched.images,
        sizes=np.array([record.size for record in records], np.int32).reshape(-1, 2),
        rows=rows.astype(np.int64),
        names=[item.name for item in objects],
        boxes=boxes,
        written=boxes,
        describe_row=lambda row: (
            f"{matched.labels[rows[row]]}: shape {objects[row].number} ({objects[row].name}), box "
            f"{list(objects[row].box)}"
        ),
        difficult=np.array([item.difficult for item in objects], bool),
        notes=[*matched.notes, *notes],
    )
    index_of_name = {name: index for index, name in enumerate(class_map.names)}
    return assembled(labelled, class_map, index_of_name, box_policy)


def labelme_names(root: Path, entries: Sequence[str], folders: Sequence[str]) -> set[str]:
    """Return the names of all objects in the JSON files that `read_labelme` reads; raises what
    `match_labels` and `read_labelme_file` raise.
    """
    labels = _matched(root, entries, folders).labels
    records = read_each(labels, read_labelme_file)
    return {item.name for record in records for item in record.objects}


def _matched(root: Path, entries: Sequence[str], folders: Sequence[str]) -> LabelledFiles:
    return match_labels(
        root,
        entries,
        folders,
        suffix=SUFFIX,
        image_named_in=lambda path: read_labelme_file(path).file_name,
    )


def read_labelme_file(path: Path) -> LabelMeRecord:
    """Return what one file says.

    Raises FileNotFoundError where there is no such file, AnnotationError naming it, and the shape,
    for: not JSON, not LabelMe's, a side beyond LARGEST_SIDE, a shape without label or points, a
    rectangle or circle of one point.
    """
    try:
        content = read_json(path, "annotation file")
    except (TextError, JsonError) as error:
        raise AnnotationError(str(error)) from None
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list):
        raise AnnotationError(f"{path} is no LabelMe annotation: it has no list of 'shapes'")
    parts: dict[object, LabelMeObject] = {}
    left_out = []
    for number, shape in enumerate(shapes, start=1):
        where = f"{path}: shape {number}"
        if not isinstance(shape, dict):
            raise AnnotationError(f"{where} is {shown(shape)}, expected an object")
        kind = shape.get("shape_type") or "polygon"
        if kind not in _BOXED:
            if kind not in _NOT_BOXED:
                raise AnnotationError(
                    f"{where} has shape_type {shown(kind)}, expected {', '.join(_BOXED[:3])}"
                )
            left_out.append(kind)
            continue
        part = _object_of(shape, kind, number, where)
        group = shape.get("group_id")
        key = number if group is None else (part.name, str(group))
        parts[key] = _joined(parts[key], part) if key in parts else part
    name = content.get("imagePath")
    return LabelMeRecord(
        (_side(content, "imageHeight", path), _side(content, "imageWidth", path)),
        list(parts.values()),
        name if isinstance(name, str) else "",
        left_out,
    )


def _object_of(shape: dict, kind: str, number: int, where: str) -> LabelMeObject:
    label = shape.get("label")
    name = one_line(str(label).strip()) if isinstance(label, str | int | float) else ""
    if not name:
        raise AnnotationError(f"{where} has no label")
    points = shape.get("points")
    read = [
        [number_of(value) for value in point] if isinstance(point, list) else []
        for point in (points if isinstance(points, list) else [])
    ]
    if len(read) < 2 or any(len(point) != 2 or None in point for point in read):
        raise AnnotationError(
            f"{where} ({name}) has points {shown(points)}, expected two or more [x, y]"
        )
    difficult = flag_of(shape.get("difficult"))
    if difficult is None:
        raise AnnotationError(
            f"{where} ({name}) has difficult {shown(shape.get('difficult'))}, expected {FLAG}"
        )
    if kind == "circle":  # its centre, and a point on it
        (x, y), edge = read[:2]
        radius = math.dist((x, y), edge)
        box = (x - radius, y - radius, x + radius, y + radius)
    else:
        xs, ys = zip(*read, strict=True)
        box = (min(xs), min(ys), max(xs), max(ys))
    return LabelMeObject(number, name, box, difficult)


def _joined(one: LabelMeObject, other: LabelMeObject) -> LabelMeObject:
    """Two parts of one object as one."""
    low = map(min, one.box[:2], other.box[:2])
    high = map(max, one.box[2:], other.box[2:])
    return one._replace(box=(*low, *high), difficult=one.difficult or other.difficult)


def _side(content: dict, key: str, path: Path) -> int:
    """The height or width in px; 0 where it is not given."""
    value = content.get(key)
    pixels = 0 if value is None else integer_of(value)
    if pixels is None or not 0 <= pixels <= LARGEST_SIDE:
        raise AnnotationError(
            f"{path}: {key} is {shown(value)}, expected px up to {LARGEST_SIDE}, or none"
        )
    return pixels

"""COCO JSON -> Annotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from detres.class_map import ClassMap
from detres.console import one_line, shown
from detres.detection.annotations import Annotations, NoTruthError, offsets_of
from detres.detection.data.box_policy import (
    LARGEST_SIDE,
    OTHER_CLASS,
    RENUMBERED,
    REPLACED_AREA,
    AnnotationError,
    BoxPolicy,
    apply_box_policy,
    known_classes,
)
from detres.detection.data.doubts import doubts
from detres.detection.structures import label_of
from detres.images.locate import Outside, locate
from detres.user_files import JsonError, TextError, read_json
from detres.values import FLAG, INTEGER, NUMBER, flag_of, integer_of, number_of
from detres.waiting import say_reading

_SAFE = 2**53
"""Numbers up to here are as written, also as floats; others are looked at one by one."""


def read_coco(
    annotation_file: str | Path,
    image_folder: str | Path | None,
    *,
    classes: Sequence[str] | None = None,
    box_policy: BoxPolicy = "drop",
    outside: Outside = "error",
    may_lack_truth: bool = False,
) -> Annotations:
    """Read a COCO detection file; labels 1..K follow the rising category ids, source ids stay as
    they are.

    image_folder: where the files are, file_name may hold sub-folders, see images.locate; None
    leaves them unchecked and image_files are the bare file names (to evaluate results, no image is
    needed). classes: these only, in this order; objects of other classes are left out and counted
    as "other class"; without them, a category that no annotation has and that is the supercategory
    of all that annotations have is no class, as Roboflow writes one. box_policy: see
    apply_box_policy. outside: whether a file_name may lead out of the folder. Optional in the file,
    or null: info, licenses, iscrowd (0), area (then the box's), width and height (unknown),
    segmentation. Numbers, ids and flags may be text, see detres.values; an area that is negative or
    not finite is the box's, counted. Images without annotations stay. An annotation id that is
    missing, or taken by an earlier annotation, is replaced by a new one and counted as "renumbered
    annotation id". No annotations at all: boxes are (0, 4); `require_objects` is the check.
    may_lack_truth: whether the file may be of a test set, as COCO's image_info files are, in which
    annotations are missing, null or an empty list: the result is then one without truth.

    Raises FileNotFoundError for the file, and what locate raises for the folder and the images;
    NoTruthError for a file without annotations that may not lack them; AnnotationError for: not
    JSON, not COCO, an image id or file name listed twice, an annotation of
    an unknown image or category, a bbox that is not four numbers, a flag that is none, a side
    beyond LARGEST_SIDE, an unknown class name.
    """
    path = Path(annotation_file)
    content = _load(path, may_lack_truth)
    images, annotations = content["images"], content["annotations"]
    lacks_truth = may_lack_truth and not annotations
    categories = _integers(annotations, "category_id", path, "annotations")
    class_map, notes = _class_map(content["categories"], categories, classes, path)
    category_ids = _integers(content["categories"], "id", path, "categories")

    image_ids, file_names, sizes = _images(images, path)
    image_files = file_names
    if image_folder is not None:
        image_files, found = locate(
            Path(image_folder), file_names, source=str(path), outside=outside
        )
        notes += found

    ids, num_renumbered = _unique_ids(_integers(annotations, "id", path, "annotations", default=-1))
    owners = _integers(annotations, "image_id", path, "annotations")
    _require_known(owners, image_ids, ids, "image_id", path)
    _require_known(categories, category_ids, ids, "category_id", path)
    xywh = _boxes(annotations, ids, path)
    areas = _numbers(annotations, "area", path, "annotations", default=np.nan)
    given = np.array([annotation.get("area") is not None for annotation in annotations], bool)
    no_area = given & ~(np.isfinite(areas) & (areas >= 0))
    crowd = _flags(annotations, "iscrowd", path, "annotations")
    del content, images, annotations

    order = np.argsort(image_ids, kind="stable")
    image_rows = order[np.searchsorted(image_ids, owners, sorter=order)]
    labels = _labels(categories, class_map)
    rows = np.flatnonzero(labels > 0)
    rows = rows[np.argsort(image_rows[rows], kind="stable")]
    corners = np.concatenate((xywh[rows, :2], xywh[rows, :2] + xywh[rows, 2:]), axis=1)
    notes += [
        f"{path}: {doubt}"
        for doubt in doubts(corners, sizes[image_rows[rows]], written_as_sides=True)
    ]
    xyxy, usable, reasons = apply_box_policy(
        corners,
        sizes[image_rows[rows]],
        box_policy,
        lambda row: (
            f"{path}: annotation {ids[rows[row]]} (image {owners[rows[row]]}), bbox "
            f"{xywh[rows[row]].tolist()}"
        ),
    )
    rows, xyxy = rows[usable], xyxy[usable]
    dropped = {
        OTHER_CLASS: len(labels) - int((labels > 0).sum()),
        RENUMBERED: num_renumbered,
        REPLACED_AREA: int(no_area[rows].sum()),
    }
    as_written = (xyxy == corners[usable]).all(axis=1, keepdims=True)
    sides = np.where(as_written, xywh[rows, 2:], xyxy[:, 2:] - xyxy[:, :2])
    areas = np.where(np.isnan(areas[rows]) | no_area[rows], sides.prod(axis=1), areas[rows])
    return Annotations(
        source=str(path),
        class_map=class_map,
        image_ids=image_ids,
        image_files=np.array(image_files, dtype=str),
        image_sizes=sizes,
        offsets=offsets_of(image_rows[rows], len(image_ids)),
        boxes=xyxy,
        labels=labels[rows],
        areas=areas,
        crowd=crowd[rows],
        difficult=np.zeros(len(rows), bool),
        ids=ids[rows],
        dropped={reason: count for reason, count in (dropped | reasons).items() if count},
        sides=sides,
        notes=tuple(notes),
        without_truth=f"{path.name} has no annotations" if lacks_truth else None,
    )


def _images(records: list[dict], path: Path) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Ids (N,) int64, file names, and sizes (N, 2) int32 (h, w) px, 0 where they are not given."""
    ids = _integers(records, "id", path, "images")
    file_names = _strings(records, "file_name", path, "images")
    _require_once(ids.tolist(), "id", file_names, "file_name", path)
    _require_once(file_names, "file_name", ids.tolist(), "id", path)
    sides = [_sides(records, side, path) for side in ("height", "width")]
    return ids, file_names, np.stack(sides, axis=1).astype(np.int32)


def _sides(records: list[dict], side: str, path: Path) -> np.ndarray:
    sides = _integers(records, side, path, "images", default=0)
    bad = np.flatnonzero((sides < 0) | (sides > LARGEST_SIDE))
    if len(bad):
        raise AnnotationError(
            f"{path}: images[{bad[0]}] has {side} {sides[bad[0]]}, expected px up to {LARGEST_SIDE}"
        )
    return sides


def _labels(categories: np.ndarray, class_map: ClassMap) -> np.ndarray:
    """Labels (M,) int64 1..K of category ids (M,); 0 for a class that is not in the map."""
    source_ids = np.array(class_map.source_ids, np.int64)
    order = np.argsort(source_ids)
    place = np.searchsorted(source_ids, categories, sorter=order)
    indices = order[np.minimum(place, len(order) - 1)]
    return np.where(source_ids[indices] == categories, label_of(indices), 0)


def _load(path: Path, may_lack_truth: bool) -> dict:
    say_reading(path)
    try:
        content = read_json(path, "annotation file")
    except (TextError, JsonError) as error:
        raise AnnotationError(str(error)) from None
    if not isinstance(content, dict):
        what = (
            "a list: perhaps a results file"
            if isinstance(content, list)
            else f"a {type(content).__name__}"
        )
        raise AnnotationError(
            f"{path} is not COCO annotations: expected an object with images, annotations and "
            f"categories, found {what}"
        )
    of_test_set = content.get("annotations") is None and {"images", "categories"} <= content.keys()
    if of_test_set and may_lack_truth:
        content["annotations"] = []
    elif of_test_set:
        raise NoTruthError(
            f"{path} is not COCO annotations: it has no 'annotations', as the file of a test set, "
            "whose objects are not known; such images can be neither trained nor evaluated on"
        )
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise AnnotationError(
                f"{path} is not COCO annotations: it has no '{key}'; found the keys "
                f"{shown(sorted(content))}"
            )
        if not isinstance(content[key], list) or not all(
            isinstance(record, dict) for record in content[key]
        ):
            raise AnnotationError(
                f"{path} is not COCO annotations: '{key}' must be a list of objects"
            )
    return content


def _column(records: list[dict], key: str, path: Path, table: str, default: float | None) -> list:
    """The values of `key`; `default` stands in where it is missing or null, None means that it must
    be there.
    """
    values = [record.get(key, default) for record in records]
    if None in values:
        if default is None:
            index = values.index(None)
            raise AnnotationError(f"{path}: {table}[{index}] has no '{key}'")
        values = [default if value is None else value for value in values]
    return values


def _read_column(
    values: list, value_of: Callable, expected: str, key: str, path: Path, table: str
) -> list:
    """`values` as `value_of` reads them; one it cannot read is an error that names its record."""
    read = [value_of(value) for value in values]
    if None in read:
        index = read.index(None)
        raise AnnotationError(
            f"{path}: {table}[{index}] has {key} {shown(values[index])}, expected {expected}"
        )
    return read


def _integers(
    records: list[dict], key: str, path: Path, table: str, default: int | None = None
) -> np.ndarray:
    values = _column(records, key, path, table, default)
    if any(type(value) is not int or abs(value) > _SAFE for value in values):
        values = _read_column(values, integer_of, INTEGER, key, path, table)
    return np.array(values, np.int64)


def _numbers(records: list[dict], key: str, path: Path, table: str, default: float) -> np.ndarray:
    values = _column(records, key, path, table, default)
    if any(type(value) not in (int, float) or abs(value) > _SAFE for value in values):
        values = _read_column(values, number_of, NUMBER, key, path, table)
    return np.array(values, np.float64)


def _flags(records: list[dict], key: str, path: Path, table: str) -> np.ndarray:
    values = [record.get(key) for record in records]
    return np.array(_read_column(values, flag_of, FLAG, key, path, table), bool)


def _strings(records: list[dict], key: str, path: Path, table: str) -> list[str]:
    values = _column(records, key, path, table, None)
    for index, value in enumerate(values):
        if not isinstance(value, str) or not value.strip() or "\0" in value:
            raise AnnotationError(
                f"{path}: {table}[{index}] has {key} {shown(value)}, expected text"
            )
    return values


def _boxes(annotations: list[dict], ids: np.ndarray, path: Path) -> np.ndarray:
    """(M, 4) float64 as written; whether the numbers make a box is for the box policy."""
    boxes = [annotation.get("bbox") for annotation in annotations]
    for index, box in enumerate(boxes):
        if type(box) is list and [type(value) for value in box] == [float] * 4:
            continue
        boxes[index] = [number_of(value) for value in box] if type(box) is list else []
        if len(boxes[index]) != 4 or None in boxes[index]:
            raise AnnotationError(
                f"{path}: annotation {ids[index]} has bbox {shown(box)}, expected [x, y, width, "
                "height]"
            )
    return np.array(boxes, np.float64).reshape(-1, 4)


def _class_map(
    categories: list[dict], used: np.ndarray, classes: Sequence[str] | None, path: Path
) -> tuple[ClassMap, list[str]]:
    """The classes, and what is to be said about them; used: (M,) the category ids of objects."""
    source_ids = _integers(categories, "id", path, "categories").tolist()
    names = [one_line(name).strip() for name in _strings(categories, "name", path, "categories")]
    for what, values in (("id", source_ids), ("name", names)):
        repeated = [value for value, count in Counter(values).items() if count > 1]
        if repeated:
            raise AnnotationError(f"{path}: category {what} {shown(repeated[0])} is listed twice")
    if not names:
        raise AnnotationError(f"{path} has no categories")
    id_of = {name: source_id for source_id, name in sorted(zip(source_ids, names, strict=True))}
    if classes is not None:
        names, notes = known_classes(classes, list(id_of), str(path)), []
    else:
        parents = _unused_parents(categories, source_ids, names, set(used.tolist()))
        names = tuple(name for name in id_of if name not in parents)
        notes = [
            f"{path}: {', '.join(parents)} is no class: no box has it, and all classes with boxes "
            "name it as supercategory"
        ] * bool(parents)
    return ClassMap(names=names, source_ids=tuple(id_of[name] for name in names)), notes


def _unused_parents(
    categories: list[dict], source_ids: list[int], names: list[str], used: set[int]
) -> list[str]:
    """The names of categories without objects that every category with objects has as
    supercategory.
    """
    parents = {
        category.get("supercategory")
        for category, source_id in zip(categories, source_ids, strict=True)
        if source_id in used
    }
    return [
        name
        for name, source_id in zip(names, source_ids, strict=True)
        if source_id not in used and parents == {name}
    ]


def _unique_ids(ids: np.ndarray) -> tuple[np.ndarray, int]:
    """Return ids where every repeated or missing (-1) one but the first of its kind is new, and how
    many are.
    """
    _, first = np.unique(ids, return_index=True)
    anew = np.ones(len(ids), bool)
    anew[first] = False
    anew |= ids == -1
    ids = ids.copy()
    ids[anew] = max(ids.max(initial=0), 0) + 1 + np.arange(anew.sum())
    return ids, int(anew.sum())


def _require_once(values: list, key: str, others: list, other_key: str, path: Path) -> None:
    repeated = [value for value, count in Counter(values).items() if count > 1]
    if repeated:
        first, second = [
            other for value, other in zip(values, others, strict=True) if value == repeated[0]
        ][:2]
        raise AnnotationError(
            f"{path}: the image with {key} {repeated[0]} is listed twice, with {other_key} {first} "
            f"and {second} ({len(repeated)} such)"
        )


def _require_known(
    values: np.ndarray, known: np.ndarray, ids: np.ndarray, key: str, path: Path
) -> None:
    bad = np.flatnonzero(~np.isin(values, known))
    if len(bad):
        raise AnnotationError(
            f"{path}: annotation {ids[bad[0]]} has {key} {values[bad[0]]}, which the file does not "
            f"list ({len(bad)} such annotations)"
        )

"""COCO JSON -> Annotations."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detres.class_map import ClassMap
from detres.detection.annotations import Annotations, offsets_of
from detres.detection.data.box_policy import (
    OTHER_CLASS,
    RENUMBERED,
    AnnotationError,
    BoxPolicy,
    apply_box_policy,
    known_classes,
)
from detres.detection.structures import label_of


def read_coco(
    annotation_file: str | Path,
    image_folder: str | Path | None,
    *,
    classes: Sequence[str] | None = None,
    box_policy: BoxPolicy = "drop",
) -> Annotations:
    """Read a COCO detection file; labels 1..K follow the rising category ids, source ids stay as
    they are.

    image_folder: where the files are, file_name may hold sub-folders; None leaves them unchecked
    and image_files are the bare file names (to evaluate results, no image is needed). classes:
    these only, in this order; objects of other classes are left out and counted as "other class".
    box_policy: see apply_box_policy. Optional in the file, or null: info, licenses, iscrowd (0),
    area (then the box's), width and height (unknown), segmentation. Images without annotations
    stay. An annotation id that is missing, or taken by an earlier annotation, is replaced by a new
    one and counted as "renumbered annotation id". No annotations at all: boxes are (0, 4);
    `require_objects` is the check.

    Raises FileNotFoundError for the file, the folder or missing images (count and first names),
    AnnotationError for: not JSON, not COCO, an image id or file name listed twice, an annotation of
    an unknown image or category, a bbox that is not four numbers, an unknown class name.
    """
    path = Path(annotation_file)
    content = _load(path)
    images, annotations = content["images"], content["annotations"]
    class_map = _class_map(content["categories"], classes, path)
    category_ids = _integers(content["categories"], "id", path, "categories")

    image_ids, file_names, sizes = _images(images, path)
    if image_folder is not None:
        _require_files(Path(image_folder), file_names, path)

    ids, num_renumbered = _unique_ids(_integers(annotations, "id", path, "annotations", default=-1))
    owners = _integers(annotations, "image_id", path, "annotations")
    categories = _integers(annotations, "category_id", path, "annotations")
    _require_known(owners, image_ids, ids, "image_id", path)
    _require_known(categories, category_ids, ids, "category_id", path)
    xywh = _boxes(annotations, ids, path)
    areas = _numbers(annotations, "area", path, "annotations", default=np.nan)
    crowd = np.array([bool(annotation.get("iscrowd")) for annotation in annotations], bool)
    del content, images, annotations

    order = np.argsort(image_ids, kind="stable")
    image_rows = order[np.searchsorted(image_ids, owners, sorter=order)]
    labels = _labels(categories, class_map)
    rows = np.flatnonzero(labels > 0)
    rows = rows[np.argsort(image_rows[rows], kind="stable")]
    dropped = {OTHER_CLASS: len(labels) - len(rows), RENUMBERED: num_renumbered}
    corners = np.concatenate((xywh[rows, :2], xywh[rows, :2] + xywh[rows, 2:]), axis=1)
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
    as_written = (xyxy == corners[usable]).all(axis=1, keepdims=True)
    sides = np.where(as_written, xywh[rows, 2:], xyxy[:, 2:] - xyxy[:, :2])
    areas = np.where(np.isnan(areas[rows]), sides.prod(axis=1), areas[rows])
    folder = str(image_folder) if image_folder is not None else ""
    return Annotations(
        source=str(path),
        class_map=class_map,
        image_ids=image_ids,
        image_files=np.array([os.path.join(folder, name) for name in file_names], dtype=str),
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
    )


def _images(records: list[dict], path: Path) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Ids (N,) int64, file names, and sizes (N, 2) int32 (h, w) px, 0 where they are not given."""
    ids = _integers(records, "id", path, "images")
    file_names = _strings(records, "file_name", path, "images")
    _require_once(ids.tolist(), "id", file_names, "file_name", path)
    _require_once(file_names, "file_name", ids.tolist(), "id", path)
    sides = [_integers(records, side, path, "images", default=0) for side in ("height", "width")]
    return ids, file_names, np.stack(sides, axis=1).astype(np.int32)


def _labels(categories: np.ndarray, class_map: ClassMap) -> np.ndarray:
    """Labels (M,) int64 1..K of category ids (M,); 0 for a class that is not in the map."""
    labels = np.zeros(len(categories), np.int64)
    for index, source_id in enumerate(class_map.source_ids):
        labels[categories == source_id] = label_of(index)
    return labels


def _load(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file {path}")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise AnnotationError(f"{path} is not JSON: {error}") from None
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
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise AnnotationError(
                f"{path} is not COCO annotations: it has no '{key}'; found the keys "
                f"{sorted(content)}"
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


def _integers(
    records: list[dict], key: str, path: Path, table: str, default: int | None = None
) -> np.ndarray:
    values = _column(records, key, path, table, default)
    for index, value in enumerate(values):
        # Some exporters write every number as 12.0.
        whole = type(value) is int or (type(value) is float and value.is_integer())
        if not whole or not -(2**63) <= value < 2**63:
            raise AnnotationError(
                f"{path}: {table}[{index}] has {key} {value!r}, expected an integer of 64 bits"
            )
    return np.array(values, np.int64)


def _numbers(records: list[dict], key: str, path: Path, table: str, default: float) -> np.ndarray:
    values = _column(records, key, path, table, default)
    for index, value in enumerate(values):
        if type(value) not in (int, float):
            raise AnnotationError(
                f"{path}: {table}[{index}] has {key} {value!r}, expected a number"
            )
    return np.array(values, np.float64)


def _strings(records: list[dict], key: str, path: Path, table: str) -> list[str]:
    values = _column(records, key, path, table, None)
    for index, value in enumerate(values):
        if not isinstance(value, str) or not value:
            raise AnnotationError(f"{path}: {table}[{index}] has {key} {value!r}, expected text")
    return values


def _boxes(annotations: list[dict], ids: np.ndarray, path: Path) -> np.ndarray:
    """(M, 4) float64 as written; whether the numbers make a box is for the box policy."""
    boxes = [annotation.get("bbox") for annotation in annotations]
    for index, box in enumerate(boxes):
        if (
            not isinstance(box, list)
            or len(box) != 4
            or not all(type(value) in (int, float) for value in box)
        ):
            raise AnnotationError(
                f"{path}: annotation {ids[index]} has bbox {box!r}, expected [x, y, width, height]"
            )
    return np.array(boxes, np.float64).reshape(-1, 4)


def _class_map(categories: list[dict], classes: Sequence[str] | None, path: Path) -> ClassMap:
    source_ids = _integers(categories, "id", path, "categories").tolist()
    names = _strings(categories, "name", path, "categories")
    for what, values in (("id", source_ids), ("name", names)):
        repeated = [value for value, count in Counter(values).items() if count > 1]
        if repeated:
            raise AnnotationError(f"{path}: category {what} {repeated[0]!r} is listed twice")
    if not names:
        raise AnnotationError(f"{path} has no categories")
    id_of = {name: source_id for source_id, name in sorted(zip(source_ids, names, strict=True))}
    names = tuple(id_of) if classes is None else known_classes(classes, list(id_of), str(path))
    return ClassMap(names=names, source_ids=tuple(id_of[name] for name in names))


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


def _require_files(folder: Path, names: list[str], path: Path) -> None:
    """One directory scan for each sub-folder instead of one stat for each file."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"image folder {folder} of {path} does not exist or is not a folder"
        )
    places = [os.path.split(name) for name in names]
    present = {
        sub: set(os.listdir(folder / sub)) if (folder / sub).is_dir() else set()
        for sub in {sub for sub, _ in places}
    }
    missing = [
        name for name, (sub, base) in zip(names, places, strict=True) if base not in present[sub]
    ]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} images of {path} are not in {folder}: {shown}"
        )

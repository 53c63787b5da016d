"""COCO JSON -> Annotations."""

from __future__ import annotations

import difflib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detres.data.box_policy import AnnotationError, BoxPolicy, apply_box_policy
from detres.structures import Annotations, ClassMap


def read_coco(
    annotation_file: str | Path,
    image_folder: str | Path | None,
    *,
    classes: Sequence[str] | None = None,
    boxes: BoxPolicy = "drop",
) -> Annotations:
    """Read a COCO detection file; labels 1..K follow the rising category ids, source ids stay as they are.

    image_folder: where the files are; None leaves them unchecked (to score results, no image is needed).
    classes: train on these only, in this order; other objects are left out and counted. boxes: see apply_box_policy.
    Optional in the file: info, licenses, iscrowd (0), area (then the box's), width and height, segmentation. Images
    without annotations stay. Repeated annotation ids are numbered anew and counted.

    Raises FileNotFoundError for the file or for missing images (count and first names), AnnotationError for: not JSON, not
    COCO, an image id or file name listed twice, an annotation of an unknown image or category, a bbox that is not four
    numbers, an unknown class name.
    """
    path = Path(annotation_file)
    content = _load(path)
    class_map = _class_map(content["categories"], classes, path)
    images, annotations = content["images"], content["annotations"]

    image_ids = np.array(_column(images, "id", int, path, "images"), np.int64)
    file_names = _column(images, "file_name", str, path, "images")
    for what, values in (("image id", image_ids.tolist()), ("file_name", file_names)):
        repeated = [value for value, count in Counter(values).items() if count > 1]
        if repeated:
            raise AnnotationError(f"{path}: {what} {repeated[0]} is listed twice in 'images' ({len(repeated)} such)")
    if image_folder is not None:
        _require_files(Path(image_folder), file_names, path)
    sizes = np.array([(image.get("height") or 0, image.get("width") or 0) for image in images], np.int32).reshape(-1, 2)

    owners = np.array(_column(annotations, "image_id", int, path, "annotations"), np.int64)
    categories = np.array(_column(annotations, "category_id", int, path, "annotations"), np.int64)
    ids = np.array([annotation.get("id", 0) for annotation in annotations], np.int64)
    _require_known(owners, image_ids, ids, "image_id", path)
    known = [category["id"] for category in content["categories"]]
    _require_known(categories, np.array(known, np.int64), ids, "category_id", path)
    xywh = _boxes(annotations, ids, path)
    areas = np.array([annotation.get("area", np.nan) for annotation in annotations], np.float64)
    areas = np.where(np.isnan(areas), xywh[:, 2] * xywh[:, 3], areas)
    crowd = np.array([bool(annotation.get("iscrowd", 0)) for annotation in annotations], bool)
    del content, annotations

    dropped: Counter[str] = Counter()
    order_of_images = np.argsort(image_ids, kind="stable")
    image_rows = order_of_images[np.searchsorted(image_ids, owners, sorter=order_of_images)]
    label_of = dict.fromkeys(known, 0) | {source_id: k for k, source_id in enumerate(class_map.source_ids, start=1)}
    labels = np.array([label_of[category] for category in categories.tolist()], np.int64)
    xyxy = np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1)
    wanted = labels > 0
    if not wanted.all():
        dropped["object of another class"] = int((~wanted).sum())
    xyxy, usable, reasons = apply_box_policy(
        xyxy, sizes[image_rows], boxes, lambda row: f"{path}: annotation {ids[row]} (image {owners[row]}), bbox {xywh[row].tolist()}"
    )
    dropped.update(reasons)
    if len(np.unique(ids)) < len(ids):
        dropped["annotation id given twice, numbered anew"] = len(ids) - len(np.unique(ids))
        ids = np.arange(1, len(ids) + 1)

    rows = np.flatnonzero(wanted & usable)
    rows = rows[np.argsort(image_rows[rows], kind="stable")]
    folder = str(image_folder) if image_folder is not None else ""
    return Annotations(
        source=str(path),
        class_map=class_map,
        image_ids=image_ids,
        image_files=np.array([os.path.join(folder, name) for name in file_names], dtype=str),
        image_sizes=sizes,
        offsets=np.concatenate(([0], np.cumsum(np.bincount(image_rows[rows], minlength=len(image_ids))))).astype(np.int64),
        boxes=xyxy[rows],
        labels=labels[rows],
        areas=areas[rows].astype(np.float32),
        crowd=crowd[rows],
        difficult=np.zeros(len(rows), bool),
        ids=ids[rows],
        dropped=dict(dropped),
    )


def _load(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file {path}")
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise AnnotationError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        what = "a list: perhaps a results file" if isinstance(content, list) else f"a {type(content).__name__}"
        raise AnnotationError(f"{path} is not COCO annotations: expected an object with images, annotations and categories, found {what}")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list) or not all(isinstance(record, dict) for record in content[key]):
            raise AnnotationError(f"{path} is not COCO annotations: '{key}' must be a list of objects; found the keys {sorted(content)}")
    return content


def _column(records: list[dict], key: str, kind: type, path: Path, table: str) -> list:
    try:
        values = [record[key] for record in records]
    except KeyError:
        index = next(i for i, record in enumerate(records) if key not in record)
        raise AnnotationError(f"{path}: {table}[{index}] has no '{key}'") from None
    for index, value in enumerate(values):
        if not isinstance(value, kind):
            raise AnnotationError(f"{path}: {table}[{index}] has {key} {value!r}, expected {kind.__name__}")
    return values


def _class_map(categories: list[dict], classes: Sequence[str] | None, path: Path) -> ClassMap:
    source_ids = _column(categories, "id", int, path, "categories")
    names = _column(categories, "name", str, path, "categories")
    for what, values in (("id", source_ids), ("name", names)):
        repeated = [value for value, count in Counter(values).items() if count > 1]
        if repeated:
            raise AnnotationError(f"{path}: category {what} {repeated[0]!r} is listed twice")
    pairs = sorted(zip(source_ids, names, strict=True))
    if classes is not None:
        pairs = [(source_ids[names.index(name)], name) for name in known_classes(classes, names, str(path))]
    if not pairs:
        raise AnnotationError(f"{path} has no categories")
    return ClassMap(names=tuple(name for _, name in pairs), source_ids=tuple(source_id for source_id, _ in pairs))


def known_classes(classes: Sequence[str], names: Sequence[str], source: str) -> Sequence[str]:
    """Return `classes`; raises AnnotationError, with the nearest name, when one of them is not among `names`."""
    for name in classes:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it has: {', '.join(names)}"
            raise AnnotationError(f"data.classes: {source} has no class '{name}'; {hint}")
    return classes


def _require_known(values: np.ndarray, known: np.ndarray, ids: np.ndarray, key: str, path: Path) -> None:
    bad = np.flatnonzero(~np.isin(values, known))
    if len(bad):
        raise AnnotationError(
            f"{path}: annotation {ids[bad[0]]} has {key} {values[bad[0]]}, which the file does not list ({len(bad)} such annotations)"
        )


def _boxes(annotations: list[dict], ids: np.ndarray, path: Path) -> np.ndarray:
    if not annotations:
        return np.zeros((0, 4))
    try:
        xywh = np.array([annotation["bbox"] for annotation in annotations], np.float64)
        if xywh.shape == (len(annotations), 4):
            return xywh
    except (KeyError, ValueError, TypeError):
        pass
    for index, annotation in enumerate(annotations):
        box = annotation.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, (int, float)) for value in box):
            raise AnnotationError(f"{path}: annotation {ids[index]} has bbox {box!r}, expected [x, y, width, height]")
    raise AnnotationError(f"{path}: the bboxes cannot be read as numbers")


def _require_files(folder: Path, names: list[str], path: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"image folder {folder} of {path} does not exist or is not a folder")
    present = {
        os.path.relpath(entry, folder)
        for sub in {folder / os.path.dirname(name) for name in names}
        if sub.is_dir()
        for entry in os.scandir(sub)
    }
    missing = [name for name in names if os.path.normpath(name) not in present]
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(names)} images of {path} are not in {folder}: {', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}")

"""COCO JSON -> Annotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detres.class_map import ClassMap
from detres.console import one_line, shown
from detres.detection.annotations import Annotations, offsets_of
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
from detres.detection.data.coco_tables import CocoTables, read_tables
from detres.detection.data.doubts import doubts
from detres.detection.structures import label_of
from detres.images.locate import Outside, locate


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
    tables = read_tables(path, may_lack_truth=may_lack_truth)
    class_map, notes = _class_map(tables, classes, path)
    image_ids, file_names = tables.image_ids, tables.file_names
    _require_once(image_ids.tolist(), "id", file_names, "file_name", path)
    _require_once(file_names, "file_name", image_ids.tolist(), "id", path)
    sizes = _sizes(tables, path)
    image_files = file_names
    if image_folder is not None:
        image_files, found = locate(
            Path(image_folder), file_names, source=str(path), outside=outside
        )
        notes += found

    ids, owners, categories = tables.ids, tables.owners, tables.categories
    _require_known(owners, image_ids, ids, "image_id", path)
    _require_known(categories, tables.category_ids, ids, "category_id", path)
    xywh, areas = tables.xywh, tables.areas
    no_area = tables.area_given & ~(np.isfinite(areas) & (areas >= 0))

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
    xyxy, usable, reasons, said = apply_box_policy(
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
        RENUMBERED: tables.num_renumbered,
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
        crowd=tables.crowd[rows],
        difficult=np.zeros(len(rows), bool),
        ids=ids[rows],
        dropped={reason: count for reason, count in (dropped | reasons).items() if count},
        sides=sides,
        notes=(*notes, *said),
        without_truth=None if len(ids) or not may_lack_truth else f"{path.name} has no annotations",
    )


def _sizes(tables: CocoTables, path: Path) -> np.ndarray:
    """The sizes (N, 2) int32 (h, w) px of the images, 0 where they are not given."""
    for side, values in (("height", tables.heights), ("width", tables.widths)):
        bad = np.flatnonzero((values < 0) | (values > LARGEST_SIDE))
        if len(bad):
            raise AnnotationError(
                f"{path}: images[{bad[0]}] has {side} {values[bad[0]]}, expected px up to "
                f"{LARGEST_SIDE}"
            )
    return np.stack((tables.heights, tables.widths), axis=1).astype(np.int32)


def _labels(categories: np.ndarray, class_map: ClassMap) -> np.ndarray:
    """Labels (M,) int64 1..K of category ids (M,); 0 for a class that is not in the map."""
    source_ids = np.array(class_map.source_ids, np.int64)
    order = np.argsort(source_ids)
    place = np.searchsorted(source_ids, categories, sorter=order)
    indices = order[np.minimum(place, len(order) - 1)]
    return np.where(source_ids[indices] == categories, label_of(indices), 0)


def _class_map(
    tables: CocoTables, classes: Sequence[str] | None, path: Path
) -> tuple[ClassMap, list[str]]:
    """The classes, and what is to be said about them."""
    source_ids = tables.category_ids.tolist()
    names = [one_line(name).strip() for name in tables.category_names]
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
        parents = _unused_parents(tables, names)
        names = tuple(name for name in id_of if name not in parents)
        notes = [
            f"{path}: {', '.join(parents)} is no class: no box has it, and all classes with boxes "
            "name it as supercategory"
        ] * bool(parents)
    return ClassMap(names=names, source_ids=tuple(id_of[name] for name in names)), notes


def _unused_parents(tables: CocoTables, names: list[str]) -> list[str]:
    """The `names` of categories without objects that every category with objects has as
    supercategory.
    """
    used = np.isin(tables.category_ids, tables.categories).tolist()
    parents = {
        parent for parent, is_used in zip(tables.supercategories, used, strict=True) if is_used
    }
    return [
        name for name, is_used in zip(names, used, strict=True) if not is_used and parents == {name}
    ]


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

"""COCO JSON -> its records in columns: read fast by their types, and one by one where a file has
something else, so that it is named.
"""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import msgspec
import numpy as np

from detres.console import shown
from detres.detection.annotations import NoTruthError
from detres.detection.data.box_policy import AnnotationError
from detres.user_files import JsonError, TextError, read_json, require_file
from detres.values import FLAG, INTEGER, NUMBER, flag_of, integer_of, number_of
from detres.waiting import say_reading

_SAFE = 2**53
"""Numbers up to here are as written, also as floats; others are looked at one by one."""

_TOGETHER = 5000
"""Records that are objects at a time: as many again in memory would be more than their columns."""

_CHUNK = 1 << 20
"""Bytes whose encoding is looked at together."""


@dataclass(frozen=True)
class CocoTables:
    """The images, annotations and categories of a COCO file as it gives them: values of the right
    types, which need not go with each other.

    image_ids: (N,) int64. file_names: N. heights, widths: (N,) int64, 0 where not given.
    category_ids: (K,) int64, with K category_names and their supercategories, None where that is no
    text. ids: (M,) int64, each once: `num_renumbered` that were missing or taken by an earlier one
    are new. owners, categories: (M,) int64, the image id and category id of every annotation. xywh:
    (M, 4) float64. areas: (M,) float64, NaN where not given, which area_given (M,) bool tells.
    crowd: (M,) bool. N, K and M may be 0.
    """

    image_ids: np.ndarray
    file_names: list[str]
    heights: np.ndarray
    widths: np.ndarray
    category_ids: np.ndarray
    category_names: list[str]
    supercategories: list[str | None]
    ids: np.ndarray
    num_renumbered: int
    owners: np.ndarray
    categories: np.ndarray
    xywh: np.ndarray
    areas: np.ndarray
    area_given: np.ndarray
    crowd: np.ndarray


def read_tables(path: Path, *, may_lack_truth: bool) -> CocoTables:
    """Return the tables of a COCO file.

    may_lack_truth: whether its annotations may be missing or null, as those of a test set are: then
    there are none. Fields that are not read (segmentation,
    licenses) must be JSON, whatever they hold. Raises
    FileNotFoundError; NoTruthError for annotations that may not be missing; AnnotationError for
    what is not JSON, not COCO, or a value that is not of its type, naming the record.
    """
    say_reading(path)
    require_file(path, "annotation file")
    found = _by_types(path.read_bytes())
    return _one_by_one(path, may_lack_truth) if found is None else found


# ---- by types: files that have what COCO's own have ----


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    height: int | None = None
    width: int | None = None


class _Category(msgspec.Struct, gc=False):
    id: int
    name: str
    supercategory: str | None = None


class _Annotation(msgspec.Struct, gc=False):
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    id: int | None = None
    area: float | None = None
    iscrowd: bool | int | None = None


class _Content(msgspec.Struct):
    images: list[_Image]
    annotations: list[msgspec.Raw]
    categories: list[_Category]


def _by_types(data: bytes) -> CocoTables | None:
    """The tables of a file; None for one that is not UTF-8 or not JSON, lacks something, or has a
    value that COCO's own files could not have.
    """
    try:
        _require_utf8(data)
        content = msgspec.json.decode(data, type=_Content)
        images, categories = content.images, content.categories
        image_ids, heights, widths = (
            _values(images, key, np.int64, missing=0) for key in ("id", "height", "width")
        )
        category_ids = _values(categories, "id", np.int64)
        columns = _annotation_columns(content.annotations)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError, OverflowError):
        return None
    file_names = [image.file_name for image in images]
    category_names = [category.name for category in categories]
    crowd = columns["iscrowd"]
    if not all(map(_is_text, (*file_names, *category_names))) or not np.isin(crowd, (0, 1)).all():
        return None
    ids, num_renumbered = _unique_ids(columns["id"])
    return CocoTables(
        image_ids=image_ids,
        file_names=file_names,
        heights=heights,
        widths=widths,
        category_ids=category_ids,
        category_names=category_names,
        supercategories=[category.supercategory for category in categories],
        ids=ids,
        num_renumbered=num_renumbered,
        owners=columns["image_id"],
        categories=columns["category_id"],
        xywh=columns["bbox"],
        areas=columns["area"],
        area_given=~np.isnan(columns["area"]),  # JSON has no NaN
        crowd=crowd.astype(bool),
    )


_COLUMNS = {  # key -> its type, and what stands for a value that is not given
    "id": (np.int64, -1),
    "image_id": (np.int64, None),
    "category_id": (np.int64, None),
    "area": (np.float64, np.nan),
    "iscrowd": (np.int64, 0),
}


def _annotation_columns(raw: list[msgspec.Raw]) -> dict[str, np.ndarray]:
    """The columns of annotations by their keys, decoded some at a time: as objects all of them
    would be several times as large.
    """
    decoder = msgspec.json.Decoder(list[_Annotation])
    columns = {key: np.empty(len(raw), kind) for key, (kind, _) in _COLUMNS.items()}
    columns["bbox"] = np.empty((len(raw), 4), np.float64)
    for start in range(0, len(raw), _TOGETHER):
        rows = slice(start, start + _TOGETHER)
        some = decoder.decode(b"[" + b",".join(raw[rows]) + b"]")
        for key, (kind, missing) in _COLUMNS.items():
            columns[key][rows] = _values(some, key, kind, missing)
        sides = itertools.chain.from_iterable(annotation.bbox for annotation in some)
        columns["bbox"][rows] = np.fromiter(sides, np.float64).reshape(-1, 4)
    return columns


def _values(
    records: list[msgspec.Struct], key: str, kind: type, missing: float | None = None
) -> np.ndarray:
    """The values of `key`, `missing` where there is none; raises OverflowError for an integer
    beyond 64 bits.
    """
    values = map(attrgetter(key), records)
    return np.fromiter((missing if value is None else value for value in values), kind)


def _require_utf8(data: bytes) -> None:
    """Raise UnicodeDecodeError for what is not UTF-8, which is not looked at in unread fields."""
    if data.isascii():
        return
    decoder, whole = codecs.getincrementaldecoder("utf-8")(), memoryview(data)
    for start in range(0, len(data), _CHUNK):
        decoder.decode(whole[start : start + _CHUNK])
    decoder.decode(b"", final=True)


# ---- one by one: what exporters write, and whatever is wrong ----


def _one_by_one(path: Path, may_lack_truth: bool) -> CocoTables:
    content = _load(path, may_lack_truth)
    images, annotations, categories = (
        content[key] for key in ("images", "annotations", "categories")
    )
    of_annotations = _integers(annotations, "category_id", path, "annotations")
    category_ids = _integers(categories, "id", path, "categories")
    category_names = _strings(categories, "name", path, "categories")
    image_ids = _integers(images, "id", path, "images")
    file_names = _strings(images, "file_name", path, "images")
    heights, widths = (
        _integers(images, side, path, "images", default=0) for side in ("height", "width")
    )
    ids, num_renumbered = _unique_ids(_integers(annotations, "id", path, "annotations", default=-1))
    parents = [category.get("supercategory") for category in categories]
    return CocoTables(
        image_ids=image_ids,
        file_names=file_names,
        heights=heights,
        widths=widths,
        category_ids=category_ids,
        category_names=category_names,
        supercategories=[parent if isinstance(parent, str) else None for parent in parents],
        ids=ids,
        num_renumbered=num_renumbered,
        owners=_integers(annotations, "image_id", path, "annotations"),
        categories=of_annotations,
        xywh=_boxes(annotations, ids, path),
        areas=_numbers(annotations, "area", path, "annotations", default=np.nan),
        area_given=np.array([each.get("area") is not None for each in annotations], bool),
        crowd=_flags(annotations, "iscrowd", path, "annotations"),
    )


def _load(path: Path, may_lack_truth: bool) -> dict:
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
        if not isinstance(value, str) or not _is_text(value):
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


def _is_text(value: str) -> bool:
    return bool(value.strip()) and "\0" not in value

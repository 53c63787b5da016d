"""Detections on disk: COCO results JSON, PASCAL VOC's text file a class, and the text file of each
of ILSVRC's tasks.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import reprlib
import unicodedata
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from detres.detection.annotations import Annotations
from detres.detection.evaluation.localisation import GUESSES
from detres.detection.structures import Predictions, index_of, label_of
from detres.images.decode import IMAGE_SUFFIXES
from detres.user_files import JsonError, TextError, read_json, read_text, require_file
from detres.values import integer_of, number_of

LARGEST = 1e9
"""Px. No coordinate of a box is larger; areas and overlaps of larger ones would not be numbers."""

_TOGETHER = 5000
"""Records that are objects at a time."""

_KEYS = ("image_id", "category_id", "bbox", "score")
_LISTED = 5

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 120


class DetectionFileError(ValueError):
    """A detections file that cannot be evaluated; the message names the file and the record."""


def to_coco_results(predictions: Predictions, *, with_names: bool = False) -> list[dict]:
    """Return COCO results records: image_id, category_id (the data set's own), bbox [x, y, w, h]
    px, score; with_names: and category_name.

    Nothing is rounded, so the file scores exactly as the predictions do. No predictions: an empty
    list.
    """
    class_map = predictions.class_map
    columns = (
        predictions.image_ids,
        index_of(predictions.labels),
        predictions.xywh(),
        predictions.scores.astype(np.float64),
    )
    return [
        {
            "image_id": image_id,
            "category_id": class_map.source_id_of(index),
            **({"category_name": class_map.name_of(index)} if with_names else {}),
            "bbox": box,
            "score": score,
        }
        for image_id, index, box, score in zip(
            *(column.tolist() for column in columns), strict=True
        )
    ]


def read_coco_results(
    path: str | Path, truth: Annotations, *, others: Collection[str] = ()
) -> tuple[Predictions, list[str]]:
    """Read a COCO results file: a list of {image_id, category_id, bbox [x, y, w, h], score}; return
    it and what the user should know of it, a line each.

    Numbers stay float64, as written; ids and numbers are read as detres.values says, so 1.0 and "1"
    are the id 1. Ids must be those of `truth`, or paths of its image files, as predicting on a
    folder writes them: told by as much of the path's end as it takes. Detections of a category that
    `truth` lacks are left out, as pycocotools does. Images without detections need no record; an
    empty list is no predictions. others: ids of images beside those of `truth`, such as another
    split's, whose detections are left out.

    Raises FileNotFoundError, or DetectionFileError naming file and record: not such a list, a
    missing key, a value of the wrong type, NaN or beyond LARGEST, a negative side, an image that
    `truth` does not have or that may be one of several.
    """
    path = Path(path)
    found = _by_types(path) or _one_by_one(path)
    image_ids, notes = _ids_in(truth, found.image_ids, partial(_record, path), others)
    labels, of_categories = _labels_of(found.category_ids, truth)
    rows = [row for row, image_id in enumerate(image_ids) if image_id is not None and labels[row]]
    xywh, scores = found.xywh[rows], found.scores[rows]
    predictions = Predictions(
        class_map=truth.class_map,
        image_ids=np.array([image_ids[row] for row in rows], dtype=truth.image_ids.dtype),
        boxes=np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1),
        scores=scores,
        labels=labels[rows],
        sides=xywh[:, 2:],
    )
    odd = [
        value
        for row, key, value in found.odd
        if key == "category_id" or type(image_ids[row]) is int  # else the path of an image
    ]
    if odd:
        form = "text" if isinstance(odd[0], str) else "decimals"
        notes.append(f"ids written as {form}, such as {odd[0]!r:.40}, are taken as whole numbers")
    return predictions, [*notes, *of_categories, *_of_scores(scores)]


class _Detections(NamedTuple):
    """What D records say: xywh (D, 4) float64 px, scores (D,) float64. odd: record, key and value
    of every id that is an integer written as something else.
    """

    image_ids: list[int | str]
    category_ids: list[int]
    xywh: np.ndarray
    scores: np.ndarray
    odd: list[tuple[int, str, object]]


def _record(path: Path, index: int) -> str:
    """What a message calls a record."""
    return f"{path}: record {index}"


class _Typed(msgspec.Struct, gc=False):
    """A record as COCO's own tools write it."""

    image_id: int | str
    category_id: int
    bbox: tuple[float, float, float, float]
    score: float


def _by_types(path: Path) -> _Detections | None:
    """The records of a file; None unless all of them are such as COCO's own tools write, with
    numbers that can be evaluated.
    """
    require_file(path, "detections file")
    data = path.read_bytes()
    decoder = msgspec.json.Decoder(list[_Typed])
    image_ids, category_ids = [], []
    try:
        data.decode()  # what is not read is not looked at
        raw = msgspec.json.decode(data, type=list[msgspec.Raw])
        xywh, scores = np.empty((len(raw), 4)), np.empty(len(raw))
        for start in range(0, len(raw), _TOGETHER):
            rows = slice(start, start + _TOGETHER)
            some = decoder.decode(b"[" + b",".join(raw[rows]) + b"]")
            image_ids += [one.image_id for one in some]
            category_ids += [one.category_id for one in some]
            sides = itertools.chain.from_iterable(one.bbox for one in some)
            xywh[rows] = np.fromiter(sides, np.float64).reshape(-1, 4)
            scores[rows] = np.fromiter((one.score for one in some), np.float64)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return None
    usable = (np.abs(xywh) <= LARGEST).all() and (xywh[:, 2:] >= 0).all()
    ids = itertools.chain(set(image_ids), set(category_ids))
    if not usable or any(type(one) is int and integer_of(one) is None for one in ids):
        return None
    odd = [
        (row, "image_id", value)
        for row, value in enumerate(image_ids)
        if type(value) is str and integer_of(value) is not None
    ]
    return _Detections(image_ids, category_ids, xywh, scores, odd)


def _one_by_one(path: Path) -> _Detections:
    """The records of a file, whatever it is; raises DetectionFileError."""
    records = _load_records(path)
    found = [_read_record(record, _record(path, index)) for index, record in enumerate(records)]
    return _Detections(
        [one.image_id for one in found],
        [one.category_id for one in found],
        np.array([one.box for one in found], np.float64).reshape(-1, 4),
        np.array([one.score for one in found], np.float64),
        [
            (row, key, record[key])
            for row, record in enumerate(records)
            for key in ("image_id", "category_id")
            if type(record[key]) is not int and integer_of(record[key]) is not None
        ],
    )


class _Record(NamedTuple):
    """What a record says: box is (x, y, w, h) px."""

    image_id: int | str
    category_id: int
    box: list[float]
    score: float


def _load_records(path: Path) -> list[object]:
    try:
        records = read_json(path, "detections file")
    except (TextError, JsonError) as error:
        raise DetectionFileError(str(error)) from None
    if not isinstance(records, list):
        annotations = isinstance(records, dict) and "annotations" in records
        hint = " (it looks like annotations)" if annotations else ""
        raise DetectionFileError(
            f"{path}: expected a list of detections, found {type(records).__name__}{hint}"
        )
    return records


def _read_record(record: object, where: str) -> _Record:
    if not isinstance(record, dict) or any(key not in record for key in _KEYS):
        found = _short.repr(sorted(record)) if isinstance(record, dict) else type(record).__name__
        raise DetectionFileError(f"{where} needs the keys {', '.join(_KEYS)}, found {found}")
    box, score = record["bbox"], number_of(record["score"])
    sides = [number_of(value) for value in box] if type(box) is list else []
    if not (
        len(sides) == 4
        and None not in sides
        and all(-LARGEST <= side <= LARGEST for side in sides)
        and min(sides[2:]) >= 0
        and score is not None
        and math.isfinite(score)
    ):
        raise DetectionFileError(
            f"{where} has bbox {_short.repr(box)} and score {_short.repr(record['score'])}, "
            "expected numbers [x, y, w, h] with w, h >= 0, none beyond "
            f"{LARGEST:g}, and a finite score"
        )
    image_id, category_id = record["image_id"], integer_of(record["category_id"])
    if type(image_id) is not str:
        image_id = integer_of(image_id)
    if image_id is None or category_id is None:
        raise DetectionFileError(
            f"{where} has image_id {_short.repr(record['image_id'])} and category_id "
            f"{_short.repr(record['category_id'])}, expected an integer or text, and an integer"
        )
    return _Record(image_id, category_id, sides, score)


def _labels_of(categories: list[int], truth: Annotations) -> tuple[np.ndarray, list[str]]:
    """Labels (D,) int64 1..K of category ids, 0 for those that `truth` lacks, and a line on
    these.
    """
    class_map = truth.class_map
    label_of_id = {source_id: label_of(i) for i, source_id in enumerate(class_map.source_ids)}
    labels = np.array([label_of_id.get(category, 0) for category in categories], np.int64)
    unknown = list(dict.fromkeys(c for c in categories if c not in label_of_id))
    if not unknown:
        return labels, []
    ids = ", ".join(map(_short.repr, unknown[:_LISTED])) + (", ..." * (len(unknown) > _LISTED))
    own = [f"{i}={n}" for i, n in zip(class_map.source_ids, class_map.names, strict=True)]
    return labels, [
        f"{(labels == 0).sum()} of {len(labels)} detections are of a category_id that "
        f"{truth.source} lacks ({ids}): left out, as pycocotools does; it has "
        f"{', '.join(own[:_LISTED])}" + (", ..." * (len(own) > _LISTED))
    ]


def _of_scores(scores: np.ndarray) -> list[str]:
    """A line on scores (D,) that are no probabilities."""
    if len(scores) == 0 or (scores.min() >= 0 and scores.max() <= 1):
        return []
    return [
        f"scores are from {scores.min():g} to {scores.max():g}, not within 0..1: only their order "
        "counts"
    ]


def read_voc_results(
    folder: str | Path, truth: Annotations, *, others: Collection[str] = ()
) -> tuple[Predictions, list[str], str]:
    """Read a folder of VOC results, comp3_det_SPLIT_CLASS.txt or comp4_...; return it, what the
    user should know of it, a line each, and SPLIT.

    A line is: image-id score xmin ymin xmax ymax, 1-based inclusive pixels; xmin and ymin lose 1;
    numbers stay float64. A class without a file has no detections; a file of a class that `truth`
    lacks is left out, and so are detections in `others`, ids of images beside those of `truth`.
    Raises FileNotFoundError for no such folder or files, TextError for one in an unknown encoding,
    DetectionFileError for files of more than one competition or split, when no file is of a class
    of `truth`, and, naming file and line, for a line of another form, xmax < xmin, a number beyond
    LARGEST or an unknown image.
    """
    folder = Path(folder)
    files = {
        path: match
        for path in sorted(folder.glob("*.txt"))
        if (match := re.fullmatch(r"(comp[0-9]+)_det_(.+)\.txt", path.name))
    }
    if not files:
        raise FileNotFoundError(f"no VOC results comp4_det_SPLIT_CLASS.txt in {folder}")
    runs, by_class, foreign = set(), {}, []
    for path, match in files.items():
        fitting = [name for name in truth.class_map.names if match[2].endswith(f"_{name}")]
        if not fitting:
            foreign.append(path)
            continue
        name = max(fitting, key=len)  # of table and dining_table, the latter
        runs.add((match[1], match[2].removesuffix(f"_{name}")))
        by_class[name] = path
    if not by_class:
        raise DetectionFileError(
            f"{foreign[0]}: its class is none of {truth.source}: {', '.join(truth.class_map.names)}"
        )
    if len(runs) > 1:
        found = ", ".join("_det_".join(run) for run in sorted(runs))
        raise DetectionFileError(
            f"{folder} holds several results, {found}: choose one and give a folder with its files "
            "only"
        )
    ids, tables, labels, notes = [], [], [], []
    for name, path in by_class.items():
        image_ids, table, of_file = _read_voc_file(path, truth, others)
        ids += image_ids
        tables.append(table)
        labels += [label_of(truth.class_map.index_of_name(name))] * len(image_ids)
        notes += [f"{path.name}: {note}" for note in of_file]
    table = np.concatenate(tables)
    predictions = Predictions(
        class_map=truth.class_map,
        image_ids=np.array(ids, dtype=truth.image_ids.dtype),
        boxes=table[:, 1:] - np.array((1, 1, 0, 0)),
        scores=table[:, 0],
        labels=np.array(labels, np.int64),
    )
    ((_, split),) = runs
    absent = [name for name in truth.class_map.names if name not in by_class]
    if absent:
        notes.append(f"no results file for {', '.join(absent)}: taken as no detections")
    if foreign:
        notes.append(
            f"left out, of classes that {truth.source} lacks: "
            f"{', '.join(path.name for path in foreign)}"
        )
    return predictions, [*notes, *_of_scores(predictions.scores)], split


def _read_voc_file(
    path: Path, truth: Annotations, others: Collection[str]
) -> tuple[list, np.ndarray, list[str]]:
    """Image ids, (D, 5) float64 (score, xmin, ymin, xmax, ymax) as written, and lines on the
    ids.
    """
    try:
        lines = read_text(path, "detections file").splitlines()
    except TextError as error:
        raise DetectionFileError(str(error)) from None
    numbers = [number for number, line in enumerate(lines, start=1) if line.strip()]
    rows = [
        lines[number - 1].rsplit(maxsplit=5) for number in numbers
    ]  # an image id may hold spaces
    table = np.array([_numbers_of(row) for row in rows], np.float64).reshape(len(rows), 5)
    # A box a rounding narrower than a pixel may be written with xmax below xmin, by less than 1.5.
    usable = np.isfinite(table).all(axis=1) & (table[:, 3:] - table[:, 1:3] > -1.5).all(axis=1)
    usable &= (np.abs(table[:, 1:]) <= LARGEST).all(axis=1)
    if not usable.all():
        row = int(np.flatnonzero(~usable)[0])
        raise DetectionFileError(
            f"{path}:{numbers[row]}: expected 'image-id score xmin ymin xmax ymax' with xmax >= "
            f"xmin and ymax >= ymin, got {_short.repr(lines[numbers[row] - 1].strip())}"
        )
    image_ids = [row[0] for row in rows]
    found, notes = _ids_in(truth, image_ids, lambda index: f"{path}:{numbers[index]}", others)
    kept = [row for row, image_id in enumerate(found) if image_id is not None]
    return [found[row] for row in kept], table[kept], notes


def _numbers_of(fields: list[str]) -> list[float]:
    """The five numbers of a line, NaN when it has another form."""
    values = [number_of(field) for field in fields[1:]]
    return values if len(values) == 5 and None not in values else [np.nan] * 5


def to_voc_results(
    predictions: Predictions, *, split: str, competition: str = "comp4"
) -> dict[str, str]:
    """Return file name -> text of VOC results, one file a class, also for classes without
    detections.

    Pixels are 1-based inclusive again: x1 and y1 gain 1. Boxes have 3 decimals, as the official
    MATLAB code; scores as many digits as tell them apart (there 6 decimals, which make one of many
    that are near 1, and AP depends on their order).
    """
    files = {}
    for index, name in enumerate(predictions.class_map.names):
        rows = np.flatnonzero(predictions.labels == label_of(index))
        rows = rows[np.argsort(-predictions.scores[rows], kind="stable")]
        boxes = predictions.boxes[rows] + np.array((1, 1, 0, 0))
        lines = [
            f"{predictions.image_ids[row]} {_decimals(predictions.scores[row])} "
            + " ".join(f"{value:.3f}" for value in box)
            for row, box in zip(rows, boxes, strict=True)
        ]
        files[f"{competition}_det_{split}_{name}.txt"] = "".join(f"{line}\n" for line in lines)
    return files


def to_det_results(predictions: Predictions, numbers: Mapping[str, int]) -> str:
    """Return the text of ILSVRC's results in detection: a line a detection, NUMBER CLASS SCORE xmin
    ymin xmax ymax, in the order given; no detections: an empty text.

    numbers: image id -> its number. CLASS is the class's source id. Pixels are inclusive and count
    from 0, so that x2 and y2 lose 1; digits as to_voc_results has them (devkit of 2015, readme
    2.4).
    """
    columns = (
        [numbers[image_id] for image_id in predictions.image_ids.tolist()],
        _class_numbers(predictions),
        map(_decimals, predictions.scores),
        _inclusive(predictions.boxes),
    )
    return "".join(
        f"{number} {label} {score} {box}\n"
        for number, label, score, box in zip(*columns, strict=True)
    )


def to_loc_results(predictions: Predictions, image_ids: Collection[str]) -> str:
    """Return the text of ILSVRC's results in classification and localisation: a line an image, in
    the order of their file names, of its up to five best guesses: CLASS xmin ymin xmax ymax ...

    image_ids: of all images, each with a guess at least; CLASS and pixels as in to_det_results
    (devkit of 2015, readme 3.3). Raises ValueError for an image without a guess.
    """
    classes, boxes = _class_numbers(predictions), _inclusive(predictions.boxes)
    lines = {image_id: [] for image_id in image_ids}
    for row in np.argsort(-predictions.scores, kind="stable"):
        lines[str(predictions.image_ids[row])].append(f"{classes[row]} {boxes[row]}")
    without = [image_id for image_id, guesses in lines.items() if not guesses]
    if without:
        raise ValueError(f"image {without[0]} has no guess ({len(without)} such)")
    in_order = sorted(lines, key="{}.JPEG".format)
    return "".join(" ".join(lines[image_id][:GUESSES]) + "\n" for image_id in in_order)


def _class_numbers(predictions: Predictions) -> list[int]:
    """The source id (D,) of the class of every detection."""
    source_ids = np.array(predictions.class_map.source_ids, np.int64)
    return source_ids[index_of(predictions.labels)].tolist()


def _inclusive(boxes: np.ndarray) -> list[str]:
    """Boxes (D, 4) xyxy px as ILSVRC writes them."""
    written = boxes.astype(np.float64) - np.array((0, 0, 1, 1))
    rounded = written.round(3) + 0.0  # no -0
    return [" ".join(f"{value:.3f}" for value in box) for box in rounded]


def _decimals(score: np.floating) -> str:
    """The shortest decimal fraction, of 6 digits or more, that is read as `score` again."""
    return np.format_float_positional(score, unique=True, min_digits=6)


def _ids_in(
    truth: Annotations,
    given: list[int | str],
    where: Callable[[int], str],
    others: Collection[str],
) -> tuple[list[int | str | None], list[str]]:
    """Return ids of images of `truth` for ids, integers also as text, or paths of image files, None
    for those of `others`, and lines on both.

    where: says of which record, by its index, a message is. Raises DetectionFileError for an image
    that `truth` does not have, a path that may be one of several of its images, and two paths that
    would be one image.
    """
    known = set(truth.image_ids.tolist())
    if np.issubdtype(truth.image_ids.dtype, np.integer):
        as_integer = {one: integer_of(one) for one in set(given)}
        given = [one if as_integer[one] not in known else as_integer[one] for one in given]
    paths = [one for one in dict.fromkeys(given) if isinstance(one, str) and one not in known]
    id_of_path = _ids_of_paths(paths, truth, lambda path: where(given.index(path)))
    left_out = {
        path
        for path in paths
        if path not in id_of_path and (path in others or _split_path(path)[1] in others)
    }
    ids = [None if one in left_out else id_of_path.get(one, one) for one in given]
    unknown = [
        index
        for index, image_id in enumerate(ids)
        if image_id is not None and image_id not in known
    ]
    if unknown:
        raise DetectionFileError(
            f"{where(unknown[0])}: image {_short.repr(given[unknown[0]])} is not in {truth.source} "
            f"({len(unknown)} of {len(ids)} detections); its images are like "
            f"{truth.image_ids.tolist()[:3]}"
        )
    by_path = sum(one in id_of_path for one in given)
    notes = []
    if by_path:
        notes.append(f"the images of {by_path} detections are told by the ends of their paths")
    if left_out:
        notes.append(
            f"{ids.count(None)} of {len(ids)} detections are left out: their {len(left_out)} "
            f"images are not among those of {truth.source}"
        )
    return ids, notes


def _ids_of_paths(
    paths: list[str], truth: Annotations, where: Callable[[str], str]
) -> dict[str, int | str]:
    """The ids of images of `truth` by paths of their files; paths that fit none are left out."""
    if not paths:
        return {}
    by_stem: dict[str, list[tuple[list[str], str, int | str]]] = {}
    for file, image_id in zip(truth.image_files.tolist(), truth.image_ids.tolist(), strict=True):
        folders, stem, suffix = _split_path(file)
        by_stem.setdefault(stem, []).append((folders, suffix, image_id))
    id_of_path, path_of_id = {}, {}
    for path in paths:
        folders, stem, suffix = _split_path(path)
        shared = {
            image_id: (_num_shared(folders, others), len(others))
            for others, other, image_id in by_stem.get(stem, [])
            if suffix == other or not other
        }
        whole = {image_id: num for image_id, (num, length) in shared.items() if num == length}
        ends = whole or {image_id: num for image_id, (num, _) in shared.items()}
        fitting = [image_id for image_id, num in ends.items() if num == max(ends.values())]
        if len(fitting) > 1:
            raise DetectionFileError(
                f"{where(path)}: {_short.repr(path)} may be any of the images "
                f"{', '.join(map(str, fitting[:_LISTED]))} of {truth.source}, whose file names "
                "repeat; give image ids, or as much of each path as tells them apart"
            )
        for image_id in fitting:
            other = path_of_id.setdefault(image_id, path)
            if _split_path(other) != _split_path(path):
                raise DetectionFileError(
                    f"{where(path)}: {_short.repr(path)} and {_short.repr(other)} would both be "
                    f"image {image_id} of {truth.source}: file names repeat; give the detections "
                    "of its own images only"
                )
            id_of_path[path] = image_id
    return id_of_path


def _split_path(path: str) -> tuple[list[str], str, str]:
    """Folders, name without an image's suffix, and that suffix; of paths of any system, in one
    Unicode form.
    """
    parts = re.split(r"[\\/]", unicodedata.normalize("NFC", path))
    stem, suffix = os.path.splitext(parts[-1])
    if suffix.lower() not in IMAGE_SUFFIXES:
        stem, suffix = parts[-1], ""
    return [part for part in parts[:-1] if part not in ("", ".")], stem, suffix


def _num_shared(folders: list[str], others: list[str]) -> int:
    """How many folders, from the last, two paths share."""
    num = 0
    for one, other in zip(reversed(folders), reversed(others), strict=False):
        if one != other:
            break
        num += 1
    return num

"""Detections on disk: COCO results JSON, and PASCAL VOC's text file a class."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from detres.detection.annotations import Annotations
from detres.detection.structures import Predictions, index_of, label_of

_KEYS = ("image_id", "category_id", "bbox", "score")


class DetectionFileError(ValueError):
    """A detections file that cannot be evaluated; the message names the file and the record."""


def to_coco_results(predictions: Predictions) -> list[dict]:
    """Return COCO results records: image_id, category_id (the data set's own), bbox [x, y, w, h]
    px, score.

    Nothing is rounded, so the file scores exactly as the predictions do. No predictions: an empty
    list.
    """
    xywh = predictions.boxes.astype(np.float64)
    xywh[:, 2:] -= xywh[:, :2]
    source_id_of = predictions.class_map.source_id_of
    columns = (
        predictions.image_ids,
        index_of(predictions.labels),
        xywh,
        predictions.scores.astype(np.float64),
    )
    return [
        {"image_id": image_id, "category_id": source_id_of(index), "bbox": box, "score": score}
        for image_id, index, box, score in zip(
            *(column.tolist() for column in columns), strict=True
        )
    ]


def read_coco_results(path: str | Path, truth: Annotations) -> tuple[Predictions, int]:
    """Read a COCO results file: a list of {image_id, category_id, bbox [x, y, w, h], score}; return
    it and how many were told by file name.

    Numbers stay float64, as written. Ids must be those of `truth`, or paths of its image files, as
    predicting on a folder writes them; images without detections need no record; an empty list is
    no predictions. Raises FileNotFoundError, or DetectionFileError naming file and record: not such
    a list, a missing key, a value of the wrong type, NaN, a negative side, an image or category
    that `truth` does not have.
    """
    path = Path(path)
    records = _load_records(path)
    xywh = np.array([record["bbox"] for record in records], np.float64).reshape(-1, 4)
    scores = np.array([record["score"] for record in records], np.float64)
    finite = np.isfinite(xywh).all(axis=1) & np.isfinite(scores)
    bad = np.flatnonzero(~finite | (xywh[:, 2:] < 0).any(axis=1))
    if len(bad):
        record = records[bad[0]]
        raise DetectionFileError(
            f"{path}: record {bad[0]} has bbox {record['bbox']} and score {record['score']}, "
            f"expected finite [x, y, w, h] with w, h >= 0 and a finite score ({len(bad)} such)"
        )
    given = [record["image_id"] for record in records]
    image_ids = _ids_of_files(given, truth)
    _require_images(image_ids, truth, lambda index: f"{path}: record {index}")
    predictions = Predictions(
        class_map=truth.class_map,
        image_ids=np.array(image_ids, dtype=truth.image_ids.dtype),
        boxes=np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1),
        scores=scores,
        labels=_labels_of(records, truth, path),
    )
    return predictions, sum(one != other for one, other in zip(given, image_ids, strict=True))


def _load_records(path: Path) -> list[dict]:
    try:
        records = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"no detections file {path}") from None
    except (ValueError, RecursionError) as error:
        raise DetectionFileError(f"{path} is not JSON: {error}") from None
    if not isinstance(records, list):
        annotations = isinstance(records, dict) and "annotations" in records
        hint = " (it looks like annotations)" if annotations else ""
        raise DetectionFileError(
            f"{path}: expected a list of detections, found {type(records).__name__}{hint}"
        )
    for index, record in enumerate(records):
        _require_record(record, f"{path}: record {index}")
    return records


def _labels_of(records: list[dict], truth: Annotations, path: Path) -> np.ndarray:
    """Labels (D,) int64 1..K of the records' category ids."""
    ids = truth.class_map.source_ids
    label_of_id = {source_id: label_of(index) for index, source_id in enumerate(ids)}
    labels = [label_of_id.get(record["category_id"]) for record in records]
    if None in labels:
        index = labels.index(None)
        names = zip(ids, truth.class_map.names, strict=True)
        raise DetectionFileError(
            f"{path}: record {index} has category_id {records[index]['category_id']!r} "
            f"({labels.count(None)} of {len(labels)} detections have an unknown one); "
            f"{truth.source} has {', '.join(f'{i}={name}' for i, name in names)}"
        )
    return np.array(labels, np.int64)


def _require_record(record: object, where: str) -> None:
    if not isinstance(record, dict) or any(key not in record for key in _KEYS):
        found = sorted(record) if isinstance(record, dict) else type(record).__name__
        raise DetectionFileError(f"{where} needs the keys {', '.join(_KEYS)}, found {found}")
    box = record["bbox"]
    if (
        type(box) is not list
        or len(box) != 4
        or not all(type(value) in (float, int) for value in (*box, record["score"]))
    ):
        raise DetectionFileError(
            f"{where} has bbox {box!r} and score {record['score']!r}, expected [x, y, w, h] and a "
            "number"
        )
    if type(record["image_id"]) not in (int, str) or type(record["category_id"]) is not int:
        raise DetectionFileError(
            f"{where} has image_id {record['image_id']!r} and category_id "
            f"{record['category_id']!r}, expected an integer or text, and an integer"
        )


def read_voc_results(folder: str | Path, truth: Annotations) -> tuple[Predictions, list[str], str]:
    """Read a folder of VOC results, comp3_det_SPLIT_CLASS.txt or comp4_...; return it, the classes
    that have no file, and SPLIT.

    A line is: image-id score xmin ymin xmax ymax, 1-based inclusive pixels; xmin and ymin lose 1;
    numbers stay float64. Raises FileNotFoundError for no such folder or files, DetectionFileError
    for files of more than one competition or split, for a class unknown to `truth`, and, naming
    file and line, for a line of another form, xmax < xmin or an unknown image.
    """
    folder = Path(folder)
    files = {
        path: match
        for path in sorted(folder.glob("*.txt"))
        if (match := re.fullmatch(r"(comp[0-9]+)_det_(.+)\.txt", path.name))
    }
    if not files:
        raise FileNotFoundError(f"no VOC results comp4_det_SPLIT_CLASS.txt in {folder}")
    runs, by_class = set(), {}
    for path, match in files.items():
        fitting = [name for name in truth.class_map.names if match[2].endswith(f"_{name}")]
        if not fitting:
            raise DetectionFileError(
                f"{path}: its class is none of {truth.source}: {', '.join(truth.class_map.names)}"
            )
        name = max(fitting, key=len)  # of table and dining_table, the latter
        runs.add((match[1], match[2].removesuffix(f"_{name}")))
        by_class[name] = path
    if len(runs) > 1:
        found = ", ".join("_det_".join(run) for run in sorted(runs))
        raise DetectionFileError(
            f"{folder} holds several results, {found}: choose one and give a folder with its files "
            "only"
        )
    ids, tables, labels = [], [], []
    for name, path in by_class.items():
        image_ids, table = _read_voc_file(path, truth)
        ids += image_ids
        tables.append(table)
        labels += [label_of(truth.class_map.index_of_name(name))] * len(image_ids)
    table = np.concatenate(tables)
    predictions = Predictions(
        class_map=truth.class_map,
        image_ids=np.array(ids, dtype=truth.image_ids.dtype),
        boxes=table[:, 1:] - np.array((1, 1, 0, 0)),
        scores=table[:, 0],
        labels=np.array(labels, np.int64),
    )
    ((_, split),) = runs
    return predictions, [name for name in truth.class_map.names if name not in by_class], split


def _read_voc_file(path: Path, truth: Annotations) -> tuple[list, np.ndarray]:
    """Image ids and (D, 5) float64 (score, xmin, ymin, xmax, ymax) as written."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    numbers = [number for number, line in enumerate(lines, start=1) if line.strip()]
    rows = [
        lines[number - 1].rsplit(maxsplit=5) for number in numbers
    ]  # an image id may hold spaces
    try:
        table = np.array([row[1:] for row in rows], np.float64).reshape(len(rows), 5)
    except ValueError:
        table = np.array([_numbers_of(row) for row in rows], np.float64)
    # A box a rounding narrower than a pixel may be written with xmax below xmin, by less than 1.5.
    usable = np.isfinite(table).all(axis=1) & (table[:, 3:] - table[:, 1:3] > -1.5).all(axis=1)
    if not usable.all():
        row = int(np.flatnonzero(~usable)[0])
        raise DetectionFileError(
            f"{path}:{numbers[row]}: expected 'image-id score xmin ymin xmax ymax' with xmax >= "
            f"xmin and ymax >= ymin, got '{lines[numbers[row] - 1].strip()}'"
        )
    image_ids: list = [row[0] for row in rows]
    if np.issubdtype(truth.image_ids.dtype, np.integer):
        image_ids = [int(image_id) if image_id.isdecimal() else image_id for image_id in image_ids]
    _require_images(image_ids, truth, lambda index: f"{path}:{numbers[index]}")
    return image_ids, table


def _numbers_of(fields: list[str]) -> list[float]:
    """The five numbers of a line, NaN when it has another form."""
    try:
        values = [float(field) for field in fields[1:]]
    except ValueError:
        values = []
    return values if len(values) == 5 else [np.nan] * 5


def to_voc_results(
    predictions: Predictions, *, split: str, competition: str = "comp4"
) -> dict[str, str]:
    """Return file name -> text of VOC results, one file a class, also for classes without
    detections.

    Pixels are 1-based inclusive again: x1 and y1 gain 1. Scores have 6 decimals, boxes 3, as the
    official MATLAB code.
    """
    files = {}
    for index, name in enumerate(predictions.class_map.names):
        rows = np.flatnonzero(predictions.labels == label_of(index))
        rows = rows[np.argsort(-predictions.scores[rows], kind="stable")]
        boxes = predictions.boxes[rows] + np.array((1, 1, 0, 0))
        lines = [
            f"{predictions.image_ids[row]} {predictions.scores[row]:.6f} "
            + " ".join(f"{value:.3f}" for value in box)
            for row, box in zip(rows, boxes, strict=True)
        ]
        files[f"{competition}_det_{split}_{name}.txt"] = "".join(f"{line}\n" for line in lines)
    return files


def _ids_of_files(image_ids: list[int | str], truth: Annotations) -> list[int | str]:
    """Replace paths by the ids of the images whose files have that name, where names are unique."""
    known = set(truth.image_ids.tolist())
    if all(image_id in known for image_id in image_ids):
        return image_ids
    names = [Path(file).name for file in truth.image_files.tolist()]
    by_name = (
        dict(zip(names, truth.image_ids.tolist(), strict=True))
        if len(set(names)) == len(names)
        else {}
    )
    return [
        by_name.get(Path(image_id).name, image_id)
        if isinstance(image_id, str) and image_id not in known
        else image_id
        for image_id in image_ids
    ]


def _require_images(image_ids: list, truth: Annotations, where: Callable[[int], str]) -> None:
    known = set(truth.image_ids.tolist())
    unknown = [index for index, image_id in enumerate(image_ids) if image_id not in known]
    if unknown:
        raise DetectionFileError(
            f"{where(unknown[0])}: image {image_ids[unknown[0]]!r} is not in {truth.source} "
            f"({len(unknown)} of {len(image_ids)} detections); its images are like "
            f"{truth.image_ids.tolist()[:3]}"
        )

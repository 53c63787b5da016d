"""Detections on disk: COCO results JSON, and PASCAL VOC's text file a class."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from detres.structures import Annotations, Predictions

_KEYS = ("image_id", "category_id", "bbox", "score")


class DetectionFileError(ValueError):
    """A detections file that cannot be scored; the message names the file and the record."""


def to_coco_results(predictions: Predictions) -> list[dict]:
    """Return COCO results records: image_id, category_id (the data set's own), bbox [x, y, w, h] px, score."""
    xywh = predictions.boxes.astype(np.float64)
    xywh[:, 2:] -= xywh[:, :2]
    source_ids = [0, *predictions.class_map.source_ids]
    columns = (predictions.image_ids.tolist(), predictions.labels.tolist(), xywh.round(3).tolist(), predictions.scores.tolist())
    return [
        {"image_id": image_id, "category_id": source_ids[label], "bbox": box, "score": round(score, 6)}
        for image_id, label, box, score in zip(*columns, strict=True)
    ]


def read_coco_results(path: str | Path, truth: Annotations) -> Predictions:
    """Read a COCO results file: a list of {image_id, category_id, bbox [x, y, w, h], score}.

    Ids must be those of `truth`; images without detections need no record; an empty list is no predictions. Raises
    FileNotFoundError, or DetectionFileError naming file and record: not such a list, a missing key, a value of the wrong
    type, NaN, an image or category that `truth` does not have.
    """
    path = Path(path)
    try:
        records = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileNotFoundError(f"no detections file {path}") from None
    except ValueError as error:
        raise DetectionFileError(f"{path} is not JSON: {error}") from None
    if not isinstance(records, list):
        hint = " (it looks like annotations)" if isinstance(records, dict) and "annotations" in records else ""
        raise DetectionFileError(f"{path}: expected a list of detections, found {type(records).__name__}{hint}")
    for index, record in enumerate(records):
        if not isinstance(record, dict) or any(key not in record for key in _KEYS):
            found = sorted(record) if isinstance(record, dict) else type(record).__name__
            raise DetectionFileError(f"{path}: record {index} needs the keys {', '.join(_KEYS)}, found {found}")
        box = record["bbox"]
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, (int, float)) for value in [*box, record["score"]]):
            raise DetectionFileError(f"{path}: record {index} has bbox {box!r} and score {record['score']!r}, expected [x, y, w, h] and a number")
    xywh = np.array([record["bbox"] for record in records], np.float64).reshape(-1, 4)
    scores = np.array([record["score"] for record in records], np.float64)
    bad = np.flatnonzero(~np.isfinite(xywh).all(axis=1) | ~np.isfinite(scores))
    if len(bad):
        raise DetectionFileError(f"{path}: record {bad[0]} has a bbox or score that is not finite ({len(bad)} such)")
    image_ids = [record["image_id"] for record in records]
    _require_images(image_ids, truth, lambda index: f"{path}: record {index}")
    label_of = {source_id: label for label, source_id in enumerate(truth.class_map.source_ids, start=1)}
    labels = [label_of.get(record["category_id"]) for record in records]
    if None in labels:
        index = labels.index(None)
        raise DetectionFileError(
            f"{path}: record {index} has category_id {records[index]['category_id']!r}, {truth.source} has {list(truth.class_map.source_ids)}"
        )
    return Predictions(
        class_map=truth.class_map,
        image_ids=np.asarray(image_ids, dtype=truth.image_ids.dtype),
        boxes=np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1),
        scores=scores,
        labels=np.asarray(labels, np.int64),
    )


def read_voc_results(folder: str | Path, truth: Annotations) -> tuple[Predictions, list[str]]:
    """Read a folder of VOC results, comp3_det_SPLIT_CLASS.txt or comp4_..., and return it with the classes that have no file.

    A line is: image-id score xmin ymin xmax ymax, 1-based inclusive pixels; xmin and ymin lose 1. Raises FileNotFoundError
    for no such folder or files, DetectionFileError for files of more than one competition or split, for a class unknown to
    `truth`, and, naming file and line, for a line of another form or an unknown image.
    """
    folder = Path(folder)
    files = {path: match for path in sorted(folder.glob("*.txt")) if (match := re.fullmatch(r"(comp[0-9]+)_det_(.+)\.txt", path.name))}
    if not files:
        raise FileNotFoundError(f"no VOC results comp4_det_SPLIT_CLASS.txt in {folder}")
    runs, by_class = set(), {}
    for path, match in files.items():
        name = next((name for name in truth.class_map.names if match[2].endswith(f"_{name}")), None)
        if name is None:
            raise DetectionFileError(f"{path}: its class is none of {truth.source}: {', '.join(truth.class_map.names)}")
        runs.add((match[1], match[2].removesuffix(f"_{name}")))
        by_class[name] = path
    if len(runs) > 1:
        raise DetectionFileError(f"{folder} holds several results, {', '.join('_det_'.join(run) for run in sorted(runs))}: keep one a folder")
    image_ids, rows, labels = [], [], []
    for name, path in by_class.items():
        lines = path.read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            fields = line.split()
            if not fields:
                continue
            try:
                image_id, (score, *box) = fields[0], map(float, fields[1:])
            except ValueError:
                score, box = None, []
            if len(box) != 4 or not np.isfinite([score, *box]).all():
                raise DetectionFileError(f"{path}:{number}: expected 'image-id score xmin ymin xmax ymax', got '{line}'")
            image_ids.append(image_id)
            rows.append((score, *box))
            labels.append(truth.class_map.label_of_name(name))
    if np.issubdtype(truth.image_ids.dtype, np.integer):
        image_ids = [int(image_id) if image_id.isdigit() else image_id for image_id in image_ids]
    _require_images(image_ids, truth, lambda index: f"{by_class[truth.class_map.name_of(labels[index])]}")
    table = np.array(rows, np.float64).reshape(-1, 5)
    predictions = Predictions(
        class_map=truth.class_map,
        image_ids=np.asarray(image_ids, dtype=truth.image_ids.dtype),
        boxes=table[:, 1:] - np.array((1, 1, 0, 0)),
        scores=table[:, 0],
        labels=np.asarray(labels, np.int64),
    )
    return predictions, [name for name in truth.class_map.names if name not in by_class]


def to_voc_results(predictions: Predictions, *, split: str, competition: str = "comp4") -> dict[str, str]:
    """Return file name -> text of VOC results, one file a class, also for classes without detections.

    Pixels are 1-based inclusive again: x1 and y1 gain 1. Scores have 6 decimals, boxes 3, as the official MATLAB code.
    """
    files = {}
    for label, name in enumerate(predictions.class_map.names, start=1):
        rows = np.flatnonzero(predictions.labels == label)
        rows = rows[np.argsort(-predictions.scores[rows], kind="stable")]
        boxes = predictions.boxes[rows] + np.array((1, 1, 0, 0))
        lines = [
            f"{predictions.image_ids[row]} {predictions.scores[row]:.6f} " + " ".join(f"{value:.3f}" for value in box)
            for row, box in zip(rows, boxes, strict=True)
        ]
        files[f"{competition}_det_{split}_{name}.txt"] = "".join(f"{line}\n" for line in lines)
    return files


def _require_images(image_ids: list, truth: Annotations, where) -> None:
    known = set(truth.image_ids.tolist())
    index = next((index for index, image_id in enumerate(image_ids) if image_id not in known), None)
    if index is not None:
        unknown = sum(image_id not in known for image_id in image_ids)
        raise DetectionFileError(
            f"{where(index)}: image {image_ids[index]!r} is not in {truth.source} ({unknown} of {len(image_ids)} detections); "
            f"its images are like {truth.image_ids.tolist()[:3]}"
        )

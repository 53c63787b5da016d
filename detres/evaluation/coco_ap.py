"""The COCO protocol: pycocotools does the counting, from arrays in memory."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detres.structures import Annotations, Predictions

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")

_LINE = " {title:<18} {kind} @[ IoU={iou:<9} | area={area:>6} | maxDets={dets:>3} ] = {value}"
_LINES = (
    ("AP", "0.50:0.95", "all", 100),
    ("AP50", "0.50", "all", 100),
    ("AP75", "0.75", "all", 100),
    ("APs", "0.50:0.95", "small", 100),
    ("APm", "0.50:0.95", "medium", 100),
    ("APl", "0.50:0.95", "large", 100),
    ("AR1", "0.50:0.95", "all", 1),
    ("AR10", "0.50:0.95", "all", 10),
    ("AR100", "0.50:0.95", "all", 100),
    ("ARs", "0.50:0.95", "small", 100),
    ("ARm", "0.50:0.95", "medium", 100),
    ("ARl", "0.50:0.95", "large", 100),
)


@dataclass(frozen=True)
class CocoResult:
    """COCO's twelve numbers, and AP per class, as fractions; None where there is no ground truth to measure.

    protocol says how they were made; it belongs beside every number.
    """

    metrics: dict[str, float | None]
    per_class: dict[str, float | None]
    protocol: str

    def table(self) -> str:
        """Return the twelve lines that COCO's own tool prints, the protocol above them."""
        lines = [self.protocol]
        for name, iou, area, dets in _LINES:
            value = self.metrics[name]
            title, kind = ("Average Precision", "(AP)") if name.startswith("AP") else ("Average Recall", "(AR)")
            shown = "n/a (no ground truth of this size)" if value is None else f"{value:.3f}"
            lines.append(_LINE.format(title=title, kind=kind, iou=iou, area=area, dets=dets, value=shown))
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """Return the twelve metrics, per_class and protocol as plain values for JSON."""
        return {**self.metrics, "per_class": self.per_class, "protocol": self.protocol}


def evaluate_coco(truth: Annotations, predictions: Predictions) -> CocoResult:
    """Return COCO's numbers of `predictions` for the images and classes of `truth`.

    Crowd objects are ignored by COCO's own rule. COCO knows no "difficult": such objects are treated as crowds are, neither
    missed nor, when found, wrong. No predictions: 0. No ground truth: None. Raises ClassMismatchError when the class lists
    differ, ValueError when an image id is not in `truth`.
    """
    truth.class_map.require_same(predictions.class_map, truth.source, "predictions")
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(_ground_truth(truth), _detections(truth, predictions), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"]  # (IoU thresholds, recall points, K, areas, max detections)
    per_class = {name: _mean(precision[:, :, k, 0, -1]) for k, name in enumerate(truth.class_map.names)}
    values = [None if value == -1 else float(value) for value in evaluation.stats]
    return CocoResult(
        metrics=dict(zip(METRICS, values, strict=True)),
        per_class=per_class,
        protocol=f"COCO bbox, IoU .50:.05:.95, 101 recall points, maxDets 1/10/100, pycocotools {version('pycocotools')}",
    )


def _mean(values: np.ndarray) -> float | None:
    measured = values[values > -1]
    return float(measured.mean()) if len(measured) else None


def _ground_truth(truth: Annotations) -> COCO:
    """pycocotools' index over in-memory records; images are numbered 1.. so that string ids work too."""
    counts = np.diff(truth.offsets)
    owners = np.repeat(np.arange(1, len(truth) + 1), counts)
    wh = truth.boxes[:, 2:].astype(np.float64) - truth.boxes[:, :2]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(1, len(truth) + 1)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(truth.class_map.names, start=1)],
        "annotations": [
            {
                "id": number,
                "image_id": int(owners[row]),
                "category_id": int(truth.labels[row]),
                "bbox": [*truth.boxes[row, :2].astype(np.float64), *wh[row]],
                "area": float(truth.areas[row]),
                "iscrowd": int(truth.crowd[row] or truth.difficult[row]),
            }
            for number, row in enumerate(range(truth.num_objects), start=1)
        ],
    }
    coco.createIndex()
    return coco


def _detections(truth: Annotations, predictions: Predictions) -> COCO:
    number_of = {image_id: number for number, image_id in enumerate(truth.image_ids.tolist(), start=1)}
    owners = [number_of.get(image_id) for image_id in predictions.image_ids.tolist()]
    if None in owners:
        raise ValueError(f"predictions for image {predictions.image_ids[owners.index(None)]}, which {truth.source} does not have")
    boxes = predictions.boxes.astype(np.float64)
    wh = boxes[:, 2:] - boxes[:, :2]
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(1, len(truth) + 1)],
        "categories": [{"id": k} for k in range(1, len(truth.class_map) + 1)],
        "annotations": [
            {
                "id": row + 1,
                "image_id": owners[row],
                "category_id": int(predictions.labels[row]),
                "bbox": [*boxes[row, :2], *wh[row]],
                "area": float(wh[row, 0] * wh[row, 1]),
                "iscrowd": 0,
                "score": float(predictions.scores[row]),
            }
            for row in range(len(predictions))
        ],
    }
    coco.createIndex()
    return coco

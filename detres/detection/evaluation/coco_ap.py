"""The COCO protocol: pycocotools does the counting, from arrays in memory."""

from __future__ import annotations

import contextlib
import io
import itertools
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detres.detection.annotations import Annotations
from detres.detection.evaluation.matches import NONE, Matches
from detres.detection.structures import Predictions, label_of

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")

IOU_THRESH = 0.5
"""Of AP50."""

RECALL_POINTS = np.linspace(0, 1, 101)

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


_COLUMNS = 4


@dataclass(frozen=True)
class CocoResult:
    """COCO's twelve numbers, AP and AP50 of each class, as fractions; None where there is no ground
    truth to measure.

    protocol says how they were made; it belongs beside every number. matches: what was found at
    AP50's IoU, of which AP50 of each class is counted.
    """

    metrics: dict[str, float | None]
    per_class: dict[str, float | None]
    per_class_ap50: dict[str, float | None]
    protocol: str
    matches: Matches

    best_metric = "AP"
    """Of `metrics`, the one that decides which weights are the best."""

    def average_precision(self, recall: np.ndarray, precision: np.ndarray) -> float:
        """Return the AP of a curve as this protocol takes it; see `average_precision`."""
        return average_precision(recall, precision)

    def table(self) -> str:
        """Return the protocol, the twelve lines that COCO's own tool prints, and AP / AP50 of each
        class.
        """
        lines = [self.protocol]
        for name, iou, area, dets in _LINES:
            value = self.metrics[name]
            title, kind = (
                ("Average Precision", "(AP)")
                if name.startswith("AP")
                else ("Average Recall", "(AR)")
            )
            shown = "n/a (no ground truth of this size)" if value is None else f"{value:.3f}"
            lines.append(
                _LINE.format(title=title, kind=kind, iou=iou, area=area, dets=dets, value=shown)
            )
        width = max(map(len, self.per_class))
        cells = [
            f"{name:<{width}} {_shown(ap)} / {_shown(self.per_class_ap50[name])}"
            for name, ap in self.per_class.items()
        ]
        rows = [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)]
        return "\n".join(
            [
                *lines,
                " AP / AP50 of each class (n/a: no ground truth)",
                *("   " + "   ".join(row) for row in rows),
            ]
        )

    def to_dict(self) -> dict:
        """Return the twelve metrics, per_class and protocol as plain values for JSON."""
        return {**self.metrics, "per_class": self.per_class, "protocol": self.protocol}


def _shown(value: float | None) -> str:
    return "  n/a" if value is None else f"{value:.3f}"


def evaluate_coco(truth: Annotations, predictions: Predictions) -> CocoResult:
    """Return COCO's numbers of `predictions` for the images and classes of `truth`, equal to
    pycocotools on the same files.

    Ties in score are broken as there: by image id, then by the order given. Crowd objects are
    ignored by COCO's own rule. COCO knows no "difficult": such objects are treated as crowds are
    (iscrowd is its one way to ignore), neither missed nor, when found, wrong. The one exception to
    equality: pycocotools takes an object with the annotation id 0 for no match, and so counts the
    detection that finds it as wrong; here ids are numbered from 1. (Ids that repeat, of which it
    reads the last object only, are no valid COCO.) No predictions: 0. No ground truth: None. Raises
    ClassMismatchError when the class lists differ, ValueError when an image id is not in `truth` or
    a box or score is not finite.
    """
    owners = truth.rows_of(predictions)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluation = COCOeval(_ground_truth(truth), _detections(truth, predictions, owners), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval[
        "precision"
    ]  # (IoU thresholds, recall points, K, areas, max detections)
    names = truth.class_map.names
    values = [None if value == -1 else float(value) for value in evaluation.stats]
    return CocoResult(
        metrics=dict(zip(METRICS, values, strict=True)),
        per_class={name: _mean(precision[:, :, k, 0, -1]) for k, name in enumerate(names)},
        per_class_ap50={name: _mean(precision[0, :, k, 0, -1]) for k, name in enumerate(names)},
        protocol="COCO bbox, IoU .50:.05:.95, 101 recall points, maxDets 1/10/100, pycocotools "
        f"{version('pycocotools')}",
        matches=_matches(truth, predictions, owners, evaluation),
    )


def average_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    """Return AP of a curve, recall (D,) and precision (D,) in falling score: the mean over COCO's
    101 recalls of the highest precision from there on; an empty curve gives 0.
    """
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(recall, RECALL_POINTS, side="left")  # (101,)
    return float(np.append(envelope, 0.0)[first].mean())


def _matches(
    truth: Annotations, predictions: Predictions, owners: np.ndarray, evaluation: COCOeval
) -> Matches:
    """What pycocotools matched at AP50's IoU, objects of all areas; ids are rows + 1 there."""
    objects = np.full(len(predictions), NONE)
    counted = np.zeros(len(predictions), bool)  # beyond the 100 best of an image and class: not
    ignored = truth.crowd | truth.difficult
    num_images, num_areas = len(truth), len(evaluation.params.areaRng)
    # of each class its areas, the first of which is all of them, of each the images
    of_all = [
        found
        for number, found in enumerate(evaluation.evalImgs)
        if found is not None and number // num_images % num_areas == 0
    ]
    if of_all:
        rows, gt_rows = (
            np.array([*itertools.chain.from_iterable(of[key] for of in of_all)], np.int64) - 1
            for key in ("dtIds", "gtIds")
        )
        counted[rows] = ~np.concatenate([of["dtIgnore"][0] for of in of_all]).astype(bool)
        found_by = np.concatenate([of["dtMatches"][0] for of in of_all]).astype(np.int64) - 1
        objects[rows] = np.where(counted[rows], found_by, NONE)
        ignored[gt_rows] = np.concatenate([of["gtIgnore"] for of in of_all]).astype(bool)
    by_image = _image_numbers(truth)[owners]
    order = np.lexsort((np.arange(len(predictions)), by_image, -predictions.scores))
    return Matches(order, objects, counted, ignored, np.full(len(ignored), IOU_THRESH))


def _mean(values: np.ndarray) -> float | None:
    measured = values[values > -1]
    return float(measured.mean()) if len(measured) else None


def _image_numbers(truth: Annotations) -> np.ndarray:
    """1..N in the order of the image ids: pycocotools wants integers, and breaks ties by them."""
    numbers = np.empty(len(truth), np.int64)
    numbers[np.argsort(truth.image_ids, kind="stable")] = np.arange(1, len(truth) + 1)
    return numbers


def _index(truth: Annotations, records: list[dict]) -> COCO:
    """pycocotools' index over records in memory."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(1, len(truth) + 1)],
        "categories": [
            {"id": label_of(index), "name": name}
            for index, name in enumerate(truth.class_map.names)
        ],
        "annotations": records,
    }
    coco.createIndex()
    return coco


def _ground_truth(truth: Annotations) -> COCO:
    owners = np.repeat(_image_numbers(truth), np.diff(truth.offsets))
    columns = (
        owners,
        truth.labels,
        truth.xywh(),
        truth.areas,
        truth.crowd | truth.difficult,
    )
    records = [
        {
            "id": number,
            "image_id": image,
            "category_id": label,
            "bbox": box,
            "area": area,
            "iscrowd": int(ignored),
        }
        for number, (image, label, box, area, ignored) in enumerate(
            zip(*(c.tolist() for c in columns), strict=True), start=1
        )
    ]
    return _index(truth, records)


def _detections(truth: Annotations, predictions: Predictions, owners: np.ndarray) -> COCO:
    columns = (
        _image_numbers(truth)[owners],
        predictions.labels,
        predictions.xywh(),
        predictions.scores,
    )
    records = [
        {
            "id": number,
            "image_id": image,
            "category_id": label,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            "score": score,
        }
        for number, (image, label, box, score) in enumerate(
            zip(*(c.tolist() for c in columns), strict=True), start=1
        )
    ]
    return _index(truth, records)

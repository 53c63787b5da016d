"""The COCO protocol: pycocotools or hotcoco does the counting, from arrays in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detres.detection.annotations import Annotations
from detres.detection.choices import CocoBackend
from detres.detection.evaluation.coco_backends import CocoProblem, count_coco
from detres.detection.evaluation.matches import NONE, Matches
from detres.detection.structures import Predictions

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


def evaluate_coco(
    truth: Annotations, predictions: Predictions, *, backend: CocoBackend = "auto"
) -> CocoResult:
    """Return COCO's numbers of `predictions` for the images and classes of `truth`, equal to
    pycocotools on the same files.

    backend: who counts, "auto" being pycocotools; the numbers are the same to the last bit. Ties in
    score are broken as there: by image id, then by the order given. Crowd objects are ignored by
    COCO's own rule. COCO knows no "difficult": such objects are treated as crowds are (iscrowd is
    its one way to ignore), neither missed nor, when found, wrong. The one exception to equality:
    pycocotools takes an object with the annotation id 0 for no match, and so counts the detection
    that finds it as wrong; here ids are numbered from 1. (Ids that repeat, of which it reads the
    last object only, are no valid COCO.) No predictions: 0. No ground truth: None. Raises
    ClassMismatchError when the class lists differ, ValueError when an image id is not in `truth` or
    a box or score is not finite, BackendError for a backend that is not installed.
    """
    problem = CocoProblem(truth, predictions, truth.rows_of(predictions))
    counts = count_coco(problem, backend)
    precision = counts.precision
    names = truth.class_map.names
    values = [None if value == -1 else value for value in counts.stats()]
    return CocoResult(
        metrics=dict(zip(METRICS, values, strict=True)),
        per_class={name: _mean(precision[:, :, k, 0, -1]) for k, name in enumerate(names)},
        per_class_ap50={name: _mean(precision[0, :, k, 0, -1]) for k, name in enumerate(names)},
        protocol=f"COCO bbox, IoU .50:.05:.95, 101 recall points, maxDets 1/10/100, {counts.by}",
        matches=_matches(problem),
    )


def average_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    """Return AP of a curve, recall (D,) and precision (D,) in falling score: the mean over COCO's
    101 recalls of the highest precision from there on; an empty curve gives 0.
    """
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(recall, RECALL_POINTS, side="left")  # (101,)
    return float(np.append(envelope, 0.0)[first].mean())


def _matches(problem: CocoProblem) -> Matches:
    """What was matched at AP50's IoU, objects of all areas."""
    found = problem.matches(first_only=True)
    objects = np.full(len(problem.found), NONE)
    counted = np.zeros(len(problem.found), bool)  # beyond the 100 best of an image and class: not
    counted[found.rows] = ~found.ignored[0, 0]
    objects[found.rows] = np.where(counted[found.rows], found.objects[0, 0], NONE)
    order = np.lexsort((problem.found.images, -problem.scores))  # stable: then as given
    ignored = found.objects_ignored[0]
    return Matches(order, objects, counted, ignored, np.full(len(ignored), IOU_THRESH))


def _mean(values: np.ndarray) -> float | None:
    measured = values[values > -1]
    return float(measured.mean()) if len(measured) else None

"""The PASCAL VOC protocol: average precision at one IoU threshold, 11-point (2007) or area (2010
onwards).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from detres.boxes import paired_iou
from detres.detection.annotations import Annotations
from detres.detection.evaluation.matches import (
    NONE,
    Matches,
    match_by_class,
    pairs_of,
    recall_and_precision,
)
from detres.detection.structures import Predictions

VocMetric = Literal["voc07", "voc12"]

RECALL_POINTS = np.arange(0.0, 1.1, 0.1)
"""Of the 11-point AP, in the arithmetic of published numbers (py-faster-rcnn, detectron2,
ChainerCV, GluonCV and mmdetection have the same values): the fourth, seventh and eighth of them are
0.30000000000000004, 0.6000000000000001 and 0.7000000000000001, which a recall of exactly 3/10, 3/5
or 7/10 does not reach.
"""


@dataclass(frozen=True)
class VocResult:
    """mAP and AP per class as fractions; None for a class without ground truth, which mAP leaves
    out.

    curves: class name -> (recall (D,), precision (D,)) over its counted detections in falling
    score. matches: what they are counted from. metric: how AP is taken from a curve.
    """

    metrics: dict[str, float | None]
    per_class: dict[str, float | None]
    protocol: str
    curves: dict[str, tuple[np.ndarray, np.ndarray]]
    matches: Matches
    metric: VocMetric

    best_metric = "mAP"
    """Of `metrics`, the one that decides which weights are the best."""

    def average_precision(self, recall: np.ndarray, precision: np.ndarray) -> float:
        """Return the AP of a curve as this protocol takes it; see `average_precision`."""
        return average_precision(recall, precision, self.metric)

    def table(self) -> str:
        """Return the protocol, AP per class and mAP, one a line."""
        width = max(len(name) for name in [*self.per_class, "mAP"])
        rows = [*self.per_class.items(), ("mAP", self.metrics["mAP"])]
        return "\n".join(
            [self.protocol]
            + [
                f" {name:<{width}}  {'n/a (no ground truth)' if ap is None else f'{ap:.4f}'}"
                for name, ap in rows
            ]
        )

    def to_dict(self) -> dict:
        """Return mAP, per_class and protocol as plain values for JSON."""
        return {**self.metrics, "per_class": self.per_class, "protocol": self.protocol}


def evaluate_voc(
    truth: Annotations,
    predictions: Predictions,
    *,
    metric: VocMetric,
    iou_thresh: float = 0.5,
    legacy_plus_one: bool = True,
) -> VocResult:
    """Return VOC's numbers of `predictions` for the images and classes of `truth`, by the rules of
    the official devkit, its 11 points in numpy's arithmetic (RECALL_POINTS).

    Per class, detections in falling score (ties in the order given): each looks at the one
    ground-truth box of its image it overlaps most. Below `iou_thresh` (the devkit: >=): wrong. A
    difficult (or crowd) box: not counted. A box found before: wrong, there is no second choice.
    Recall counts boxes that are not difficult. py-faster-rcnn's port differs in one thing: it wants
    an IoU above `iou_thresh`.

    legacy_plus_one: sides are max - min + 1 on the devkit's inclusive 1-based coordinates. Boxes
    read from VOC files are continuous here (xmin - 1 .. xmax), on which a plain x2 - x1 is the
    devkit's xmax - xmin + 1 exactly, so the default needs nothing added. False takes the inclusive
    coordinates as if they were continuous, as tools without the +1 do, which makes each box a pixel
    smaller.

    Raises ValueError for an unknown metric, a threshold outside (0, 1], a prediction that is not
    finite or for an image not in `truth`; ClassMismatchError when the class lists differ. No
    predictions: AP 0. No ground truth: None.
    """
    if metric not in ("voc07", "voc12"):
        raise ValueError(
            f"unknown VOC metric '{metric}', expected voc07 (11-point) or voc12 (area)"
        )
    if not 0 < iou_thresh <= 1:
        raise ValueError(f"IoU threshold {iou_thresh} is outside (0, 1]")
    shrink = np.array((0, 0, 0, 0) if legacy_plus_one else (0, 0, 1, 1))
    match = partial(match_voc, iou_thresh=iou_thresh)
    threshs = np.full(truth.num_objects, iou_thresh)
    matches = match_by_class(truth, predictions, match, threshs, shrink=shrink)
    curves, per_class = curves_of(truth, predictions, matches, metric)
    points = "2007, 11-point (np.arange)" if metric == "voc07" else "2010-2012, area"
    widths = "devkit widths (+1 on inclusive pixels)" if legacy_plus_one else "no +1"
    return VocResult(
        metrics={"mAP": mean_ap(per_class)},
        per_class=per_class,
        protocol=f"PASCAL VOC {points} AP, IoU >= {iou_thresh:g}, difficult ignored, {widths}",
        curves=curves,
        matches=matches,
        metric=metric,
    )


def curves_of(
    truth: Annotations, predictions: Predictions, matches: Matches, metric: VocMetric
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], dict[str, float | None]]:
    """Return by class name the curve, (recall (D,), precision (D,)) in falling score, and its AP,
    None without an object that counts.
    """
    curves, per_class = {}, {}
    names, found = truth.class_map.names, matches.found
    positives = np.bincount(truth.class_indices[~matches.ignored], minlength=len(names))
    by_class = matches.by_class(predictions)
    for name, num_positive, rows in zip(names, positives.tolist(), by_class, strict=True):
        recall, precision = curves[name] = recall_and_precision(found[rows], num_positive)
        per_class[name] = average_precision(recall, precision, metric) if num_positive else None
    return curves, per_class


def mean_ap(per_class: dict[str, float | None]) -> float | None:
    """Return the mean of the classes' AP, those without ground truth (None) left out; None when
    none is left.
    """
    measured = [ap for ap in per_class.values() if ap is not None]
    return float(np.mean(measured)) if measured else None


def match_voc(
    gt_boxes: np.ndarray,
    gt_owners: np.ndarray,
    ignored: np.ndarray,
    boxes: np.ndarray,
    owners: np.ndarray,
    iou_thresh: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Return for the detections of one class, given in falling score, the object (D,) int64 0..M-1
    that each found, NONE where it found none, and counted (D,) bool.

    gt_boxes (M, 4), gt_owners (M,) image of each, ignored (M,) bool; boxes (D, 4), owners (D,). A
    detection that is counted and found none is wrong.
    """
    objects, counted = np.full(len(boxes), NONE), np.ones(len(boxes), bool)
    detection, candidate = pairs_of(gt_owners, owners)
    if len(detection) == 0:
        return objects, counted
    iou = paired_iou(boxes[detection], gt_boxes[candidate])  # (P,)
    tried, starts, num_candidates = np.unique(detection, return_index=True, return_counts=True)
    highest = np.maximum.reduceat(iou, starts)
    is_best = np.flatnonzero(iou == np.repeat(highest, num_candidates))
    best = candidate[
        is_best[np.unique(detection[is_best], return_index=True)[1]]
    ]  # of equals, the first
    over, best = tried[highest >= iou_thresh], best[highest >= iou_thresh]
    counted[over[ignored[best]]] = False
    # There is no second choice, so a box is claimed by the first detection that overlaps it most.
    claimed, claimant = np.unique(best, return_index=True)
    first = ~ignored[claimed]
    objects[over[claimant[first]]] = claimed[first]
    return objects, counted


def average_precision(recall: np.ndarray, precision: np.ndarray, metric: VocMetric) -> float:
    """Return AP of a curve, recall (D,) and precision (D,) in falling score: "voc07" mean of 11
    points, "voc12" area under the envelope.

    An empty curve gives 0. The 11 points are RECALL_POINTS.
    """
    if len(recall) == 0:
        return 0.0
    if metric == "voc07":
        return float(np.mean([precision[recall >= t].max(initial=0.0) for t in RECALL_POINTS]))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())

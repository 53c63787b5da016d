"""What an evaluation is seen by: precision over recall, the score from which each class is best
taken, and which classes are taken for which. Plain data; figures.py draws it.

K classes, D detections, M objects, N images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detres.boxes import paired_iou
from detres.detection.annotations import Annotations
from detres.detection.choices import DRAWN_SCORE
from detres.detection.evaluation.coco_ap import CocoResult
from detres.detection.evaluation.matches import (
    NONE,
    Matches,
    owners_of,
    pairs_of,
    recall_and_precision,
)
from detres.detection.evaluation.voc_ap import VocResult
from detres.detection.structures import Predictions, index_of

BACKGROUND = "background"
"""What the last row and column of a confusion matrix are called."""


@dataclass(frozen=True)
class Curve:
    """Precision over recall of one class, and the score from which it is best taken.

    recall, precision, scores: (P,) float64, rising recall, one for each detection that is right.
    Between two of them recall is the same and precision lower, so the area under all the points is
    the area under these. num_objects: to be found. num_detections: that count. ap: the protocol's,
    None without an object. score_threshold: of the scores of the detections the one for which F1,
    of those from it on, is best (of several the highest); DRAWN_SCORE where F1 is 0 for each.
    best_f1, precision_at_best, recall_at_best: there; None without an object.
    """

    recall: np.ndarray
    precision: np.ndarray
    scores: np.ndarray
    num_objects: int
    num_detections: int
    ap: float | None
    score_threshold: float
    best_f1: float | None
    precision_at_best: float | None
    recall_at_best: float | None


@dataclass(frozen=True)
class MeanCurve:
    """The mean over the classes with objects of their highest precision from each recall on.

    recall, precision: (P,) float64, at every recall that one of the classes reaches; a class that
    does not reach it counts 0 there. The area under it is the mean of the classes' AP, the
    protocol's mAP at this IoU: `ap`, None without an object.
    """

    recall: np.ndarray
    precision: np.ndarray
    ap: float | None


def class_curves(
    truth: Annotations, predictions: Predictions, result: CocoResult | VocResult
) -> dict[str, Curve]:
    """Return the curve of each class by name, as `result`, which is of these predictions, matched
    them.

    Its area by the protocol's rule is the protocol's AP: of COCO that at IoU 0.5. No detections:
    curves of no points.
    """
    names, matches = truth.class_map.names, result.matches
    positives = np.bincount(truth.class_indices[~matches.ignored], minlength=len(names))
    by_class = matches.by_class(predictions)
    return {
        name: _class_curve(predictions, result, rows, num_objects)
        for name, rows, num_objects in zip(names, by_class, positives.tolist(), strict=True)
    }


def _class_curve(
    predictions: Predictions,
    result: CocoResult | VocResult,
    rows: np.ndarray,
    num_objects: int,
) -> Curve:
    found = result.matches.objects[rows] != NONE
    scores = predictions.scores[rows].astype(np.float64)
    recall, precision = recall_and_precision(found, num_objects)
    place = _best_place(found, scores, num_objects)
    nothing = None if num_objects == 0 else 0.0
    return Curve(
        recall=recall[found],
        precision=precision[found],
        scores=scores[found],
        num_objects=num_objects,
        num_detections=len(rows),
        ap=result.average_precision(recall, precision) if num_objects else None,
        score_threshold=DRAWN_SCORE if place is None else float(scores[place]),
        best_f1=nothing if place is None else float(_f1(found, num_objects)[place]),
        precision_at_best=nothing if place is None else float(precision[place]),
        recall_at_best=nothing if place is None else float(recall[place]),
    )


def _f1(found: np.ndarray, num_objects: int) -> np.ndarray:
    """F1 (D,) of the detections up to each, in falling score: 2 right / (detections + objects)."""
    return 2 * np.cumsum(found) / (np.arange(1, len(found) + 1) + num_objects)


def _best_place(found: np.ndarray, scores: np.ndarray, num_objects: int) -> int | None:
    """The last detection that is taken where F1 is best; None where nothing is right."""
    if num_objects == 0 or not found.any():
        return None
    f1 = _f1(found, num_objects)
    within = np.append(scores[1:] == scores[:-1], False)  # a threshold takes all of a score
    f1[within] = -1
    return int(np.argmax(f1))


def mean_curve(curves: dict[str, Curve]) -> MeanCurve:
    """Return the mean of the classes' curves; without an object, one of no points."""
    measured = [curve for curve in curves.values() if curve.num_objects]
    if not measured:
        return MeanCurve(np.zeros(0), np.zeros(0), None)
    recall = np.unique(np.concatenate([curve.recall for curve in measured]))
    precision = np.zeros(len(recall))
    for curve in measured:
        envelope = np.maximum.accumulate(curve.precision[::-1])[::-1]
        first = np.searchsorted(curve.recall, recall, side="left")
        precision += np.append(envelope, 0.0)[first]
    ap = float(np.mean([curve.ap for curve in measured]))
    return MeanCurve(recall, precision / len(measured), ap)


def score_thresholds(curves: dict[str, Curve]) -> dict[str, float]:
    """Return class name -> the score from which it is best taken."""
    return {name: curve.score_threshold for name, curve in curves.items()}


@dataclass(frozen=True)
class Outcome:
    """What became of the detections from their class's score threshold on, and of the objects.

    right, wrong: (D,) bool; a detection that is neither is below its threshold, or, where it is
    `taken`, not counted. found, missed: (M,) bool; an object that is neither is ignored.
    """

    taken: np.ndarray
    right: np.ndarray
    wrong: np.ndarray
    found: np.ndarray
    missed: np.ndarray


def outcome_of(predictions: Predictions, matches: Matches, thresholds: np.ndarray) -> Outcome:
    """Return what became of detections and objects; thresholds (K,) float64, a class each."""
    taken = predictions.scores >= thresholds[index_of(predictions.labels)]
    right = taken & matches.counted & matches.found
    found = np.zeros(len(matches.ignored), bool)
    found[matches.objects[right]] = True
    wrong = taken & matches.counted & ~matches.found
    return Outcome(taken, right, wrong, found, ~found & ~matches.ignored)


@dataclass(frozen=True)
class Confusion:
    """Which classes were taken for which.

    counts: (K + 1, K + 1) int64; a row is what an object is, a column what it was taken for, both
    in the order of `names` with background last: counts[k, K] objects of class k were missed,
    counts[K, k] detections of class k are on no object of their own. thresholds: (K,) float64, the
    score from which detections of each class are looked at.
    """

    names: tuple[str, ...]
    counts: np.ndarray
    thresholds: np.ndarray


def confusion_of(
    truth: Annotations, predictions: Predictions, matches: Matches, thresholds: np.ndarray
) -> Confusion:
    """Return the confusion matrix of the detections from their class's score threshold on.

    The rule: first, every class by itself as the protocol matches it (`matches`, IoU 0.5 unless
    told otherwise), so that the diagonal holds the detections that its precision counts as right.
    Then, in falling score, each detection that found none takes, of the objects of other classes in
    its image that are still not found, the one it overlaps most, if by the object's IoU threshold;
    of equals the first. What is left is taken for background or found on background: also a second
    detection of an object. Ignored objects (crowd, difficult) are in no cell, and detections that
    the protocol does not count for them neither; to a detection of another class they are
    background. So a row sums to the objects of its class to be found, a column to its class's
    detections that count. thresholds: (K,) float64. No detections: all missed; no objects: all on
    background.
    """
    size = len(truth.class_map) + 1
    outcome = outcome_of(predictions, matches, thresholds)
    background = size - 1
    became = np.full(truth.num_objects, background)  # (M,) the class each object was taken for
    became[outcome.found] = truth.class_indices[outcome.found]
    detections, objects = _confused(truth, predictions, matches, outcome)
    became[objects] = index_of(predictions.labels[detections])
    stray = outcome.wrong.copy()
    stray[detections] = False
    named = ~matches.ignored
    rows = np.concatenate(
        (truth.class_indices[named], np.full(int(stray.sum()), background, np.int64))
    )
    columns = np.concatenate((became[named], index_of(predictions.labels[stray])))
    counts = np.bincount(rows * size + columns, minlength=size * size).reshape(size, size)
    return Confusion((*truth.class_map.names, BACKGROUND), counts, thresholds)


def _confused(
    truth: Annotations, predictions: Predictions, matches: Matches, outcome: Outcome
) -> tuple[np.ndarray, np.ndarray]:
    """The detections and the objects of another class that they took, both (C,) int64."""
    rows = matches.order[outcome.wrong[matches.order]]
    missed = np.flatnonzero(outcome.missed)
    detection, candidate = pairs_of(owners_of(truth)[missed], truth.rows_of(predictions)[rows])
    detections, objects = rows[detection], missed[candidate]
    iou = paired_iou(predictions.boxes[detections].astype(np.float64), truth.boxes[objects])
    over = (predictions.labels[detections] != truth.labels[objects]) & (iou > 0)
    over &= iou >= matches.iou_threshs[objects]
    detection, objects, iou = detection[over], objects[over], iou[over]
    # of each detection, in falling score: falling overlap, then as annotated
    order = np.lexsort((objects, -iou, detection))
    taken_by = np.full(truth.num_objects, NONE)
    done = np.zeros(len(rows), bool)
    for place, thing in zip(detection[order].tolist(), objects[order].tolist(), strict=True):
        if not done[place] and taken_by[thing] == NONE:
            taken_by[thing], done[place] = rows[place], True
    objects = np.flatnonzero(taken_by != NONE)
    return taken_by[objects], objects

"""The ImageNet DET protocol: average precision by area, where a small object asks for less overlap
(ILSVRC devkit, eval_detection.m).
"""

from __future__ import annotations

import numpy as np

from detres.boxes import paired_iou
from detres.detection.annotations import Annotations
from detres.detection.evaluation.matches import NONE, match_by_class, pairs_of
from detres.detection.evaluation.voc_ap import VocResult, curves_of, mean_ap
from detres.detection.structures import Predictions

LARGEST_THRESH = 0.5
TOLERANCE = 10
"""Px by which a box may be wider and higher than a small object."""


def evaluate_imagenet_det(truth: Annotations, predictions: Predictions) -> VocResult:
    """Return ImageNet DET's numbers of `predictions` for the images and classes of `truth`, by the
    rules of the devkit.

    Per class, detections in falling score (ties in the order given): each takes, of the objects of
    its image that are still free and that it overlaps by at least `thresholds` asks for, the one it
    overlaps most; without one it is wrong. Unlike VOC, an object that is taken leaves its second
    best to the next detection. Objects flagged crowd or difficult, which the DET annotations do not
    have, are not to be found: a detection that finds only such a one is not counted. Widths are
    continuous: the devkit's xmax - xmin + 1.

    The devkit's list of (image, class) pairs that are not evaluated is not read. Raises ValueError
    for a prediction that is not finite or for an image not in `truth`; ClassMismatchError when the
    class lists differ. No predictions: AP 0. No ground truth: None.
    """
    threshs = thresholds(truth.boxes)
    matches = match_by_class(truth, predictions, match_imagenet_det, threshs)
    curves, per_class = curves_of(truth, predictions, matches, "voc12")
    return VocResult(
        metrics={"mAP": mean_ap(per_class)},
        per_class=per_class,
        protocol="ImageNet DET AP (area), IoU >= min(0.5, wh / ((w + 10)(h + 10))) of each object",
        curves=curves,
        matches=matches,
        metric="voc12",
    )


def thresholds(gt_boxes: np.ndarray) -> np.ndarray:
    """Return (M,) the IoU from which a detection finds each of gt_boxes (M, 4) xyxy px: 0.5, less
    for sides below about 24 px; 0 for a box without area.
    """
    sides = (gt_boxes[:, 2:] - gt_boxes[:, :2]).clip(min=0)
    return np.minimum(LARGEST_THRESH, (sides / (sides + TOLERANCE)).prod(axis=1))


def match_imagenet_det(
    gt_boxes: np.ndarray,
    gt_owners: np.ndarray,
    ignored: np.ndarray,
    boxes: np.ndarray,
    owners: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the object (D,) int64 that each detection of one class found, given in falling score,
    and counted (D,) bool; arguments and values as `match_voc` has them.
    """
    objects, counted = np.full(len(boxes), NONE), np.ones(len(boxes), bool)
    detection, candidate = pairs_of(gt_owners, owners)
    iou = paired_iou(boxes[detection], gt_boxes[candidate])  # (P,)
    over = (iou >= thresholds(gt_boxes)[candidate]) & (iou > 0)
    detection, candidate, iou = detection[over], candidate[over], iou[over]
    # of each detection: what counts before what is ignored, then falling overlap, then as annotated
    order = np.lexsort((candidate, -iou, ignored[candidate], detection))
    taken = np.zeros(len(gt_boxes), bool)
    for row, box in zip(detection[order].tolist(), candidate[order].tolist(), strict=True):
        if objects[row] != NONE or not counted[row] or taken[box]:
            continue
        if ignored[box]:
            counted[row] = False
        else:
            objects[row], taken[box] = box, True
    return objects, counted

"""Iterative box refinement and box voting (paper, appendix B; Gidaris and Komodakis 2015).

The boxes that were regressed are pooled, scored and regressed once more, and what both rounds say
goes into NMS together. A detection then moves to the mean of all boxes of its class that overlap
it. Shapes: R RoIs of an image, K classes without background, D detections, M candidates.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from detres.boxes import box_iou
from detres.detection.models.roi_head import RoIHead
from detres.detection.structures import Detections


@dataclass(frozen=True)
class RefineSettings:
    """iterations: rounds after the first, each one more pass of the RoI head over as many RoIs.
    nms_thresh: IoU, of what all rounds found; None: the model's own. voting_iou: from which IoU on
    a box votes; None: no voting.
    """

    iterations: int = 0
    nms_thresh: float | None = None
    voting_iou: float | None = None


def boxes_to_refine(boxes: Tensor, scores: Tensor) -> Tensor:
    """Return the RoIs (R, 4) of the next round from boxes (R, K, 4) and scores (R, K): of each RoI
    the box of its likeliest class.

    One box a RoI, for the paper joins 300 new predictions to 300 old ones; the boxes of all K
    classes would be K times the work. R may be 0.
    """
    return boxes[torch.arange(len(boxes), device=boxes.device), scores.argmax(dim=1)]


def refined_detections(
    head: RoIHead, boxes: Tensor, scores: Tensor, settings: RefineSettings
) -> Detections:
    """Return the detections of one image from the clipped boxes (R, K, 4) and scores (R, K) of all
    rounds: score cut, NMS a class, best D, voting.
    """
    candidates = head.candidates_of_image(boxes, scores)
    own = head.settings.nms_thresh
    found = head.best_of(candidates, own if settings.nms_thresh is None else settings.nms_thresh)
    if settings.voting_iou is None:
        return found
    return vote(found, candidates, settings.voting_iou)


def vote(detections: Detections, candidates: Detections, iou_thresh: float) -> Detections:
    """Return `detections` (D) with each box moved to the mean, weighted by score, of the boxes of
    its class among `candidates` (M) whose IoU with it is at least `iou_thresh`; scores and labels
    stay.

    candidates: what NMS chose the detections from, in any order, so that each votes for itself at
    least. D = 0: no detections.
    """
    same_class = detections.labels[:, None] == candidates.labels
    near = box_iou(detections.boxes, candidates.boxes) >= iou_thresh
    weights = (same_class & near) * candidates.scores  # (D, M)
    weights = weights / weights.sum(dim=1, keepdim=True)
    # as a way from the box itself, so that the mean of equal edges is that edge to the last bit
    ways = candidates.boxes[None] - detections.boxes[:, None]  # (D, M, 4)
    moved = detections.boxes + (weights[..., None] * ways).sum(dim=1)
    return Detections(moved, detections.scores, detections.labels)

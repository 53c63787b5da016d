from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from detres.boxes import box_iou
from detres.detection.inference.refine import (
    RefineSettings,
    boxes_to_refine,
    refined_detections,
    vote,
)
from detres.detection.models.box_coder import BoxCoder
from detres.detection.models.matcher import Matcher
from detres.detection.models.roi_head import BoxPredictor, RoIHead, RoIHeadSettings
from detres.detection.models.roi_pool import RoIPooler
from detres.detection.models.sampler import Sampler
from detres.detection.structures import Detections
from tests.helpers import random_boxes

NONE = Detections(torch.zeros((0, 4)), torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def found(*rows: tuple) -> Detections:
    """rows: (box, score, label)."""
    boxes, scores, labels = zip(*rows, strict=True)
    return Detections(
        torch.tensor(boxes, dtype=torch.float32), torch.tensor(scores), torch.tensor(labels)
    )


def make_head(num_classes: int = 2, *, top: int = 100, nms_thresh: float = 0.9) -> RoIHead:
    return RoIHead(
        pooler=RoIPooler(strides={"s": 16}, kind="roi_pool", output_size=2, sampling_ratio=0),
        box_head=nn.Identity(),
        predictor=BoxPredictor(in_channels=4, num_classes=num_classes),
        box_coder=BoxCoder(),
        matcher=Matcher(fg_iou_thresh=0.5, bg_iou_thresh=0.5),
        sampler=Sampler(batch_size=8, positive_fraction=0.5),
        settings=RoIHeadSettings(
            score_thresh=0.1, nms_thresh=nms_thresh, detections_per_image=top, smooth_l1_beta=1.0
        ),
    )


# ---- voting ----


def test_voting_by_hand():
    """IoUs with the detection [0, 0, 10, 10]: .8, .6, .4, and 1 of another class."""
    candidates = found(
        ([0, 0, 10, 8], 0.3, 1),
        ([0, 0, 10, 10], 0.9, 1),
        ([0, 0, 6, 10], 0.6, 1),
        ([0, 0, 4, 10], 0.8, 1),
        ([0, 0, 10, 10.5], 0.9, 2),
        ([50, 50, 60, 60], 0.7, 1),
    )
    kept = found(([0, 0, 10, 10], 0.9, 1), ([50, 50, 60, 60], 0.7, 1), ([0, 0, 10, 10.5], 0.9, 2))
    voted = vote(kept, candidates, 0.5)
    x2 = (0.3 * 10 + 0.9 * 10 + 0.6 * 6) / 1.8
    y2 = (0.3 * 8 + 0.9 * 10 + 0.6 * 10) / 1.8
    assert voted.boxes[0].tolist() == pytest.approx([0, 0, x2, y2])
    assert voted.boxes[1:].tolist() == kept.boxes[1:].tolist()
    assert torch.equal(voted.scores, kept.scores)
    assert torch.equal(voted.labels, kept.labels)


@pytest.mark.parametrize(("thresh", "votes"), [(0.5, True), (0.501, False)])
def test_the_iou_of_a_vote_may_be_the_threshold(thresh, votes):
    candidates = found(([0, 0, 8, 8], 0.5, 1), ([0, 0, 8, 4], 0.5, 1))
    voted = vote(found(([0, 0, 8, 8], 0.5, 1)), candidates, thresh)
    assert voted.boxes.tolist() == [[0, 0, 8, 6 if votes else 8]]


def test_the_mean_of_equal_edges_is_that_edge():
    """An image of 640.3 px keeps its border; in float32 the mean would leave it by a rounding."""
    scores = torch.rand(400).tolist()
    candidates = found(*(([0, 0, 640.3, 480.7], score, 1) for score in scores))
    voted = vote(found(([0, 0, 640.3, 480.7], 0.9, 1)), candidates, 0.5)
    assert torch.equal(voted.boxes, candidates.boxes[:1])


def test_voting_alone_on_itself_changes_nothing():
    boxes = random_boxes(60, seed=3)
    labels, scores = torch.arange(60) % 3 + 1, torch.rand(60) * 0.9 + 0.1
    all_of_them = Detections(boxes, scores, labels)
    assert torch.equal(vote(all_of_them, all_of_them, 1.0).boxes, boxes)


@pytest.mark.parametrize("seed", range(5))
def test_a_box_stays_within_those_that_vote_for_it_in_whatever_order(seed):
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(600, 60, seed=seed)
    labels = torch.randint(1, 4, (600,), generator=generator)
    scores = torch.rand(600, generator=generator) * 0.9 + 0.1
    kept = Detections(boxes[:20], scores[:20], labels[:20])
    voted = vote(kept, Detections(boxes, scores, labels), 0.5)
    order = torch.randperm(600, generator=generator)
    again = vote(kept, Detections(boxes[order], scores[order], labels[order]), 0.5)
    torch.testing.assert_close(again.boxes, voted.boxes)
    moved = 0
    for n in range(20):
        near = (box_iou(boxes[n : n + 1], boxes)[0] >= 0.5) & (labels == labels[n])
        low, high = boxes[near].amin(dim=0), boxes[near].amax(dim=0)
        assert ((low <= voted.boxes[n]) & (voted.boxes[n] <= high)).all()
        moved += near.sum() > 1
    assert moved > 5


def test_nothing_found_is_nothing_voted():
    assert len(vote(NONE, NONE, 0.5)) == 0
    assert vote(NONE, found(([0, 0, 9, 9], 0.5, 1)), 0.5).boxes.shape == (0, 4)


# ---- rounds ----


def test_the_box_of_the_likeliest_class_is_refined():
    boxes = torch.arange(24.0).view(2, 3, 4)
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.3, 0.1, 0.2]])
    assert boxes_to_refine(boxes, scores).tolist() == [[4, 5, 6, 7], [12, 13, 14, 15]]
    assert boxes_to_refine(boxes[:0], scores[:0]).shape == (0, 4)


def rounds() -> tuple[Tensor, Tensor]:
    """Two RoIs of two classes, in two rounds: the second moves the first RoI's box by IoU 0.6 and
    is surer of it.
    """
    first, second, other = [0.0, 0, 10, 10], [0.0, 0, 10, 6], [50.0, 50, 60, 60]
    boxes = torch.tensor([[first, other], [other, other], [second, other], [other, other]])
    scores = torch.tensor([[0.6, 0.0], [0.0, 0.3], [0.9, 0.0], [0.0, 0.05]])
    return boxes, scores


def test_old_and_new_meet_in_nms_by_hand():
    boxes, scores = rounds()
    union = refined_detections(make_head(), boxes, scores, RefineSettings(1, nms_thresh=0.3))
    assert union.boxes.tolist() == [[0, 0, 10, 6], [50, 50, 60, 60]]
    assert union.scores.tolist() == pytest.approx([0.9, 0.3])
    assert union.labels.tolist() == [1, 2]
    apart = refined_detections(make_head(), boxes, scores, RefineSettings(1, nms_thresh=0.7))
    assert len(apart) == 3
    own = refined_detections(make_head(nms_thresh=0.5), boxes, scores, RefineSettings())
    assert len(own) == 2
    voted = refined_detections(make_head(), boxes, scores, RefineSettings(1, 0.3, voting_iou=0.6))
    y2 = (0.9 * 6 + 0.6 * 10) / 1.5
    assert voted.boxes[0].tolist() == pytest.approx([0, 0, 10, y2])
    assert voted.boxes[1].tolist() == [50, 50, 60, 60]


def test_those_cut_by_score_and_those_beyond_the_best_d():
    boxes, scores = rounds()
    few = refined_detections(make_head(top=1), boxes, scores, RefineSettings(1, 0.3, 0.6))
    assert few.boxes.tolist() == [[0, 0, 10, pytest.approx(7.6)]]  # the suppressed one has voted
    low = refined_detections(make_head(), boxes, scores / 10, RefineSettings(1, 0.3, 0.6))
    assert len(low) == 0


def test_without_rounds_and_voting_it_is_the_heads_own():
    head = make_head(num_classes=3, nms_thresh=0.4)
    boxes = random_boxes(90, seed=7).view(30, 3, 4)
    scores = torch.rand((30, 3))
    own = head.detections_of_image(boxes, scores)
    refined = refined_detections(head, boxes, scores, RefineSettings())
    assert len(own) > 5
    assert torch.equal(own.boxes, refined.boxes)
    assert torch.equal(own.scores, refined.scores)
    assert torch.equal(own.labels, refined.labels)

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from detres.models.anchors import AnchorGenerator
from detres.models.box_coder import BoxCoder
from detres.models.matcher import BETWEEN, Matcher
from detres.models.rpn import RPN, ProposalCounts, RPNHead
from detres.models.sampler import Sampler
from tests.helpers import make_batch, make_target

EMPTY = torch.zeros((0, 4))


def make_rpn(*, train_anchors="all", objectness="sigmoid", min_size=1.0, post_nms=50) -> RPN:
    anchors = AnchorGenerator(
        sizes=(16.0, 32.0), aspect_ratios=(1.0,), stride=16, style="detectron2"
    )
    return RPN(
        head=RPNHead(in_channels=8, width=8, num_anchors=2, objectness=objectness),
        anchors=anchors,
        box_coder=BoxCoder(),
        matcher=Matcher(fg_iou_thresh=0.7, bg_iou_thresh=0.3, allow_low_quality=True),
        sampler=Sampler(batch_size=16, positive_fraction=0.5),
        train_counts=ProposalCounts(60, 40),
        test_counts=ProposalCounts(60, post_nms),
        nms_thresh=0.7,
        min_size=min_size,
        train_anchors=train_anchors,
        smooth_l1_beta=1 / 9,
    )


def test_two_way_softmax_is_the_sigmoid_of_the_difference():
    head = RPNHead(in_channels=8, width=8, num_anchors=3, objectness="softmax")
    feature = torch.randn((2, 8, 4, 5))
    logits, deltas = head(feature)
    assert logits.shape == (2, 60)
    assert deltas.shape == (2, 60, 4)
    raw = head.objectness(F.relu(head.conv(feature))).view(
        2, 2, 3, 4, 5
    )  # background first, then foreground
    probability = raw.softmax(dim=1)[:, 1].permute(0, 2, 3, 1).flatten(1)
    torch.testing.assert_close(logits.sigmoid(), probability)


def test_initial_objectness_is_undecided():
    logits, _ = RPNHead(in_channels=8, width=8, num_anchors=2, objectness="sigmoid")(
        torch.randn((1, 8, 4, 4))
    )
    assert (logits.sigmoid() - 0.5).abs().max() < 0.05


def test_proposals_are_clipped_sorted_limited_and_large_enough():
    images = make_batch([(60, 64), (48, 50)])
    rpn = make_rpn(min_size=6, post_nms=7)
    with torch.no_grad():
        rpn.head.objectness.weight.normal_(0, 1)
        rpn.head.deltas.weight.normal_(0, 0.3)
    feature = torch.randn((2, 8, 4, 4))
    proposals, losses = rpn(feature, images, None)
    assert losses is None
    for boxes, (height, width) in zip(proposals, images.sizes, strict=True):
        assert 0 < len(boxes) <= 7
        assert not boxes.requires_grad
        assert (boxes >= 0).all()
        assert (boxes[:, 2] <= width).all()
        assert (boxes[:, 3] <= height).all()
        assert (boxes[:, 2:] - boxes[:, :2]).min() >= 6


def test_min_size_counts_in_pixels_of_the_original():
    small = make_batch([(64, 64)])
    shrunk = type(small)(small.pixels, small.sizes, ((256, 256),), small.ids)
    rpn = make_rpn(min_size=40)
    feature = torch.zeros((1, 8, 4, 4))
    assert len(rpn(feature, small, None)[0][0]) == 0  # no anchor has a side of 40 px here
    assert (
        len(rpn(feature, shrunk, None)[0][0]) > 0
    )  # but 40 px of the original are 10 px of the batch


def test_losses_by_hand():
    rpn = make_rpn()
    images = make_batch([(64, 64)])
    with torch.no_grad():
        rpn.head.objectness.bias.fill_(1.0)
        rpn.head.objectness.weight.zero_()
        rpn.head.deltas.weight.zero_()
    gt = rpn.anchors(4, 4)[[13]] + torch.tensor([2.0, 0.0, 2.0, 0.0])  # one anchor, moved 2 px
    _, (loss_cls, loss_box) = rpn(torch.randn((1, 8, 4, 4)), images, [make_target(gt, [1])])
    side = float(gt[0, 2] - gt[0, 0])
    positive, negative = (
        torch.tensor(1.0).sigmoid().log().neg(),
        torch.tensor(1.0).neg().sigmoid().log().neg(),
    )
    assert loss_cls.item() == pytest.approx(((positive + 15 * negative) / 16).item(), rel=1e-5)
    delta = 2 / side
    expected = (delta - 0.5 / 9) if delta > 1 / 9 else 0.5 * delta**2 * 9
    assert loss_box.item() == pytest.approx(expected / 16, rel=1e-4)


def test_anchors_over_the_border_are_not_trained_on():
    rpn = make_rpn(train_anchors="inside")
    anchors = rpn.anchors(4, 4)
    matched = rpn.match(anchors, EMPTY, (64, 50))
    inside = (
        (anchors[:, 0] >= 0) & (anchors[:, 1] >= 0) & (anchors[:, 2] <= 50) & (anchors[:, 3] <= 64)
    )
    assert 0 < inside.sum() < len(anchors)
    assert torch.equal(matched == BETWEEN, ~inside)


@pytest.mark.parametrize("train_anchors", ["inside", "all"])
def test_images_without_objects_train_and_every_parameter_gets_a_gradient(train_anchors):
    rpn = make_rpn(train_anchors=train_anchors)
    images = make_batch([(64, 64), (64, 64)])
    targets = [make_target(EMPTY, []), make_target([[10, 10, 42, 42]], [1])]
    _, losses = rpn(torch.randn((2, 8, 4, 4)), images, targets)
    sum(losses).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in rpn.parameters())
    rpn.zero_grad()
    _, (loss_cls, loss_box) = rpn(torch.randn((2, 8, 4, 4)), images, [make_target(EMPTY, [])] * 2)
    assert loss_cls > 0
    assert loss_box == 0
    (loss_cls + loss_box).backward()


def test_an_image_smaller_than_every_anchor_gives_no_nan():
    rpn = make_rpn(train_anchors="inside")
    _, losses = rpn(
        torch.randn((1, 8, 1, 1)), make_batch([(9, 9)]), [make_target([[1, 1, 8, 8]], [1])]
    )
    assert [float(loss) for loss in losses] == [0.0, 0.0]


def test_crowds_are_not_objects():
    rpn = make_rpn()
    crowd = make_target([[10, 10, 42, 42]], [1], crowd=[True])
    torch.manual_seed(1)
    with_crowd = rpn.losses(
        rpn.anchors(4, 4),
        torch.zeros((1, 32)),
        torch.zeros((1, 32, 4)),
        make_batch([(64, 64)]),
        [crowd],
    )
    assert with_crowd[1] == 0

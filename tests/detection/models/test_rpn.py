from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F
from torchvision import ops

from detres.boxes import clip_boxes, large_enough
from detres.detection.models.anchors import AnchorGenerator
from detres.detection.models.box_coder import BoxCoder
from detres.detection.models.matcher import BELOW, Matcher
from detres.detection.models.rpn import RPN, MapOutput, ProposalCounts, RPNHead, RPNSettings
from detres.detection.models.sampler import Sampler
from detres.detection.structures import FeatureMap
from tests.helpers import make_batch, make_target, whole_map

EMPTY = torch.zeros((0, 4))


def make_rpn(*, train_anchors="all", objectness="sigmoid", min_size=1.0, post_nms=50) -> RPN:
    return RPN(
        head=RPNHead(in_channels=8, width=8, num_anchors=2, objectness=objectness),
        anchors={"conv4": make_anchors()},
        box_coder=BoxCoder(),
        matcher=Matcher(fg_iou_thresh=0.7, bg_iou_thresh=0.3, allow_low_quality=True),
        sampler=Sampler(batch_size=16, positive_fraction=0.5),
        settings=RPNSettings(
            train_counts=ProposalCounts(60, 40),
            test_counts=ProposalCounts(60, post_nms),
            nms_thresh=0.7,
            min_size=min_size,
            train_anchors=train_anchors,
            smooth_l1_beta=1 / 9,
            loss_normalizer="sampled",
        ),
    )


def make_anchors(sizes: tuple[float, ...] = (16.0, 32.0), stride: int = 16) -> AnchorGenerator:
    return AnchorGenerator(sizes=sizes, aspect_ratios=(1.0,), stride=stride, style="detectron2")


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
    features = {"conv4": whole_map(torch.randn((2, 8, 4, 4)))}
    proposals, losses = rpn(features, images, None)
    assert losses.terms() == {}
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
    features = {"conv4": whole_map(torch.zeros((1, 8, 4, 4)))}
    assert len(rpn(features, small, None)[0][0]) == 0  # no anchor has a side of 40 px here
    # but 40 px of the original are 10 px of the batch
    assert len(rpn(features, shrunk, None)[0][0]) > 0


@pytest.mark.parametrize(("min_size", "some"), [(63, True), (65, False)])
def test_min_size_is_scaled_as_the_image_of_unequal_sides_was(min_size, some):
    """Halved, a side of 32 px, the largest here, was 64 px."""
    small = make_batch([(64, 96)])
    halved = type(small)(small.pixels, small.sizes, ((128, 192),), small.ids)
    features = {"conv4": whole_map(torch.zeros((1, 8, 4, 6)))}
    (boxes,), _ = make_rpn(min_size=min_size)(features, halved, None)
    assert bool(len(boxes)) is some


@pytest.mark.parametrize("normalizer", ["sampled", "batch_size"])
@pytest.mark.parametrize("beta", [1 / 9, 0.0])
def test_losses_by_hand(normalizer, beta):
    rpn = make_rpn()
    rpn.sampler = Sampler(batch_size=40, positive_fraction=0.5)  # leaves none out
    rpn.settings = dataclasses.replace(
        rpn.settings, loss_normalizer=normalizer, smooth_l1_beta=beta
    )
    images = make_batch([(64, 64)])
    with torch.no_grad():
        rpn.head.objectness.bias.fill_(1.0)
        rpn.head.objectness.weight.zero_()
        rpn.head.deltas.weight.zero_()
    gt = rpn.anchors["conv4"](4, 4)[[13]] + torch.tensor(
        [2.0, 0.0, 2.0, 0.0]
    )  # one anchor, moved 2 px
    features = {"conv4": whole_map(torch.randn((1, 8, 4, 4)))}
    losses = rpn(features, images, [make_target(gt, [1])])[1].terms()
    assert list(losses) == ["loss_rpn_cls", "loss_rpn_box"]
    side = float(gt[0, 2] - gt[0, 0])
    positive, negative = (
        torch.tensor(1.0).sigmoid().log().neg(),
        torch.tensor(1.0).neg().sigmoid().log().neg(),
    )
    matched = rpn.match(rpn.anchors["conv4"](4, 4), gt, (64, 64))
    num_negative = int((matched == BELOW).sum())
    assert (matched >= 0).sum() == 1
    assert num_negative < 31
    divisor = 40 if normalizer == "batch_size" else 1 + num_negative
    assert losses["loss_rpn_cls"].item() == pytest.approx(
        ((positive + num_negative * negative) / divisor).item(), rel=1e-5
    )
    delta = 2 / side
    expected = (delta - beta / 2) if delta > beta else 0.5 * delta**2 / beta
    assert losses["loss_rpn_box"].item() == pytest.approx(expected / divisor, rel=1e-4)


@pytest.mark.parametrize("train_anchors", ["all", "inside"])
def test_anchors_in_the_padding_are_neither_negatives_nor_proposals(train_anchors):
    rpn = make_rpn(train_anchors=train_anchors, min_size=0, post_nms=1000)
    rpn.settings = dataclasses.replace(
        rpn.settings, nms_thresh=1.0, test_counts=ProposalCounts(1000, 1000)
    )
    rpn.sampler = Sampler(batch_size=1000, positive_fraction=0.5)
    rpn.head.requires_grad_(False)
    torch.nn.init.normal_(rpn.head.objectness.weight)  # logits that differ, in padding too
    rpn.head.objectness.bias.fill_(1.0)
    values = torch.randn((2, 8, 4, 6))
    values[1, :, 2:], values[1, :, :, 3:] = 0, 0
    features = {"conv4": FeatureMap(values, ((4, 6), (2, 3)))}
    images = make_batch([(64, 96), (20, 40)])
    proposals, losses = rpn(features, images, [make_target(EMPTY, [])] * 2)
    rows = rpn.anchors["conv4"].rows_within((2, 3), 6)
    cells = [(y * 6 + x) * 2 for y in range(2) for x in range(3)]
    assert rows.tolist() == [row + a for row in cells for a in range(2)]
    logits = rpn.head(values)[0]
    chosen = []
    for n, anchors in enumerate((torch.arange(48), rows)):
        matched = rpn.match(rpn.anchors["conv4"](4, 6)[anchors], EMPTY, images.sizes[n])
        chosen.append(F.softplus(logits[n, anchors[matched == BELOW]]))
    found = losses.terms()["loss_rpn_cls"].item()
    assert found == pytest.approx(torch.cat(chosen).mean().item(), rel=1e-5)
    proposals, _ = rpn(features, images, None)
    decoded = rpn.box_coder.decode(rpn.anchors["conv4"](4, 6)[rows], rpn.head(values)[1][1, rows])
    expected = large_enough(clip_boxes(decoded, (20, 40)), 0)
    assert len(proposals[1]) == expected.sum() > 0


def test_each_image_of_a_batch_has_the_anchors_of_its_own_size() -> None:
    """torchvision's, of a level that has every second cell: 5 cells of 160 px, 3 of 96, are 3 and 2
    here, 53 and 48 px apart.
    """
    rpn = make_rpn()
    rpn.anchors["conv4"] = AnchorGenerator(
        sizes=(64.0,), aspect_ratios=(1.0,), stride=64, style="torchvision"
    )
    feature = FeatureMap(torch.randn((2, 8, 3, 3)), ((3, 3), (2, 2)), ((160, 160), (96, 96)))
    outputs = torch.zeros((2, 9)), torch.zeros((2, 9, 4))
    output = rpn.on_map(feature, rpn.anchors["conv4"], outputs)
    for n, expected in enumerate(([0, 53, 106], [0, 48])):
        anchors, logits, deltas = output.of_image(n)
        assert len(anchors) == len(logits) == len(deltas) == len(expected) ** 2
        assert sorted(set((anchors[:, 0] + 32).tolist())) == expected
        assert sorted(set((anchors[:, 1] + 32).tolist())) == expected


def test_proposals_without_extent_are_dropped():
    """At a min_size of 0 too: no suppression would take them."""
    rpn = make_rpn(min_size=0, post_nms=1000)
    with torch.no_grad():
        rpn.head.deltas.bias[0] = 100.0  # one of two anchors goes over the right border
    (boxes,), _ = rpn({"conv4": whole_map(torch.zeros((1, 8, 4, 4)))}, make_batch([(64, 64)]), None)
    assert 0 < len(boxes) <= 16
    assert (boxes[:, 2:] > boxes[:, :2]).all()


@pytest.mark.parametrize(
    ("size", "larger"),
    [
        # Centres lie at 0, 16, 32 and 48 px. Anchors of 32 px fit where 16 <= centre <= side - 16,
        # touching the border at both ends; those of 16 px where 8 <= centre <= side - 8.
        ((64, 50), {(16, 16), (16, 32), (32, 16), (32, 32), (48, 16), (48, 32)}),
        ((48, 64), {(16, 16), (16, 32), (16, 48), (32, 16), (32, 32), (32, 48)}),
        ((48, 48), {(16, 16), (16, 32), (32, 16), (32, 32)}),
    ],
)
def test_anchors_over_the_border_are_not_trained_on(size, larger):
    rpn = make_rpn(train_anchors="inside")
    trained = rpn.match(rpn.anchors["conv4"](4, 4), EMPTY, size) == BELOW
    cells = trained.view(4, 4, 2).nonzero().tolist()
    assert {(y * 16, x * 16) for y, x, anchor in cells if anchor == 1} == larger
    smaller = {(y * 16, x * 16) for y, x, anchor in cells if anchor == 0}
    fits = [[c for c in (16, 32, 48) if c + 8 <= side] for side in size]
    assert smaller == {(y, x) for y in fits[0] for x in fits[1]}


@pytest.mark.parametrize("train_anchors", ["inside", "all"])
def test_images_without_objects_train_and_every_parameter_gets_a_gradient(train_anchors):
    rpn = make_rpn(train_anchors=train_anchors)
    images = make_batch([(64, 64), (64, 64)])
    targets = [make_target(EMPTY, []), make_target([[10, 10, 42, 42]], [1])]
    features = {"conv4": whole_map(torch.randn((2, 8, 4, 4)))}
    _, losses = rpn(features, images, targets)
    losses.total().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in rpn.parameters())
    rpn.zero_grad()
    _, losses = rpn(
        {"conv4": whole_map(torch.randn((2, 8, 4, 4)))}, images, [make_target(EMPTY, [])] * 2
    )
    assert losses.terms()["loss_rpn_cls"] > 0
    assert losses.terms()["loss_rpn_box"] == 0
    losses.total().backward()


def test_an_image_smaller_than_every_anchor_gives_no_nan():
    rpn = make_rpn(train_anchors="inside")
    features = {"conv4": whole_map(torch.randn((1, 8, 1, 1)))}
    _, losses = rpn(features, make_batch([(9, 9)]), [make_target([[1, 1, 8, 8]], [1])])
    assert [float(loss) for loss in losses.terms().values()] == [0.0, 0.0]


def test_crowds_are_not_objects():
    rpn = make_rpn()
    crowd = make_target([[10, 10, 42, 42]], [1], crowd=[True])
    torch.manual_seed(1)
    maps = [
        MapOutput(
            [rpn.anchors["conv4"](4, 4)], torch.zeros((1, 32)), torch.zeros((1, 32, 4)), [None]
        )
    ]
    with_crowd = rpn.losses(maps, make_batch([(64, 64)]), [crowd])
    assert with_crowd.terms()["loss_rpn_box"] == 0


STAGES = ("conv4", "conv5")


def make_rpn_of_two_maps(*, objectness="sigmoid", post_nms=50) -> RPN:
    """Anchors of 16 and 32 px on the map of stride 16, of 48 and 64 px on that of stride 32."""
    rpn = make_rpn(objectness=objectness, post_nms=post_nms)
    rpn.anchors["conv5"] = make_anchors((48.0, 64.0), stride=32)
    with torch.no_grad():
        rpn.head.objectness.weight.normal_(0, 1)
        rpn.head.deltas.weight.normal_(0, 0.3)
    return rpn


def features_of_two_maps(num: int) -> dict[str, FeatureMap]:
    return {
        "conv4": whole_map(torch.randn((num, 8, 4, 6))),
        "conv5": whole_map(torch.randn((num, 8, 2, 3))),
    }


@pytest.mark.parametrize("post_nms", [7, 30])
def test_proposals_of_two_maps_are_those_of_each_merged_by_score(post_nms):
    rpn = make_rpn_of_two_maps(post_nms=post_nms)
    images, features = make_batch([(64, 96), (50, 90)]), features_of_two_maps(2)
    proposals, _ = rpn(features, images, None)
    stages = set()
    for n, (height, width) in enumerate(images.sizes):
        scored = []
        for stage in STAGES:
            logits, deltas = rpn.head(features[stage].values)
            anchors = rpn.anchors[stage](*features[stage].values.shape[2:])
            boxes = rpn.box_coder.decode(anchors, deltas[n].detach())
            boxes[:, 0::2] = boxes[:, 0::2].clamp(0, width)
            boxes[:, 1::2] = boxes[:, 1::2].clamp(0, height)
            large = (boxes[:, 2:] - boxes[:, :2] >= 1).all(dim=1)
            boxes, scores = boxes[large], logits[n, large].detach()
            keep = ops.nms(boxes, scores, 0.7)[:post_nms]
            scored += [(float(scores[k]), stage, boxes[k].tolist()) for k in keep]
        scored.sort(key=lambda item: -item[0])
        expected = scored[:post_nms]
        assert len(scored) > post_nms
        stages |= {stage for _, stage, _ in expected}
        torch.testing.assert_close(
            proposals[n], torch.tensor([box for _, _, box in expected]), rtol=0, atol=1e-5
        )
    assert stages == set(STAGES)


def test_proposals_of_one_of_two_maps_are_those_of_that_map_alone():
    rpn = make_rpn_of_two_maps(post_nms=1000)
    images, features = make_batch([(64, 96)]), features_of_two_maps(1)
    (together,), _ = rpn(features, images, None)
    alone = []
    for stage in STAGES:
        anchors, rpn.anchors = rpn.anchors, torch.nn.ModuleDict({stage: rpn.anchors[stage]})
        (of_map,), _ = rpn(features, images, None)
        rpn.anchors = anchors
        alone += of_map.tolist()
    assert sorted(together.tolist()) == sorted(alone)


def test_losses_of_two_maps_by_hand_over_the_anchors_of_both():
    rpn = make_rpn_of_two_maps()
    rpn.sampler = Sampler(batch_size=1000, positive_fraction=0.5)  # takes every candidate
    images, features = make_batch([(64, 96), (64, 96)]), features_of_two_maps(2)
    targets = [
        make_target([[10, 10, 30, 30], [5, 3, 60, 62]], [1, 2]),
        make_target(EMPTY, []),
    ]
    losses = rpn(features, images, targets)[1].terms()

    anchors = torch.cat((make_anchors()(4, 6), make_anchors((48.0, 64.0), stride=32)(2, 3)))
    outputs = [rpn.head(features[stage].values) for stage in STAGES]
    logits = torch.cat([each[0] for each in outputs], dim=1)
    deltas = torch.cat([each[1] for each in outputs], dim=1)
    iou = ops.box_iou(targets[0].boxes, anchors)
    best_of_anchor, gt_of_anchor = iou.max(dim=0)
    best_of_gt = (iou == iou.max(dim=1, keepdim=True).values).any(dim=0)
    positive = (best_of_anchor >= 0.7) | best_of_gt
    negative = (best_of_anchor < 0.3) & ~positive
    assert positive[:48].any()
    assert positive[48:].any()
    cls = F.softplus(-logits[0, positive]).sum() + F.softplus(logits[0, negative]).sum()
    cls = cls + F.softplus(logits[1]).sum()
    box = torch.zeros(())
    for row in positive.nonzero().flatten().tolist():
        gt, anchor = targets[0].boxes[gt_of_anchor[row]], anchors[row]
        sides, gt_sides = anchor[2:] - anchor[:2], gt[2:] - gt[:2]
        offset = ((gt[2:] + gt[:2]) / 2 - (anchor[2:] + anchor[:2]) / 2) / sides
        error = (deltas[0, row] - torch.cat((offset, (gt_sides / sides).log()))).abs()
        box = box + torch.where(error < 1 / 9, 0.5 * 9 * error**2, error - 0.5 / 9).sum()
    num_sampled = int(positive.sum() + negative.sum()) + len(anchors)
    assert losses["loss_rpn_cls"].item() == pytest.approx(cls.item() / num_sampled, rel=1e-5)
    assert losses["loss_rpn_box"].item() == pytest.approx(box.item() / num_sampled, rel=1e-4)


def test_two_maps_without_an_object_or_a_proposal():
    rpn = make_rpn_of_two_maps()
    images, features = make_batch([(64, 96)]), features_of_two_maps(1)
    losses = rpn(features, images, [make_target(EMPTY, [])])[1].terms()
    assert losses["loss_rpn_cls"] > 0
    assert losses["loss_rpn_box"] == 0
    rpn.settings = dataclasses.replace(rpn.settings, min_size=1000)
    (none,), _ = rpn(features, images, None)
    assert none.shape == (0, 4)


def test_a_map_that_is_not_there_is_an_error():
    rpn = make_rpn_of_two_maps()
    with pytest.raises(KeyError, match="conv5"):
        rpn({"conv4": whole_map(torch.randn((1, 8, 4, 6)))}, make_batch([(64, 96)]), None)


@pytest.mark.parametrize(("training", "num"), [(False, 4), (True, 6)])
def test_the_best_by_objectness_enter_nms_and_training_has_its_own_number(training, num):
    rpn = make_rpn(min_size=0)
    rpn.settings = dataclasses.replace(
        rpn.settings,
        nms_thresh=1.0,
        test_counts=ProposalCounts(4, 20),
        train_counts=ProposalCounts(6, 20),
    )
    with torch.no_grad():
        rpn.head.objectness.weight.normal_(0, 1)
        rpn.head.deltas.weight.zero_()
    values = torch.randn((1, 8, 4, 4))
    targets = [make_target([[10, 10, 42, 42]], [1])] if training else None
    (boxes,), _ = rpn({"conv4": whole_map(values)}, make_batch([(64, 64)]), targets)
    best = rpn.head(values)[0][0].argsort(descending=True)[:num]
    assert boxes.tolist() == clip_boxes(rpn.anchors["conv4"](4, 4)[best], (64, 64)).tolist()


@pytest.mark.parametrize("normalizer", ["sampled", "batch_size"])
def test_a_batch_of_one_image_twice_has_the_losses_of_that_image(normalizer):
    rpn = make_rpn()
    rpn.settings = dataclasses.replace(rpn.settings, loss_normalizer=normalizer)
    rpn.sampler = Sampler(batch_size=100, positive_fraction=0.5)  # leaves none out
    values, target = torch.randn((1, 8, 4, 4)), make_target([[10, 10, 42, 42]], [1])
    once, twice = (
        rpn(
            {"conv4": whole_map(values.repeat(num, 1, 1, 1))},
            make_batch([(64, 64)] * num),
            [target] * num,
        )[1].terms()
        for num in (1, 2)
    )
    for name, loss in once.items():
        assert loss > 0
        assert twice[name].item() == pytest.approx(loss.item(), rel=1e-5)


def test_layers_start_as_in_the_prototxt():
    head = RPNHead(in_channels=64, width=256, num_anchors=9, objectness="softmax")
    for layer in (head.conv, head.objectness, head.deltas):
        assert layer.weight.mean().abs() < 0.001
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.06)
        assert (layer.bias == 0).all()

from __future__ import annotations

import math

import pytest
import torch

from detres.config import check
from detres.detection.build import build_detector
from detres.detection.config import ModelConfig
from detres.detection.structures import Losses
from tests.helpers import make_batch, make_target

TINY = {
    "backbone": {"name": "resnet18", "norm": "batch", "freeze_at": 0},
    "input": {"short_side": 64, "max_side": 128},
    "anchors": {"sizes": [16, 32], "style": "detectron2"},
    "rpn": {"width": 16, "train_anchors": "all", "min_size": 2, "test_post_nms_top_n": 20},
    "roi": {"pool": "roi_align", "pool_size": 4, "batch_size": 16, "score_thresh": 0.1},
}


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return build_detector(check(ModelConfig, TINY, "test"), 4)


def test_losses_or_detections_by_the_argument_alone(detector):
    images = make_batch([(60, 64), (64, 50)])
    targets = [make_target([[5, 5, 40, 40]], [3]), make_target(torch.zeros((0, 4)), [])]
    for mode in (True, False):
        detector.train(mode)
        losses = detector(images, targets)
        assert isinstance(losses, Losses)
        assert losses.total().item() == pytest.approx(
            sum(v.item() for v in losses.terms().values()), rel=1e-5
        )
        assert len(detector(images)) == 2
    assert losses.terms()["loss_roi_cls"].item() == pytest.approx(math.log(5), abs=0.5)
    assert list(losses.terms()) == [
        "loss_rpn_cls",
        "loss_rpn_box",
        "loss_roi_cls",
        "loss_roi_box",
    ]
    with pytest.raises(ValueError, match="2 images but targets for 1"):
        detector(images, targets[:1])


def test_every_parameter_gets_a_gradient(detector):
    detector.train()
    detector.zero_grad()
    detector(
        make_batch([(64, 64)] * 2), [make_target([[5, 5, 40, 40]], [3])] * 2
    ).total().backward()
    silent = [
        name for name, p in detector.named_parameters() if p.grad is None or p.grad.abs().sum() == 0
    ]
    assert silent == []


def test_padding_does_not_reach_the_detections(detector):
    """A network of eval statistics sees zeros beyond an image, whether the batch has room there or
    not.
    """
    detector.eval()
    alone = make_batch([(64, 64)])
    pixels = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    pixels[0, :, :64, :64] = alone.pixels[0]
    together = type(alone)(pixels, ((64, 64), (96, 96)), ((64, 64), (96, 96)), (1, 2))
    normal = detector.normalizer(together.pixels, together.sizes)
    torch.testing.assert_close(
        normal[0, :, :64, :64], detector.normalizer(alone.pixels, alone.sizes)[0]
    )
    assert (normal[0, :, 64:] == 0).all()
    assert (normal[0, :, :, 64:] == 0).all()


def test_frozen_stages_do_not_learn_and_conv5_does():
    frozen = {
        **TINY,
        "backbone": {
            "name": "resnet18",
            "norm": "frozen",
            "freeze_at": 2,
            "weights": "not read here",
        },
    }
    detector = build_detector(check(ModelConfig, frozen, "test"), 4, pretrained=False)
    learning = {name for name, p in detector.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("backbone.conv1", "backbone.layer1")) for name in learning)
    assert any(name.startswith("backbone.layer2") for name in learning)
    assert any(name.startswith("roi_head.box_head.conv5") for name in learning)
    assert not any(".bn" in name for name in learning)


EMPTY = torch.zeros((0, 4))


@pytest.fixture(scope="module")
def opinionated():
    """A detector in eval mode whose predictor has opinions, so that it finds something."""
    torch.manual_seed(0)
    detector = build_detector(check(ModelConfig, TINY, "test"), 4).eval()
    torch.nn.init.normal_(detector.roi_head.predictor.cls_score.weight, std=0.5)
    torch.nn.init.normal_(detector.roi_head.predictor.bbox_pred.weight, std=0.05)
    return detector


def assert_same(first, second) -> None:
    for mine, other in zip(first, second, strict=True):
        torch.testing.assert_close(mine.boxes, other.boxes, rtol=0, atol=0)
        torch.testing.assert_close(mine.scores, other.scores, rtol=0, atol=0)
        assert mine.labels.tolist() == other.labels.tolist()


@torch.inference_mode()
def test_given_proposals_are_detected_as_the_rpns_own(opinionated):
    images = make_batch([(60, 64), (64, 50)])
    proposals, losses = opinionated.rpn(opinionated.features(images), images, None)
    assert losses == {}
    assert all(len(boxes) for boxes in proposals)
    found = opinionated(images, proposals=proposals)
    assert all(len(each) for each in found)
    assert_same(found, opinionated(images))


def test_losses_of_given_proposals_are_those_of_the_roi_head_alone(opinionated):
    images = make_batch([(60, 64), (64, 50)])
    targets = [make_target([[5, 5, 40, 40]], [3]), make_target(EMPTY, [])]
    torch.manual_seed(3)
    proposals, _ = opinionated.rpn(opinionated.features(images), images, targets)
    losses = opinionated(images, targets, proposals).terms()
    torch.manual_seed(3)
    joint = opinionated(images, targets).terms()
    assert list(losses) == ["loss_roi_cls", "loss_roi_box"]
    assert {name: value.item() for name, value in losses.items()} == {
        name: joint[name].item() for name in losses
    }
    opinionated.zero_grad()
    opinionated(images, targets, proposals).total().backward()
    assert all(p.grad is None for p in opinionated.rpn.parameters())
    assert all(p.grad is not None for p in opinionated.roi_head.parameters())
    opinionated.zero_grad()


@pytest.mark.parametrize("num", [0, 1, 3])
def test_as_many_tensors_of_proposals_as_images_or_an_error(opinionated, num):
    images, given = make_batch([(60, 64), (64, 50)]), [EMPTY] * num
    with pytest.raises(ValueError, match=f"2 images but proposals for {num}"):
        opinionated(images, proposals=given)
    with pytest.raises(ValueError, match=f"2 images but proposals for {num}"):
        opinionated(images, [make_target(EMPTY, [])] * 2, given)
    with pytest.raises(ValueError, match=f"2 images but targets for {num}"):
        opinionated(images, [make_target(EMPTY, [])] * num, [EMPTY] * 2)


def test_no_proposals_are_no_detections(opinionated):
    images = make_batch([(60, 64), (64, 50)])
    with torch.inference_mode():
        none = opinionated(images, proposals=[EMPTY, EMPTY])
        boxes = opinionated.rpn(opinionated.features(images), images, None)[0][1]
        first, second = opinionated(images, proposals=[EMPTY, boxes])
    assert [len(each) for each in none] == [0, 0]
    assert none[0].boxes.shape == (0, 4)
    assert len(first) == 0
    assert len(second) > 0
    without = opinionated(images, [make_target(EMPTY, [])] * 2, [EMPTY, EMPTY]).terms()
    assert [value.item() for value in without.values()] == [0, 0]
    object_alone = opinionated(
        images, [make_target([[5, 5, 40, 40]], [3]), make_target(EMPTY, [])], [EMPTY, EMPTY]
    ).terms()
    assert object_alone["loss_roi_cls"] > 0  # its box joins the proposals


@torch.inference_mode()
def test_scoring_and_then_postprocessing_is_detecting(opinionated):
    images = make_batch([(60, 64), (64, 50)])
    features = opinionated.features(images)
    assert list(features) == ["conv4"]
    proposals, _ = opinionated.rpn(features, images, None)
    logits, deltas = opinionated.roi_head(features, proposals)
    found = opinionated.roi_head.postprocess(logits, deltas, proposals, images.sizes)
    assert all(len(each) for each in found)
    assert_same(found, opinionated(images))

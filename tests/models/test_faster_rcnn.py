from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from detres.build import build_detector
from detres.config import ModelConfig, check
from detres.models.normalizer import PixelNormalizer
from detres.structures import Losses
from tests.helpers import make_batch, make_target

TINY = {
    "backbone": {"name": "resnet18", "norm": "batch", "freeze_at": 0},
    "input": {"shorter": 64, "longer": 128},
    "anchors": {"sizes": [16, 32], "style": "detectron2"},
    "rpn": {"width": 16, "train_anchors": "all", "min_size": 2, "test_post_nms_top_n": 20},
    "roi": {"pool": "roi_align", "pool_size": 4, "batch_size": 16, "score_thresh": 0.1},
}


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return build_detector(check(ModelConfig, TINY, "test"), 4)


def test_normalizer_by_hand():
    images = make_batch([(30, 32)])
    normalizer = PixelNormalizer(mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 8.0), channel_order="rgb")
    x = normalizer(images.pixels, images.sizes)
    assert x[0, 1, 5, 7].item() == pytest.approx((float(images.pixels[0, 1, 5, 7]) - 20) / 4)
    assert (x[0, :, 30:] == 0).all()
    bgr = PixelNormalizer(mean=(30.0, 20.0, 10.0), std=(8.0, 4.0, 2.0), channel_order="bgr")(
        images.pixels, images.sizes
    )
    torch.testing.assert_close(bgr, x.flip(1))


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
    with pytest.raises(ValueError, match="2 images but 1 targets"):
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


def test_predict_returns_boxes_in_the_pixels_given(detector):
    detector.train()
    image = np.random.default_rng(0).integers(0, 256, (90, 150, 3), dtype=np.uint8)
    found = detector.predict([image, image[:, :70]], batch_size=2)
    assert detector.training
    assert len(found) == 2
    assert (found[0].boxes[:, 2] <= 150 + 1e-3).all()
    assert (found[0].boxes[:, 3] <= 90 + 1e-3).all()
    assert detector.predict([]) == []
    with pytest.raises(ValueError, match="image 0 is float32"):
        detector.predict([image.astype(np.float32)])


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
    assert any(name.startswith("roi_head.conv5") for name in learning)
    assert not any(".bn" in name for name in learning)

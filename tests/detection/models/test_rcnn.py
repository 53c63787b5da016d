"""R-CNN: its losses by hand, its outputs, and a proposer that stays as it is."""

from __future__ import annotations

import math

import pytest
import torch

from detres.config import check
from detres.detection.localisation.build import build_rcnn
from detres.detection.localisation.config import LocalisationModelConfig
from detres.detection.models.rcnn import RCNN
from tests.detection.models.test_class_rpn import TINY_MODEL, K, make_model
from tests.helpers import make_batch, make_target

MODEL = {
    **{key: TINY_MODEL[key] for key in ("backbone", "input")},
    "kind": "rcnn",
    "rcnn": {"proposals": "rpn.safetensors"},
}


def make_rcnn(seed: int = 0) -> RCNN:
    torch.manual_seed(seed)
    return build_rcnn(check(LocalisationModelConfig, MODEL, "test"), K, make_model()).eval()


def test_the_losses_by_hand() -> None:
    model = make_rcnn()
    with torch.no_grad():  # then every logit is 2 and every delta 0
        for layer in (model.cls_score, model.bbox_pred):
            layer.weight.zero_()
        model.cls_score.bias.fill_(2.0)
    images = make_batch([(64, 64)] * 3)
    targets = [
        make_target([[0, 0, 64, 64], [0, 0, 8, 8]], [1, 1]),  # IoU 1
        make_target([[0, 0, 64, 32]], [2]),  # IoU 0.5
        make_target([[0, 0, 64, 31], [-64, 0, 0, 64]], [3, 3]),  # less, and beside it
    ]
    losses = model(images, targets).terms()
    right, wrong = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    assert losses["loss_rcnn_cls"].item() == pytest.approx((2 * right + wrong) / 3, rel=1e-5)
    # only the second is to be moved: up by a quarter of the region, to half its height
    smooth_l1 = [abs(10 * -0.25) - 0.5, abs(5 * math.log(0.5)) - 0.5]
    assert losses["loss_rcnn_box"].item() == pytest.approx(sum(smooth_l1) / 3, rel=1e-5)


def test_outputs_are_of_the_class_asked_for() -> None:
    model, images = make_rcnn(), make_batch([(64, 64)] * 4)
    labels = torch.tensor([1, 2, 3, 1])
    with torch.no_grad():
        model.cls_score.bias.copy_(torch.tensor([100.0, 200.0, 300.0]))
        model.bbox_pred.bias.view(K, 4).copy_(torch.tensor([[1.0] * 4, [2.0] * 4, [3.0] * 4]) * 100)
        logits, deltas = model(images, labels=labels)
    assert (logits / 100).round().tolist() == [1, 2, 3, 1]
    assert (deltas / 100).round().tolist() == [[1] * 4, [2] * 4, [3] * 4, [1] * 4]


def test_the_proposer_neither_learns_nor_changes_its_mode() -> None:
    model = make_rcnn().train()
    assert model.net.training
    assert not any(module.training for module in model.proposer.modules())
    assert not any(parameter.requires_grad for parameter in model.proposer.parameters())
    targets = [make_target([[0, 0, 64, 64]], [1])]
    model(make_batch([(64, 64)]), targets).total().backward()
    assert model.net.conv1.weight.grad is not None


def test_no_region_that_shows_an_object_has_no_box_loss() -> None:
    model = make_rcnn()
    losses = model(make_batch([(64, 64)]), [make_target([[0, 0, 8, 8]], [1])]).terms()
    assert losses["loss_rcnn_box"] == 0


def test_what_does_not_belong_together_is_refused() -> None:
    model, images = make_rcnn(), make_batch([(64, 64)])
    with pytest.raises(ValueError, match="1 regions but targets or labels for none"):
        model(images)
    with pytest.raises(ValueError, match="1 regions but targets or labels for 2"):
        model(images, labels=torch.tensor([1, 2]))

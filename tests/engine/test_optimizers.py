"""The optimizers' groups, their rates, and the norm of all gradients together."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from detres.engine.optimizers import adamw, clip_gradients, gradient_norm, set_rate, sgd


def test_sgd_groups_follow_the_recipe():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.GroupNorm(2, 8),
        nn.Conv2d(8, 4, 1, bias=False),
        nn.Linear(4, 2),
    )
    model[3].requires_grad_(False)
    optimizer = sgd(model, momentum=0.9, weight_decay=5e-4)
    weights, biases, norms = optimizer.param_groups
    assert [id(p) for p in weights["params"]] == [id(model[0].weight), id(model[4].weight)]
    assert [id(p) for p in biases["params"]] == [id(model[0].bias), id(model[4].bias)]
    assert [id(p) for p in norms["params"]] == [
        id(p) for layer in (model[1], model[2]) for p in layer.parameters()
    ]
    assert [(group["weight_decay"], group["lr_scale"]) for group in (weights, biases, norms)] == [
        (5e-4, 1.0),
        (5e-4, 2.0),
        (0.0, 1.0),
    ]
    plain = sgd(model, momentum=0.9, weight_decay=5e-4, norm_weight_decay=1e-4, bias_lr_scale=1.0)
    assert [(group["weight_decay"], group["lr_scale"]) for group in plain.param_groups] == [
        (5e-4, 1.0),
        (5e-4, 1.0),
        (1e-4, 1.0),
    ]


def test_sgd_of_a_frozen_model_is_refused():
    with pytest.raises(ValueError, match="all are frozen"):
        sgd(nn.Linear(2, 2).requires_grad_(False), momentum=0.9, weight_decay=0.0)


def test_adamw_decays_the_weights_of_layers_alone():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    decaying, plain = adamw(model, weight_decay=0.1).param_groups
    assert [id(p) for p in decaying["params"]] == [id(model[0].weight)]
    assert [id(p) for p in plain["params"]] == [
        id(model[0].bias),
        id(model[1].weight),
        id(model[1].bias),
    ]
    assert (decaying["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    with pytest.raises(ValueError, match="all are frozen"):
        adamw(model.requires_grad_(False), weight_decay=0.1)


def test_an_adamw_step_by_hand():
    layer = nn.Linear(1, 1)
    nn.init.constant_(layer.weight, 2.0)
    optimizer = adamw(layer, weight_decay=0.5)
    layer.weight.grad, layer.bias.grad = torch.tensor([[3.0]]), torch.tensor([-4.0])
    bias = layer.bias.item()
    set_rate(optimizer, 0.1)
    optimizer.step()
    assert layer.weight.item() == pytest.approx(
        2.0 * (1 - 0.1 * 0.5) - 0.1
    )  # the first step is lr, whatever the gradient
    assert layer.bias.item() == pytest.approx(bias + 0.1)


def test_the_rate_is_set_in_every_group_times_its_scale_where_it_has_one():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = sgd(model, momentum=0.9, weight_decay=0.0)
    for rate in (0.25, 0.5):  # set, not multiplied
        set_rate(optimizer, rate)
        assert [group["lr"] for group in optimizer.param_groups] == [rate, 2 * rate, rate]
    plain = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    set_rate(plain, 0.25)
    assert [group["lr"] for group in plain.param_groups] == [0.25]


def with_gradients(weight: list[float], bias: float) -> nn.Linear:
    layer = nn.Linear(2, 1)
    layer.weight.grad, layer.bias.grad = torch.tensor([weight]), torch.tensor([bias])
    return layer


def test_the_gradient_norm_is_of_all_gradients_together():
    assert gradient_norm(with_gradients([2.0, 3.0], -6.0)).item() == pytest.approx(7.0)
    frozen = with_gradients([3.0, 4.0], 0.0)
    frozen.bias.grad = None
    assert gradient_norm(frozen).item() == pytest.approx(5.0)
    assert gradient_norm(nn.Linear(2, 1)).item() == 0.0  # nothing has a gradient yet
    assert math.isnan(gradient_norm(with_gradients([1.0, math.nan], 0.0)).item())


def test_gradients_are_scaled_down_to_the_limit_together_and_never_up():
    layer = with_gradients([2.0, 3.0], -6.0)
    clip_gradients(layer, 0.7, torch.tensor(7.0))
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[0.2, 0.3]]))
    torch.testing.assert_close(layer.bias.grad, torch.tensor([-0.6]))
    for limit in (7.5, None):
        layer = with_gradients([2.0, 3.0], -6.0)
        clip_gradients(layer, limit, torch.tensor(7.0))
        assert torch.equal(layer.weight.grad, torch.tensor([[2.0, 3.0]]))
        assert torch.equal(layer.bias.grad, torch.tensor([-6.0]))

"""The optimizers' groups, their rates, and the norm of all gradients together."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from detres.engine.optimizers import (
    adamw,
    clip_gradients,
    gradient_norm,
    restore,
    set_rate,
    sgd,
)


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


def stepped(kind: str, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A small network after two steps of an optimizer, in channels last."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(
        memory_format=torch.channels_last
    )
    optimizer = (
        adamw(model, weight_decay=0.01)
        if kind == "adamw"
        else sgd(model, momentum=0.9, weight_decay=1e-3)
    )
    for _ in range(2):
        step(model, optimizer)
    return model, optimizer


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    set_rate(optimizer, 0.1)
    optimizer.zero_grad()
    images = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    model(images.to(memory_format=torch.channels_last)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_restored_optimizer_goes_on_as_the_other_whatever_the_layout_was(kind, layout):
    model, optimizer = stepped(kind, seed=1)
    saved = copy.deepcopy(optimizer.state_dict())
    for kept in saved["state"].values():
        for name, value in kept.items():
            if value.dim() == 4:
                kept[name] = value.contiguous(memory_format=layout)
    other, restored = stepped(kind, seed=2)
    other.load_state_dict(model.state_dict())
    restore(restored, saved, steps=1)
    for net, optim in ((model, optimizer), (other, restored)):
        step(net, optim)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def wrong_states() -> list[tuple[str, str, object]]:
    """(what is said, where, value) of states that do not fit."""
    buffer = ("state", 0, "momentum_buffer")
    return [
        (
            r"momentum_buffer of parameter 0 is torch.float32 \(4, 3, 3\)",
            buffer,
            torch.ones(4, 3, 3),
        ),
        (
            r"momentum_buffer of parameter 0 is torch.float64",
            buffer,
            torch.ones(4, 3, 3, 3).double(),
        ),
        (r"momentum_buffer of parameter 0 is 7, expected", buffer, 7),
        (r"state of parameter 9, expected 0\.\.3", ("state", 9), {}),
        (r"state of parameter True", ("state", True), {}),
        (r"state of parameter 1: \['x'\]", ("state", 1), {"x": torch.ones(4)}),
        ("momentum of group 0 is 0.5, not 0.9", ("param_groups", 0, "momentum"), 0.5),
        ("momentum of group 0 is '0.9'", ("param_groups", 0, "momentum"), "0.9"),
        ("groups of parameters", ("param_groups", 0, "params"), [3]),
        ("groups of parameters", ("param_groups",), []),
    ]


@pytest.mark.parametrize(("said", "where", "value"), wrong_states())
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(said, where, value):
    _, optimizer = stepped("sgd", seed=1)
    before = copy.deepcopy(optimizer.state_dict())
    saved = copy.deepcopy(before)
    place: object = saved
    for key in where[:-1]:
        place = place[key]
    if where == ("state", True):  # which is equal to 1
        del place[1]
    place[where[-1]] = value
    with pytest.raises(ValueError, match=said):
        restore(optimizer, saved, steps=1)
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]
    for index, kept in before["state"].items():
        now = optimizer.state_dict()["state"][index]
        assert torch.equal(now["momentum_buffer"], kept["momentum_buffer"])


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("kept", [{}, "gone"])
def test_a_parameter_of_which_nothing_is_kept_is_refused_after_the_first_step(kind, kept):
    _, optimizer = stepped(kind, seed=1)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"].pop(2) if kept == "gone" else saved["state"].update({2: kept})
    with pytest.raises(ValueError, match=r"after step 7 nothing is kept of parameter 2 \(1 of 4"):
        restore(optimizer, saved, steps=7)
    restore(optimizer, {**saved, "state": {}}, steps=0)
    assert optimizer.state_dict()["state"] == {}


def test_sgd_without_momentum_keeps_nothing():
    model = nn.Conv2d(3, 2, 3)
    optimizer = sgd(model, momentum=0.0, weight_decay=0.0)
    step(model, optimizer)
    restore(optimizer, copy.deepcopy(optimizer.state_dict()), steps=1)


def test_the_scalar_step_of_adamw_is_checked():
    _, optimizer = stepped("adamw", seed=1)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][2]["step"] = torch.ones(2)
    with pytest.raises(ValueError, match=r"step of parameter 2 is .* expected torch.float32 \(\)"):
        restore(optimizer, saved, steps=1)

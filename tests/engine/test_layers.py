"""A few numbers of what layers put out and of gradients, beside values by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from detres.engine.layers import Statistics, gradient_statistics, watched


def test_statistics_are_of_the_finite_values():
    tensor = torch.tensor([[1.0, math.nan, 3.0], [math.inf, 5.0, -math.inf]])
    found = Statistics.of("a", tensor)
    assert (found.name, found.shape, found.nonfinite) == ("a", (2, 3), 3)
    assert (found.min, found.max, found.mean) == (1.0, 5.0, 3.0)
    assert found.std == pytest.approx(math.sqrt(8 / 3))


@pytest.mark.parametrize(("values", "nonfinite"), [([], 0), ([math.nan, math.inf], 2)])
def test_of_no_finite_value_there_are_none(values: list[float], nonfinite: int):
    found = Statistics.of("a", torch.tensor(values))
    assert (found.min, found.max, found.mean, found.std) == (None,) * 4
    assert found.nonfinite == nonfinite


def test_whole_numbers_and_half_precision_do_not_overflow():
    assert Statistics.of("a", torch.tensor([True, False])).mean == 0.5
    assert Statistics.of("a", torch.full((9,), 60000, dtype=torch.float16)).mean == 60000
    assert Statistics.of("a", torch.tensor([1e30, -1e30])).std == pytest.approx(1e30)


@dataclass(frozen=True)
class Maps:
    first: Tensor
    others: dict[str, Tensor]


class Branching(nn.Module):
    """Calls one part twice, and returns tensors in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(2, 2, bias=False)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Maps:
        once = self.part(x)
        return Maps(once, {"twice": self.part(once), "list": [once.log()]})


def test_every_call_is_noted_in_its_order_and_only_within():
    model = Branching()
    with torch.no_grad():
        model.part.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, -1.0]]))
    with watched(model) as found:
        model(torch.tensor([[1.0, 1.0]]))
    assert [each.name for each in found] == ["part", "part", "model", "model", "model"]
    assert [each.max for each in found] == [2, 4, 2, 4, pytest.approx(math.log(2))]
    assert [each.nonfinite for each in found] == [0, 0, 0, 0, 1]
    before = len(found)
    model(torch.ones(1, 2))
    assert len(found) == before
    with pytest.raises(RuntimeError), watched(model):
        model(torch.ones(1, 3))
    assert not any(module._forward_hooks for module in model.modules())


def test_gradients_of_parameters_that_have_one():
    model = Branching()
    assert gradient_statistics(model) == []
    model.part.weight.grad = torch.tensor([[1.0, 2.0], [3.0, math.inf]])
    (found,) = gradient_statistics(model)
    assert (found.name, found.mean, found.nonfinite) == ("part.weight", 2.0, 1)

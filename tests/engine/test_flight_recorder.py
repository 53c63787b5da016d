"""What is kept of a step that is not finite, enough to repeat it, and what its message names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from detres.engine.flight_recorder import NonFiniteLossError
from tests.helpers import make_target

IMAGES = SimpleNamespace(ids=(7, "b.jpg"))


def test_the_record_has_the_step_as_plain_values():
    target = make_target([[1, 2, 3, 4]], [2], image_id=7)
    terms = {"loss_a": torch.tensor(math.inf), "loss_b": torch.tensor(0.5, requires_grad=True)}
    error = NonFiniteLossError(nn.Linear(1, 1), terms, [(IMAGES, [target])], step=4, lr=0.25)
    assert error.record == {
        "step": 4,
        "lr": 0.25,
        "terms": {"loss_a": math.inf, "loss_b": 0.5},
        "images": [7, "b.jpg"],
        "targets": [
            {
                "image_id": 7,
                "boxes": [[1.0, 2.0, 3.0, 4.0]],
                "labels": [2],
                "crowd": [False],
                "difficult": [False],
            }
        ],
    }
    assert str(error) == (
        "non-finite loss in step 5: loss_a = inf; images 7, b.jpg; lr 0.25. Nothing was saved "
        "after it"
    )


@dataclass(frozen=True)
class ClassesOfABatch:
    labels: Tensor
    weights: Tensor | None = None


def test_targets_of_a_whole_batch_are_plain_too():
    terms, targets = {"loss": torch.tensor(math.nan)}, ClassesOfABatch(torch.tensor([3, 1]))
    error = NonFiniteLossError(nn.Linear(1, 1), terms, [(IMAGES, targets)], step=0, lr=1.0)
    assert error.record["targets"] == [{"labels": [3, 1], "weights": None}]
    tensor = NonFiniteLossError(nn.Linear(1, 1), terms, [(IMAGES, torch.ones(2))], step=0, lr=1.0)
    assert tensor.record["targets"] == [[1.0, 1.0]]
    nothing = NonFiniteLossError(
        nn.Linear(1, 1), terms, [(SimpleNamespace(ids=()), [])], step=0, lr=1.0
    )
    assert (nothing.record["images"], nothing.record["targets"]) == ([], [])


def test_a_gradient_is_named_by_its_parameter_and_only_four_of_many():
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(4)))
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, math.inf if number % 7 else 1.0)
    model[3].bias.grad = None
    terms = {"loss": torch.tensor(1.0)}
    error = NonFiniteLossError(model, terms, [(IMAGES, [])], step=0, lr=1.0)
    assert str(error).startswith(
        "finite loss but non-finite gradient in step 1: 0.bias, 1.weight, 1.bias, 2.weight and 2 "
        "more; images 7"
    )

"""A model in eval mode for a while, and as it was afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detres.eval_mode import evaluating


@pytest.mark.parametrize("training", [True, False])
def test_the_state_is_put_back_and_within_nothing_learns(training: bool) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train(training)
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert model(torch.ones(1, 2)).is_inference()
        with evaluating(model):
            pass
        assert not model.training
    assert all(module.training == training for module in model.modules())
    assert model(torch.ones(1, 2)).requires_grad


def test_also_after_an_error() -> None:
    model = nn.Dropout(0.5)
    with pytest.raises(KeyError), evaluating(model):
        raise KeyError
    assert model.training
    assert not torch.is_inference_mode_enabled()


def test_a_part_that_is_in_eval_mode_stays_so_inside_a_whole_that_learns() -> None:
    part = nn.BatchNorm1d(2)
    whole = nn.Sequential(nn.Linear(2, 2), part)
    with evaluating(part):
        with evaluating(whole):
            assert not whole.training
        assert (whole.training, whole[0].training, part.training) == (True, True, False)
    assert part.training

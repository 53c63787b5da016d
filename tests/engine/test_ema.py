"""The moving average of weights: by hand, its warm-up, exactly saved, and the model as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detres.engine.ema import WeightAverage, having
from tests.engine.regression import same_tensors


def normed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(
        memory_format=torch.channels_last
    )


def learn(model: nn.Module, step: int) -> None:
    """Change every parameter and every statistic of batch norm."""
    torch.manual_seed(step)
    model.train()
    model(torch.randn(2, 3, 5, 5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape)


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_three_steps_by_hand():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    average = WeightAverage(model, 0.25)
    expected = 1.0
    for step, value in enumerate((2.0, 4.0, 8.0), start=1):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update(model, step)
        keeps = (2 / 11, 3 / 12, 0.25)[step - 1]  # 2 / 11 < 0.25 = 3 / 12 < 4 / 13
        expected = keeps * expected + (1 - keeps) * value
        assert average.tensors["weight"].item() == pytest.approx(expected, rel=1e-6)
    assert model.weight.item() == 8.0


def test_it_is_the_average_that_pytorch_computes_once_the_warm_up_is_over():
    model = normed()
    ours = WeightAverage(model, 0.9)
    theirs = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    theirs.n_averaged += 1  # its first update would copy
    for step in range(1000, 1005):
        learn(model, step)
        ours.update(model, step)
        theirs.update_parameters(model)
    for name, tensor in theirs.module.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(ours.tensors[name], tensor)


def test_statistics_of_batch_norm_are_averaged_and_its_counter_is_copied():
    model = normed()
    average = WeightAverage(model, 0.5)
    before = tensors_of(model)
    learn(model, 1)
    learn(model, 2)
    average.update(model, 50)
    now = model.state_dict()
    mean = (before["1.running_mean"] + now["1.running_mean"]) / 2
    torch.testing.assert_close(average.tensors["1.running_mean"], mean)
    assert average.tensors["1.num_batches_tracked"].item() == 2


def test_early_on_the_first_weights_are_soon_forgotten():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(100.0)
    slow = WeightAverage(model, 0.9999)
    with torch.no_grad():
        model.weight.fill_(0.0)
    for step in range(1, 11):
        slow.update(model, step)
    share = 1.0
    for step in range(1, 11):
        share *= (1 + step) / (10 + step)
    assert slow.tensors["weight"].item() == pytest.approx(100 * share, rel=1e-5)
    assert share < 1e-4


def test_restored_it_goes_on_bit_for_bit():
    model = normed()
    straight = WeightAverage(model, 0.97)
    for step in range(1, 4):
        learn(model, step)
        straight.update(model, step)
    saved = {name: tensor.clone() for name, tensor in straight.state().items()}
    assert all(tensor.is_contiguous() for tensor in saved.values())
    again = WeightAverage(normed(), 0.97)
    again.restore(saved)
    learn(model, 4)
    straight.update(model, 4)
    again.update(model, 4)
    assert same_tensors(again.tensors, straight.tensors)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda saved: saved.pop("1.bias"), "'1.bias' is missing, or should be"),
        (lambda saved: saved.update(more=torch.ones(1)), "'more' is missing, or should be"),
        (lambda saved: saved.update({"1.bias": torch.ones(5)}), r"1.bias is torch.float32 \(5,\)"),
        (lambda saved: saved.update({"1.bias": torch.ones(4).double()}), "1.bias is torch.float64"),
    ],
)
def test_tensors_of_another_model_are_refused_and_nothing_is_changed(change, said):
    average = WeightAverage(normed(), 0.9)
    before = {name: tensor.clone() for name, tensor in average.tensors.items()}
    saved = {name: torch.zeros_like(tensor) for name, tensor in average.tensors.items()}
    change(saved)
    with pytest.raises(ValueError, match=said):
        average.restore(saved)
    assert same_tensors(average.tensors, before)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, float("nan")])
def test_a_decay_is_between_0_and_1(decay):
    with pytest.raises(ValueError, match="expected between 0 and 1"):
        WeightAverage(nn.Linear(1, 1), decay)


def test_a_model_has_other_weights_for_a_while_also_where_that_ends_in_an_error():
    model = normed()
    own, other = (
        tensors_of(model),
        {name: torch.full_like(tensor, 7) for name, tensor in model.state_dict().items()},
    )
    weight = model[0].weight
    with having(model, other):
        assert same_tensors(model.state_dict(), other)
        assert model[0].weight is weight  # which the optimizer holds
    assert same_tensors(model.state_dict(), own)
    with pytest.raises(ZeroDivisionError), having(model, other):
        1 / 0  # noqa: B018
    assert same_tensors(model.state_dict(), own)
    with pytest.raises(KeyError), having(model, {"0.weight": other["0.weight"]}):
        pass
    assert same_tensors(model.state_dict(), own)

"""fp16: losses are scaled, gradients are not, and a step that overflows is left out."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from detres.engine.flight_recorder import NonFiniteLossError
from detres.engine.probes import precision_failure
from detres.engine.scaling import restore_scaler, scaler_of
from detres.engine.schedule import Schedule
from tests.engine.regression import batches, poisoned, same_tensors
from tests.engine.test_loop import Run, same_run

CPU = torch.device("cpu")


def scaler(scale: float = 2.0**16, interval: int = 2000) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=interval)


def overflowing(model: nn.Module, *passes: int) -> None:
    """Let the gradients of these backward passes, counted from 0, be infinite."""
    seen = iter(range(1000))
    model.linear.bias.register_hook(lambda g: g * math.inf if next(seen) in passes else g)


@pytest.mark.parametrize("clip", [None, 0.1])
def test_a_scale_that_is_a_power_of_two_changes_no_bit(tmp_path, clip):
    plain, scaled = Run(tmp_path / "plain"), Run(tmp_path / "scaled", scaler=scaler())
    for run in (plain, scaled):
        run.fit(clip_grad_norm=clip)
    assert same_run(plain, scaled)
    norms = [[each["grad_norm"] for each in run.records("train")] for run in (plain, scaled)]
    assert norms[0] == norms[1]


def test_fp16_is_of_the_forward_pass_and_not_of_the_weights(tmp_path):
    run, dtypes = Run(tmp_path, steps=1, scaler=scaler()), set()
    run.model.linear.register_forward_hook(lambda _m, _i, output: dtypes.add(output.dtype))
    run.fit(schedule=Schedule(lr=0.05, steps=1), precision="fp16")
    assert dtypes == {torch.float16}
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}


def test_a_step_that_overflows_is_left_out_and_the_scale_halved(tmp_path):
    run = Run(tmp_path, steps=4, scaler=scaler(8.0))
    overflowing(run.model, 1)
    weights = []
    before = run.model.register_forward_pre_hook(
        lambda model, _: weights.append(model.linear.weight.detach().clone())
    )
    run.fit(log_every=1)
    before.remove()
    assert run.scaler.get_scale() == 4.0
    changed = [not torch.equal(*pair) for pair in itertools.pairwise(weights)]
    assert changed == [True, False, True]
    assert [each["step"] for each in run.records("train")] == [1, 2, 3, 4]
    assert [each["grad_norm"] == 0 for each in run.records("train")] == [False, True, False, False]


def test_gradients_that_are_infinite_at_a_scale_of_one_are_an_error(tmp_path):
    run = Run(tmp_path, scaler=scaler(4.0))
    overflowing(run.model, *range(10))
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    with pytest.raises(NonFiniteLossError, match=r"non-finite gradient in step 3: linear\.bias"):
        run.fit()
    assert run.scaler.get_scale() == 1.0
    assert same_tensors(before, run.model.state_dict())


def test_a_loss_that_is_not_finite_is_one_at_any_scale(tmp_path):
    with pytest.raises(NonFiniteLossError, match="non-finite loss in step 3: loss_fit = nan"):
        Run(tmp_path, scaler=scaler()).fit(poisoned(at=2))


def test_a_resumed_scale_goes_on_where_it_was(tmp_path):
    straight = Run(tmp_path / "straight", scaler=scaler(8.0, interval=3))
    straight.fit()
    assert straight.scaler.get_scale() == 64.0
    first = Run(tmp_path / "resumed", scaler=scaler(8.0, interval=3))
    with pytest.raises(ValueError, match="ended"):
        first.fit(batches(0, 5), save_every=5)
    state = first.scaler.state_dict()
    second = first.resumed()
    second.scaler = scaler()
    restore_scaler(second.scaler, state)
    second.fit()
    assert same_run(straight, second)
    assert second.scaler.state_dict() == straight.scaler.state_dict()


@pytest.mark.parametrize(
    "change",
    [
        *({"scale": math.inf}, {"scale": 0.5}, {"scale": "1"}, {"_growth_tracker": -1}),
        *({"growth_interval": 1.5}, {"backoff_factor": 2.0}, {"more": 1}),
    ],
)
def test_what_is_no_state_of_a_scale_is_refused(change: dict[str, object]) -> None:
    own = scaler()
    own.scale(Tensor([1.0]))
    with pytest.raises(ValueError, match=r" is no | are no "):
        restore_scaler(own, own.state_dict() | change)
    assert own.get_scale() == 2.0**16


def test_only_fp16_is_scaled_and_only_on_a_gpu() -> None:
    assert [scaler_of(each, CPU).is_enabled() for each in ("fp32", "bf16", "fp16")] == [
        *(False, False, True)
    ]
    assert precision_failure("fp16", CPU) == "fp16 needs a GPU: bf16 is for processors"
    assert precision_failure("fp16", torch.device("cuda")) is None
    assert precision_failure("bf16", CPU) is None

"""The loop: exact resume, clean interruption, no spoiled weights, and saves and evaluations at the
right steps.
"""

from __future__ import annotations

import io
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detres.engine.distributed import Group
from detres.engine.ema import WeightAverage
from detres.engine.flight_recorder import FlightRecorder, NonFiniteLossError
from detres.engine.log import RunLog
from detres.engine.loop import LoopSettings, fit
from detres.engine.meter import Meter
from detres.engine.optimizers import sgd
from detres.engine.progress import Progress
from detres.engine.schedule import Schedule
from detres.engine.stop import Interrupted
from detres.losses import Losses
from detres.runs.state import load_state, save_state
from tests.engine.regression import (
    Batch,
    Regression,
    batches,
    losses_of,
    poisoned,
    same_tensors,
    same_training,
)

CPU = torch.device("cpu")


@dataclass
class Run:
    """One training of a Regression in `folder`, and what `fit` asked of it.

    metric: step -> the deciding number of an evaluation there.
    """

    folder: Path
    steps: int = 10
    progress: Progress = field(default_factory=Progress)
    meter: Meter = field(default_factory=Meter)
    metric: Callable[[int], float | None] = lambda step: float(step)
    average: WeightAverage | None = None
    recorder: FlightRecorder = field(default_factory=FlightRecorder)
    scaler: torch.amp.GradScaler = field(
        default_factory=lambda: torch.amp.GradScaler(enabled=False)
    )
    asked: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(5)
        self.folder.mkdir(exist_ok=True)
        self.model = Regression()
        self.optimizer = sgd(self.model, momentum=0.9, weight_decay=1e-3)

    def resumed(self) -> Run:
        """A fresh model and optimizer, filled from last.pt."""
        state = load_state(self.folder / "last.pt", ("model", "optimizer", "progress"))
        progress = Progress.from_dict(state["progress"])
        run = Run(self.folder, self.steps, progress, metric=self.metric)
        nn.init.zeros_(run.model.linear.weight)
        run.model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        return run

    def saw(self, parts: list) -> None:
        self.seen = [*getattr(self, "seen", []), *(images.ids[0] for images, _ in parts)]

    def save(self) -> None:
        self.asked.append(("save", self.progress.step))
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": self.progress.to_dict(),
        }
        save_state(self.folder / "last.pt", state)

    def evaluate(self) -> None:
        self.asked.append(("evaluate", self.progress.step))
        metric = self.metric(self.progress.step)
        self.progress.see_metric(metric)
        if self.progress.is_over(*self.end):
            self.progress.whole = self.progress.step
        self.log.evaluation(self.progress.step, {"AP": metric})
        self.save()

    def fit(
        self,
        given: Iterable | None = None,
        schedule: Schedule | None = None,
        **settings: object,
    ) -> None:
        """Train on the batches `given`, by default those of the steps that are not done."""
        self.end = self.steps, settings.get("early_stopping", 0)
        self.log = RunLog(
            self.folder / "metrics.jsonl",
            self.folder / "tensorboard",
            console=io.StringIO(),
            steps=self.steps,
            progress=self.progress,
        )
        try:
            fit(
                self.model,
                self.optimizer,
                batches(self.progress.step, self.steps) if given is None else given,
                schedule=schedule
                or Schedule(lr=0.05, steps=self.steps, milestones=(7,), warmup_steps=3),
                settings=LoopSettings(**{"seed": 3, "log_every": 2, "save_every": 100} | settings),
                run=self,
                device=CPU,
                group=Group(),
            )
        finally:
            self.log.close()

    def evaluated(self) -> list[int]:
        return [step for what, step in self.asked if what == "evaluate"]

    def records(self, kind: str) -> list[dict]:
        lines = [
            json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()
        ]
        return [line for line in lines if line["kind"] == kind]


def same_run(one: Run, other: Run) -> bool:
    return same_training((one.model, one.optimizer), (other.model, other.optimizer))


def test_a_step_is_sgd_with_momentum_done_by_hand(tmp_path):
    run = Run(tmp_path, steps=2)
    weight, bias = run.model.linear.weight.detach().clone(), run.model.linear.bias.detach().clone()
    velocity, bias_velocity = torch.zeros_like(weight), torch.zeros_like(bias)
    run.fit(schedule=Schedule(lr=0.1, steps=2, milestones=(1,)))
    for step, (batch, targets) in enumerate(batches(0, 2)):
        torch.manual_seed(3 * 1_000_003 + step)
        rows = torch.randperm(8)[:4]
        values, wanted = batch.values[rows], torch.stack(targets)[rows]
        error = values @ weight[0] + bias - wanted
        velocity = 0.9 * velocity + (2 * error @ values / 4 + 0.1 * weight.sign() + 1e-3 * weight)
        bias_velocity = 0.9 * bias_velocity + (2 * error.mean() + 1e-3 * bias)
        weight, bias = (
            weight - (0.1, 0.01)[step] * velocity,
            bias - 2 * (0.1, 0.01)[step] * bias_velocity,
        )
    torch.testing.assert_close(run.model.linear.weight.detach(), weight)
    torch.testing.assert_close(run.model.linear.bias.detach(), bias)


@pytest.mark.parametrize("stop_at", [1, 5, 9])
def test_a_resumed_run_equals_a_straight_one_bit_for_bit(tmp_path, stop_at):
    straight = Run(tmp_path / "straight")
    straight.fit()
    first = Run(tmp_path / "resumed")
    save = first.save
    first.save = lambda: save() if first.progress.step == stop_at else None
    first.fit(save_every=stop_at)
    second = first.resumed()
    assert second.progress.step == stop_at
    second.fit()
    assert same_run(straight, second)


def test_training_fits_and_ends_with_an_evaluation(tmp_path):
    run = Run(tmp_path, steps=60)
    run.fit(schedule=Schedule(lr=0.02, steps=60), log_every=20)
    assert run.asked == [("save", 60), ("evaluate", 60), ("save", 60)]
    assert run.progress.evaluations == {60: 60.0}
    losses = [record["loss_fit"] for record in run.records("train")]
    assert losses[2] < 0.1 * losses[0]


def test_it_saves_every_so_often_and_before_and_after_every_evaluation(tmp_path):
    run = Run(tmp_path)
    run.fit(eval_every=2, save_every=3)
    assert run.evaluated() == [2, 4, 6, 8, 10]
    saved = [step for what, step in run.asked if what == "save"]
    assert saved == [2, 2, 3, 4, 4, 6, 6, 8, 8, 9, 10, 10]
    assert [event for event in run.asked if event[1] == 4] == [
        ("save", 4),
        ("evaluate", 4),
        ("save", 4),
    ]
    assert load_state(tmp_path / "last.pt", ("progress",))["progress"] == run.progress.to_dict()


def test_the_model_is_in_train_mode_in_every_step(tmp_path):
    run = Run(tmp_path)
    modes = []
    run.model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    run.model.eval()
    run.fit()
    assert modes == [True] * 10


def test_a_finished_run_is_left_alone(tmp_path):
    run = Run(tmp_path)
    run.fit()
    again = run.resumed()
    before = {name: tensor.clone() for name, tensor in again.model.state_dict().items()}
    again.fit(batches(10, 12))
    assert again.asked == []
    assert again.progress.step == 10
    assert same_tensors(before, again.model.state_dict())


def test_a_run_that_broke_off_in_its_last_evaluation_is_evaluated_without_a_step(tmp_path):
    run = Run(tmp_path, steps=4, metric=lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.fit()
    run.metric = float
    again = run.resumed()
    before = {name: tensor.clone() for name, tensor in again.model.state_dict().items()}
    untouched = batches(4, 6)
    again.fit(untouched)
    assert again.asked == [("evaluate", 4), ("save", 4)]
    assert same_tensors(before, again.model.state_dict())
    assert next(untouched)[0].ids[0] == "4-0"  # no batch was asked for


def test_a_run_that_broke_off_in_an_evaluation_is_evaluated_first_of_all(tmp_path):
    class Crash(Exception):
        pass

    def crash(_: int) -> float:
        raise Crash

    run = Run(tmp_path, metric=crash)
    with pytest.raises(Crash):
        run.fit(eval_every=4)
    run.metric = float
    again = run.resumed()
    assert again.progress.step == 4
    again.fit(eval_every=4)
    assert again.evaluated() == [4, 8, 10]


def test_a_stop_where_an_evaluation_is_due_leaves_it_to_the_resumed_run(tmp_path):
    def interrupting() -> Iterator:
        for step, batch in enumerate(batches(0, 10)):
            if step == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    run = Run(tmp_path)
    with pytest.raises(Interrupted):
        run.fit(interrupting(), eval_every=4)
    assert run.asked == [("save", 4)]
    again = run.resumed()
    again.fit(eval_every=4)
    assert again.asked[0] == ("evaluate", 4)


@pytest.mark.parametrize("steps", [10, 4])  # on the way, and the last one
def test_a_stop_during_an_evaluation_ends_after_it(tmp_path, steps):
    def metric(step: int) -> float:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return float(step)

    run = Run(tmp_path, steps, metric=metric)
    with pytest.raises(Interrupted) as stopped:
        run.fit(eval_every=2)
    assert (stopped.value.step, run.progress.step) == (4, 4)
    assert run.asked[-2:] == [("evaluate", 4), ("save", 4)]
    run.metric = float
    again = run.resumed()
    again.fit(eval_every=2)
    assert [record["step"] for record in again.records("eval")] == list(range(2, steps + 1, 2))


def test_a_stop_during_the_evaluation_that_was_left_over(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(ValueError, match="ended"):
        run.fit(batches(0, 4), save_every=4)

    def metric(step: int) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        return float(step)

    run.metric = metric
    again = run.resumed()
    with pytest.raises(Interrupted):
        again.fit(eval_every=4)
    assert again.asked == [("evaluate", 4), ("save", 4)]


class Guessing(Regression):
    """Its training error is 0.5 for ever."""

    def forward(self, batch: Batch, targets: list[Tensor]) -> Losses:
        error = {"top1_error": torch.tensor(0.5)}
        return super().forward(batch, targets) | Losses(
            error, dict.fromkeys(error, 1), watched=frozenset(error)
        )


@pytest.mark.parametrize(
    ("threshold", "rates"), [(0.991, [0.005] * 2 + [0.05] * 2), (0.4, [0.005] * 4)]
)  # means 0.995, 0.99005, ...
def test_the_warm_up_that_waits_for_the_error_sees_the_model_s(tmp_path, threshold, rates):
    run = Run(tmp_path, steps=4)
    run.model = Guessing()
    run.optimizer = sgd(run.model, momentum=0.9, weight_decay=0.0)
    run.fit(
        schedule=Schedule(lr=0.05, steps=4, warmup_factor=0.1, warmup_until_error=threshold),
        log_every=1,
    )
    assert [record["lr"] for record in run.records("train")] == pytest.approx(rates)


def test_a_plateau_lowers_the_rate_and_a_resumed_run_keeps_it_low(tmp_path):
    schedule = Schedule(lr=0.05, steps=10, shape="plateau", patience=2)
    rates = {}
    for name, stops in (("straight", ()), ("resumed", (5, 7))):
        run = Run(tmp_path / name, metric=lambda _: 0.3)
        for stop in stops:
            with pytest.raises(ValueError, match="ended"):
                run.fit(batches(run.progress.step, stop), schedule, eval_every=1, log_every=1)
            run = run.resumed()
        run.fit(schedule=schedule, eval_every=1, log_every=1)
        rates[name] = [record["lr"] for record in run.records("train")]
    assert rates["straight"] == pytest.approx(
        [0.05] * 3 + [0.005] * 2 + [0.0005] * 2 + [0.00005] * 2 + [0.000005]
    )
    assert rates["resumed"] == rates["straight"]


def test_batches_that_end_early_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="ended after step 4, expected 10"):
        Run(tmp_path).fit(batches(0, 4))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_saves_the_step_it_finished_and_goes_on_exactly(tmp_path, number):
    def interrupting() -> Iterator:
        for step, batch in enumerate(batches(0, 10)):
            if step == 4:
                os.kill(os.getpid(), number)
            yield batch

    before = signal.getsignal(number)
    run = Run(tmp_path / "run")
    with pytest.raises(Interrupted) as stopped:
        run.fit(interrupting())
    assert stopped.value.step == 5
    assert run.asked == [("save", 5)]
    assert signal.getsignal(number) is before
    straight, second = Run(tmp_path / "straight"), run.resumed()
    straight.fit()
    second.fit()
    assert same_run(straight, second)


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def impatient() -> Iterator:
        for batch in batches(0, 10):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            yield batch

    run = Run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run.fit(impatient())
    assert run.asked == []


def test_a_non_finite_loss_names_term_and_images_and_spoils_nothing(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(
        NonFiniteLossError,
        match=r"non-finite loss in step 6: loss_fit = nan; images 5-0, 5-1, .*; lr 0\.05\.",
    ):
        run.fit(poisoned(at=5), save_every=5)
    assert run.asked == [("save", 5)]
    assert same_tensors(
        run.model.state_dict(), load_state(tmp_path / "last.pt", ("model",))["model"]
    )
    assert [record.step for record in run.recorder.records] == [0, 1, 2, 3, 4, 5]
    last = run.recorder.records[-1]
    assert (last.step, last.lr, last.ids[7]) == (5, 0.05, "5-7")
    assert math.isnan(last.values["loss_fit"])
    assert last.values["loss_size"] > 0
    ((images, targets),) = run.recorder.parts
    assert images.ids == tuple(last.ids)
    assert [math.isnan(target) for target in targets] == [True] * 8


class RootAtZero(Regression):
    """sqrt has an infinite slope at 0: the loss is finite, its gradient is not."""

    def forward(self, batch: Batch, targets: list[Tensor]) -> Losses:
        losses = super().forward(batch, targets)
        return losses_of(
            losses.sums["loss_fit"],
            (self.linear.bias - self.linear.bias.detach()).abs().sqrt().sum(),
        )


def test_a_non_finite_gradient_is_caught_before_the_weights_are_touched(tmp_path):
    run = Run(tmp_path)
    run.model = RootAtZero()
    run.optimizer = sgd(run.model, momentum=0.9, weight_decay=0.0)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    with pytest.raises(
        NonFiniteLossError,
        match=r"finite loss but non-finite gradient in step 1: linear\.bias; images 0-0",
    ):
        run.fit()
    assert same_tensors(before, run.model.state_dict())
    assert run.asked == []


def test_clipping_bounds_the_step_and_the_record_keeps_the_true_norm(tmp_path):
    run = Run(tmp_path, steps=1)
    run.optimizer = torch.optim.SGD(run.model.parameters(), lr=0.0)  # no lr_scale: 1
    before = torch.cat(
        [parameter.detach().flatten().clone() for parameter in run.model.parameters()]
    )
    run.fit(schedule=Schedule(lr=0.5, steps=1), clip_grad_norm=0.1)
    after = torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.05, rel=1e-4)
    assert run.records("train")[0]["grad_norm"] > 1


def test_records_are_means_over_the_steps_since_the_last_one(tmp_path):
    every, second = Run(tmp_path / "every", steps=5), Run(tmp_path / "second", steps=5)
    every.fit(log_every=1)
    second.fit(log_every=2)
    single = {record["step"]: record for record in every.records("train")}
    assert [record["step"] for record in second.records("train")] == [2, 4, 5]
    for record, steps in zip(second.records("train"), ((1, 2), (3, 4), (5,)), strict=True):
        for name in ("loss", "loss_fit", "loss_size", "grad_norm"):
            assert record[name] == pytest.approx(
                sum(single[step][name] for step in steps) / len(steps), rel=1e-5
            )
        assert record["loss"] == pytest.approx(record["loss_fit"] + record["loss_size"], rel=1e-5)
    schedule = Schedule(lr=0.05, steps=5, milestones=(7,), warmup_steps=3)
    assert [record["lr"] for record in every.records("train")] == [
        schedule.at(Progress(step)) for step in range(5)
    ]


def test_times_tell_waiting_for_data_from_computing_and_leave_out_evaluation(tmp_path):
    def slow() -> Iterator:
        for batch in batches(0, 4):
            time.sleep(0.05)
            yield batch

    run = Run(tmp_path, steps=4)

    def metric(_: int) -> float:
        time.sleep(1.0)
        return 0.0

    run.metric = metric
    run.fit(slow(), eval_every=2, log_every=2)
    for record in run.records("train"):
        assert 0.05 <= record["data_s"] < 0.45
        assert record["step_s"] < 0.45
        assert record["images_per_s"] == pytest.approx(8 / (record["data_s"] + record["step_s"]))


def test_bf16_runs_the_forward_in_bf16_and_keeps_fp32_weights(tmp_path):
    run = Run(tmp_path, steps=3)
    dtypes = set()
    run.model.linear.register_forward_hook(
        lambda _module, _inputs, output: dtypes.add(output.dtype)
    )
    run.fit(precision="bf16")
    assert dtypes == {torch.bfloat16}
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float32}
    assert run.records("train")[-1]["loss"] > 0


def test_training_ends_early_after_evaluations_without_a_better_one(tmp_path):
    run = Run(tmp_path, metric={2: 0.5, 4: 0.4, 6: 0.5, 8: 0.9}.get)
    run.fit(eval_every=2, early_stopping=2)
    assert run.evaluated() == [2, 4, 6]
    assert run.progress.step == 6
    again = run.resumed()
    again.fit(eval_every=2, early_stopping=2)  # it is over
    assert again.asked == []
    again.fit(eval_every=2, early_stopping=3)
    assert again.evaluated() == [8, 10]


def test_an_early_end_that_was_left_over_comes_before_any_step(tmp_path):
    run = Run(tmp_path, metric={2: 0.5, 4: 0.4}.get)
    run.fit(batches(0, 4), Schedule(lr=0.05, steps=4), eval_every=2)
    run.progress.whole = None
    untouched = batches(4, 6)
    run.asked.clear()
    run.fit(untouched, eval_every=2, early_stopping=1)
    assert run.evaluated() == [4]
    assert next(untouched)[0].ids[0] == "4-0"


def test_the_moving_average_follows_and_changes_nothing(tmp_path):
    plain, averaged = Run(tmp_path / "plain"), Run(tmp_path / "averaged")
    averaged.average = WeightAverage(averaged.model, 0.5)
    by_hand, seen = WeightAverage(averaged.model, 0.5), []
    step = averaged.optimizer.step

    def and_note(*arguments: object, **named: object) -> object:
        done = step(*arguments, **named)
        seen.append({name: each.clone() for name, each in averaged.model.state_dict().items()})
        return done

    averaged.optimizer.step = and_note
    plain.fit()
    averaged.fit()
    assert same_run(plain, averaged)
    model = Regression()
    for number, tensors in enumerate(seen, start=1):
        model.load_state_dict(tensors)
        by_hand.update(model, number)
    assert len(seen) == 10
    assert same_tensors(averaged.average.tensors, by_hand.tensors)

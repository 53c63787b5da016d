"""The loop: exact resume, clean interruption, no spoiled weights, and the right thing saved at the
right step.
"""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from detres.engine.checkpoint import load_state, save_state
from detres.engine.log import RunLog
from detres.engine.progress import Progress
from detres.engine.schedule import Schedule
from detres.engine.train import Interrupted, NonFiniteLossError, adamw, fit, sgd
from detres.structures import Target

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Batch:
    """Inputs (N, 3) with the ids of where they came from."""

    values: Tensor
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Batch:
        return Batch(self.values.to(device), self.ids)


@dataclass(frozen=True)
class Terms:
    loss_fit: Tensor
    loss_size: Tensor

    def total(self) -> Tensor:
        return self.loss_fit + 0.1 * self.loss_size

    def terms(self) -> dict[str, Tensor]:
        return {"loss_fit": self.loss_fit, "loss_size": self.loss_size}


class Regression(nn.Module):
    """Linear regression on a random half of each batch, so that resuming has randomness to
    repeat.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, batch: Batch, targets: list[Tensor]) -> Terms:
        chosen = torch.randperm(len(batch))[: max(1, len(batch) // 2)]
        error = self.linear(batch.values[chosen]).squeeze(1) - torch.stack(targets)[chosen]
        return Terms(error.square().mean(), self.linear.weight.abs().sum())


def batches(start: int, stop: int) -> Iterator[tuple[Batch, list[Tensor]]]:
    for step in range(start, stop):
        values = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        yield (
            Batch(values, tuple(f"{step}-{row}" for row in range(8))),
            list(values @ torch.tensor([1.0, -2.0, 3.0])),
        )


@dataclass
class Run:
    """One training of a Regression in `folder`; what is given to it is what `fit` would be
    given.
    """

    folder: Path
    steps: int = 10
    progress: Progress = field(default_factory=Progress)
    scores: Callable[[int], float | None] = lambda step: float(step)
    saved: list[tuple] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(5)
        self.folder.mkdir(exist_ok=True)
        self.model = Regression()
        self.optimizer = sgd(self.model, momentum=0.9, weight_decay=1e-3)

    def resumed(self) -> Run:
        """A fresh model and optimizer, filled from last.pt."""
        state = load_state(self.folder / "last.pt", ("model", "optimizer", "progress"))
        run = Run(self.folder, self.steps, Progress(**state["progress"]), self.scores)
        nn.init.zeros_(run.model.linear.weight)
        run.model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        return run

    def save_last(self, progress: Progress) -> None:
        self.saved.append(("last", progress.step))
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "progress": progress.to_dict(),
        }
        save_state(self.folder / "last.pt", state)

    def evaluate(self) -> dict[str, float | None]:
        self.saved.append(("eval", self.progress.step))
        self.model.eval()
        return {"AP": self.scores(self.progress.step)}

    def fit(self, **changed: object) -> dict[str, float | None]:
        log = RunLog(
            self.folder,
            console=io.StringIO(),
            steps=self.steps,
            start_step=self.progress.step,
            scored=self.progress.scores,
        )
        settings = {
            "model": self.model,
            "optimizer": self.optimizer,
            "batches": batches(self.progress.step, self.steps),
            "progress": self.progress,
            "schedule": Schedule(lr=0.05, steps=self.steps, milestones=(7,), warmup_steps=3),
            "evaluate": self.evaluate,
            "best_metric": "AP",
            "save_last": self.save_last,
            "save_best": lambda progress: self.saved.append(("best", progress.step)),
            "log": log,
            "device": CPU,
            "seed": 3,
            "log_every": 2,
            "eval_every": 0,
            "save_every": 100,
        }
        try:
            return fit(**settings | changed)
        finally:
            log.close()

    def records(self, kind: str) -> list[dict]:
        lines = [
            json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()
        ]
        return [line for line in lines if line["kind"] == kind]


def same_tensors(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def same_run(one: Run, other: Run) -> bool:
    momenta = [run.optimizer.state_dict()["state"] for run in (one, other)]
    return same_tensors(one.model.state_dict(), other.model.state_dict()) and all(
        torch.equal(momenta[0][key]["momentum_buffer"], momenta[1][key]["momentum_buffer"])
        for key in momenta[0]
    )


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
    first.fit(
        save_every=stop_at,
        batches=batches(0, 10),
        save_last=lambda p: first.save_last(p) if p.step == stop_at else None,
    )
    second = first.resumed()
    assert second.progress.step == stop_at
    second.fit()
    assert same_run(straight, second)


def test_training_fits_and_ends_with_an_evaluation(tmp_path):
    run = Run(tmp_path, steps=60)
    metrics = run.fit(schedule=Schedule(lr=0.02, steps=60), log_every=20)
    assert metrics == {"AP": 60.0}
    assert run.saved == [("last", 60), ("eval", 60), ("best", 60), ("last", 60)]
    losses = [record["loss_fit"] for record in run.records("train")]
    assert losses[2] < 0.1 * losses[0]


def test_evaluations_on_the_way_keep_the_best_and_the_last(tmp_path):
    scores = {2: float("nan"), 4: 0.5, 6: 0.4, 8: None, 10: 0.6}
    run = Run(tmp_path, scores=scores.get)
    run.fit(eval_every=2, save_every=3)
    assert [event for event in run.saved if event[0] == "best"] == [("best", 4), ("best", 10)]
    assert [step for what, step in run.saved if what == "last"] == [
        2,
        2,
        3,
        4,
        4,
        6,
        6,
        8,
        8,
        9,
        10,
        10,
    ]
    assert [event for event in run.saved if event[1] == 4] == [
        ("last", 4),
        ("eval", 4),
        ("best", 4),
        ("last", 4),
    ]
    assert [record["AP"] for record in run.records("eval")] == [None, 0.5, 0.4, None, 0.6]
    assert Progress(**load_state(tmp_path / "last.pt", ("progress",))["progress"]).best == 0.6


def test_a_best_value_of_zero_counts_and_must_be_exceeded(tmp_path):
    run = Run(tmp_path, scores=lambda _: 0.0)
    run.fit(eval_every=5)
    assert [event for event in run.saved if event[0] == "best"] == [("best", 5)]


def test_a_resumed_run_remembers_its_best(tmp_path):
    run = Run(tmp_path, progress=Progress(step=6, scores={4: 8.5, 6: 8.0}))
    run.fit(eval_every=2)
    assert [event for event in run.saved if event[0] == "best"] == [("best", 10)]


def test_the_model_is_in_train_mode_in_every_step(tmp_path):
    run = Run(tmp_path)
    modes = []
    run.model.register_forward_pre_hook(lambda module, _: modes.append(module.training))
    run.model.eval()
    run.fit(eval_every=3)
    assert modes == [True] * 10


def test_a_finished_run_is_scored_again_without_a_step(tmp_path):
    run = Run(tmp_path)
    run.fit()
    again = run.resumed()
    before = {name: tensor.clone() for name, tensor in again.model.state_dict().items()}
    assert again.fit() == {"AP": 10.0}
    assert again.saved == [("eval", 10)]
    assert same_tensors(before, again.model.state_dict())


def test_a_run_that_broke_off_in_an_evaluation_is_evaluated_first_of_all(tmp_path):
    class Crash(Exception):
        pass

    def crash() -> None:
        raise Crash

    run = Run(tmp_path)
    with pytest.raises(Crash):
        run.fit(eval_every=4, evaluate=crash)
    again = run.resumed()
    assert again.progress.step == 4
    again.fit(eval_every=4)
    assert [event for event in again.saved if event[0] == "eval"] == [
        ("eval", 4),
        ("eval", 8),
        ("eval", 10),
    ]


def test_a_stop_where_an_evaluation_is_due_leaves_it_to_the_resumed_run(tmp_path):
    def interrupting() -> Iterator:
        for step, batch in enumerate(batches(0, 10)):
            if step == 3:
                os.kill(os.getpid(), signal.SIGINT)
            yield batch

    run = Run(tmp_path)
    with pytest.raises(Interrupted):
        run.fit(batches=interrupting(), eval_every=4)
    assert run.saved == [("last", 4)]
    again = run.resumed()
    again.fit(eval_every=4)
    assert again.saved[0] == ("eval", 4)


def test_a_stop_during_an_evaluation_ends_after_it(tmp_path):
    run = Run(tmp_path)

    def evaluate() -> dict[str, float]:
        if run.progress.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return run.evaluate()

    for last, steps in ((False, 10), (True, 4)):
        run = Run(tmp_path / str(last), steps=steps)
        with pytest.raises(Interrupted):
            run.fit(eval_every=2, evaluate=evaluate)
        assert run.progress.step == 4
        assert run.saved[-2:] == [("best", 4), ("last", 4)]
        again = run.resumed()
        again.fit(eval_every=2)
        assert [record["step"] for record in again.records("eval")] == list(range(2, steps + 1, 2))


def test_a_stop_during_the_evaluation_that_was_left_over(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(ValueError, match="ended"):
        run.fit(batches=batches(0, 4), save_every=4)

    def evaluate() -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGINT)
        return again.evaluate()

    again = run.resumed()
    with pytest.raises(Interrupted):
        again.fit(eval_every=4, evaluate=evaluate)
    assert again.saved == [("eval", 4), ("best", 4), ("last", 4)]


def test_an_evaluation_that_was_logged_but_not_saved_is_logged_once(tmp_path):
    class Crash(Exception):
        pass

    def crash(_: Progress) -> None:
        raise Crash

    run = Run(tmp_path)
    with pytest.raises(Crash):
        run.fit(eval_every=4, save_best=crash)
    again = run.resumed()
    again.fit(eval_every=4)
    assert [record["step"] for record in again.records("eval")] == [4, 8, 10]


class Guessing(Regression):
    """Its training error is 0.5 for ever."""

    def forward(self, batch: Batch, targets: list[Tensor]) -> Terms:
        losses = super().forward(batch, targets)
        return TermsWithError(losses.loss_fit, losses.loss_size, torch.tensor(0.5))


@dataclass(frozen=True)
class TermsWithError(Terms):
    top1_error: Tensor

    def terms(self) -> dict[str, Tensor]:
        return {**super().terms(), "top1_error": self.top1_error}


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
        run = Run(tmp_path / name, scores=lambda _: 0.3)
        for stop in stops:
            with pytest.raises(ValueError, match="ended"):
                run.fit(
                    schedule=schedule,
                    eval_every=1,
                    log_every=1,
                    batches=batches(run.progress.step, stop),
                )
            run = run.resumed()
        run.fit(schedule=schedule, eval_every=1, log_every=1)
        rates[name] = [record["lr"] for record in run.records("train")]
    assert rates["straight"] == pytest.approx(
        [0.05] * 3 + [0.005] * 2 + [0.0005] * 2 + [0.00005] * 2 + [0.000005]
    )
    assert rates["resumed"] == rates["straight"]


def test_batches_that_end_early_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="ended after step 4, expected 10"):
        Run(tmp_path).fit(batches=batches(0, 4))


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
        run.fit(batches=interrupting())
    assert stopped.value.step == 5
    assert run.saved == [("last", 5)]
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
        run.fit(batches=impatient())
    assert run.saved == []


def poisoned(at: int) -> Iterator[tuple[Batch, list[Tensor]]]:
    for step, (batch, targets) in enumerate(batches(0, 10)):
        yield batch, [target * float("nan") for target in targets] if step == at else targets


def test_a_non_finite_loss_names_term_and_images_and_spoils_nothing(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(
        NonFiniteLossError,
        match=r"non-finite loss in step 6: loss_fit = nan; images 5-0, 5-1, .*; lr 0\.05\.",
    ):
        run.fit(batches=poisoned(at=5), save_every=5)
    assert run.saved == [("last", 5)]
    assert same_tensors(
        run.model.state_dict(), load_state(tmp_path / "last.pt", ("model",))["model"]
    )
    record = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (record["step"], record["images"][7], record["targets"]) == (5, "5-7", [None] * 8)
    assert record["terms"]["loss_fit"] is None
    assert record["terms"]["loss_size"] > 0


class RootAtZero(Regression):
    """sqrt has an infinite slope at 0: the loss is finite, its gradient is not."""

    def forward(self, batch: Batch, targets: list[Tensor]) -> Terms:
        losses = super().forward(batch, targets)
        return Terms(
            losses.loss_fit, (self.linear.bias - self.linear.bias.detach()).abs().sqrt().sum()
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
    assert run.saved == []


class Detector(Regression):
    """Takes detection targets; its loss is not a number."""

    def forward(self, batch: Batch, targets: list[Target]) -> Terms:
        return Terms(
            self.linear(batch.values).mean() * targets[0].boxes.sum(), self.linear.weight.sum()
        )


def test_the_boxes_of_a_non_finite_step_are_written_down(tmp_path):
    run = Run(tmp_path)
    run.model = Detector()
    boxes = torch.tensor([[1.0, 2.0, float("inf"), 4.0]])
    target = Target(7, boxes, torch.tensor([2]), torch.tensor([False]), torch.tensor([True]))
    with pytest.raises(NonFiniteLossError, match="images a"):
        run.fit(batches=iter([(Batch(torch.ones(1, 3), ("a",)), [target])]))
    (written,) = json.loads((tmp_path / "nonfinite.json").read_text())["targets"]
    assert written == {
        "image_id": 7,
        "boxes": [[1.0, 2.0, None, 4.0]],
        "labels": [2],
        "crowd": [False],
        "difficult": [True],
    }


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
        assert record["loss"] == pytest.approx(
            record["loss_fit"] + 0.1 * record["loss_size"], rel=1e-5
        )
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

    def evaluate() -> dict[str, float]:
        time.sleep(1.0)
        return {"AP": 0.0}

    run.fit(batches=slow(), evaluate=evaluate, eval_every=2, log_every=2)
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
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    assert layer.weight.item() == pytest.approx(
        2.0 * (1 - 0.1 * 0.5) - 0.1
    )  # the first step is lr, whatever the gradient
    assert layer.bias.item() == pytest.approx(bias + 0.1)

"""The training loop: one screen, in steps, for anything that turns (images, targets) into losses."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from detres.engine.checkpoint import write_text
from detres.engine.log import RunLog, without_nan

Metrics = dict[str, float | None]


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite; the message names the term and the images."""


class Interrupted(Exception):
    """Training was stopped by Ctrl-C or SIGTERM; the state after `step` steps is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


@dataclass
class Progress:
    """How far a run is: steps done, the best value of the deciding metric so far (None: not evaluated yet)."""

    step: int = 0
    best: float | None = None


def fit(
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable,
    progress: Progress,
    steps: int,
    lr_at: Callable[[int], float],
    evaluate: Callable[[], Metrics],
    best_metric: str,
    save_last: Callable[[Progress], None],
    save_best: Callable[[Progress], None],
    log: RunLog,
    device: torch.device,
    seed: int,
    log_every: int,
    eval_every: int,
    save_every: int,
    clip_grad_norm: float | None = None,
    precision: Literal["fp32", "bf16"] = "fp32",
) -> Metrics:
    """Train from `progress.step` to `steps`, evaluate, and return the last evaluation's metrics.

    model: called as model(images, targets), returns an object with .terms() (name -> scalar tensor) and .total().
    batches: yields (images, targets) from step `progress.step` on; both have .to(device), targets one by one.
    lr_at: rate of a 0-based step; a parameter group's "lr_scale" multiplies it.
    evaluate: called every `eval_every` steps (0: never on the way) and at the end. save_best: called when
    metrics[best_metric] exceeds all before; None (nothing to measure) never does.
    save_last: called every `save_every` steps, after every evaluation and on Ctrl-C or SIGTERM.
    Randomness inside the model (sampling) is seeded from (seed, step), so a resumed run repeats a straight one.

    Raises NonFiniteLossError before the weights are touched, Interrupted after saving.
    """
    metrics: Metrics = {}
    window = _Window()
    stop = _StopSignals()
    model.train()
    with stop:
        for images, targets in batches:
            window.data_ready()
            lr = lr_at(progress.step)
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            torch.manual_seed(seed * 1_000_003 + progress.step)

            images, targets = images.to(device), [target.to(device) for target in targets]
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                losses = model(images, targets)
                total = losses.total()
            # The one wait for the device in a step: a non-finite loss must not reach the weights.
            if not torch.isfinite(total):
                raise NonFiniteLossError(_culprit(losses.terms(), images, progress.step, lr, log.folder))
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            if clip_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip_grad_norm)
            optimizer.step()

            progress.step += 1
            window.add(losses.terms(), len(images))
            last = progress.step == steps
            if progress.step % log_every == 0 or last:
                log.train(progress.step, window.flush() | {"lr": lr})
            if last or (eval_every and progress.step % eval_every == 0):
                metrics = evaluate()
                model.train()
                log.evaluation(progress.step, metrics)
                value = metrics[best_metric]
                if value is not None and (progress.best is None or value > progress.best):
                    progress.best = value
                    save_best(progress)
                window.data_ready()
            if last or stop.asked or progress.step % save_every == 0 or (eval_every and progress.step % eval_every == 0):
                save_last(progress)
            if last:
                break
            if stop.asked:
                raise Interrupted(progress.step)
            window.step_done()
    return metrics


def sgd(model: nn.Module, *, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Return SGD over the parameters that learn, decaying all of them alike; biases of layers learn twice as fast.

    py-faster-rcnn's prototxt: lr_mult 2 on biases and one weight_decay for everything; the affine terms of batch or group
    norm are not decayed and learn at the plain rate. Raises ValueError when nothing learns.
    """
    weights, biases, norms = [], [], []
    for module in model.modules():
        is_norm = isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm))
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                (norms if is_norm else biases if name == "bias" else weights).append(parameter)
    groups = [
        {"params": weights, "weight_decay": weight_decay, "lr_scale": 1.0},
        {"params": biases, "weight_decay": weight_decay, "lr_scale": 2.0},
        {"params": norms, "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("no parameter of the model learns: all are frozen")
    return torch.optim.SGD(groups, lr=0.0, momentum=momentum)


class _Window:
    """Averages over the steps between two log records; reads the device only when flushed."""

    def __init__(self) -> None:
        self.clear()
        self.mark = time.monotonic()

    def clear(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.steps = self.images = 0
        self.wait_s = self.step_s = 0.0

    def data_ready(self) -> None:
        now = time.monotonic()
        self.wait_s += now - self.mark
        self.mark = now

    def step_done(self) -> None:
        self.mark = time.monotonic()

    def add(self, terms: dict[str, torch.Tensor], num_images: int) -> None:
        for name, value in terms.items():
            self.sums[name] = self.sums[name] + value.detach() if name in self.sums else value.detach().clone()
        self.steps += 1
        self.images += num_images
        now = time.monotonic()
        self.step_s += now - self.mark
        self.mark = now

    def flush(self) -> dict[str, float]:
        means = {name: (value / self.steps).item() for name, value in self.sums.items()}
        seconds = self.step_s + self.wait_s
        record = {
            "loss": sum(means.values()),
            **means,
            "step_s": self.step_s / self.steps,
            "data_s": self.wait_s / self.steps,
            "images_per_s": self.images / seconds,
        }
        self.clear()
        return record


class _StopSignals:
    """Turns SIGINT and SIGTERM into a request read between steps; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> _StopSignals:
        self.previous = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._ask)
        except ValueError:  # not the main thread: signals stay with whoever has them
            pass
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _culprit(terms: dict[str, torch.Tensor], images: object, step: int, lr: float, folder: Path) -> str:
    """Write nonfinite.json into the run folder and return the message."""
    values = {name: float(value) for name, value in terms.items()}
    bad = [name for name, value in values.items() if not torch.isfinite(torch.tensor(value))]
    ids = list(images.ids)
    write_text(folder / "nonfinite.json", json.dumps(without_nan({"step": step, "images": ids, "lr": lr, "terms": values}), indent=2))
    shown = ", ".join(f"{name} = {values[name]}" for name in bad or values)
    return (
        f"non-finite loss in step {step + 1}: {shown}; images {', '.join(map(str, ids))}; lr {lr:g}. The weights before this step "
        "are in last.pt. A smaller train.lr, a longer train.warmup_steps or train.clip_grad_norm usually cures it"
    )

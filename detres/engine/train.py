"""The training loop: one screen, in steps, for anything that turns (images, targets) into
losses.
"""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from detres.engine.checkpoint import write_text
from detres.engine.log import RunLog, without_nan
from detres.engine.progress import Progress
from detres.engine.schedule import Schedule

Metrics = dict[str, float | None]


class NonFiniteLossError(RuntimeError):
    """A loss or a gradient became NaN or infinite; the message names the loss term, or the
    parameter, and the images.
    """


class Interrupted(Exception):
    """Training was stopped by Ctrl-C or SIGTERM; the state after `step` steps is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


def fit(
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable,
    progress: Progress,
    schedule: Schedule,
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
    """Train from `progress.step` to `schedule.steps`, evaluate, and return the last evaluation's
    metrics.

    model: called as model(images, targets), returns an object with .terms() (name -> scalar tensor)
    and .total(). batches: yields (images, targets) from step `progress.step` on; images have
    .to(device), len() and .ids; targets, or each of a list of them, have .to(device).
    progress: updated in place. With no step left to do, this only evaluates; after a finished run
    nothing is written. schedule: the rate of a step; a parameter group's "lr_scale", where it has
    one, multiplies it. One that waits for the training error needs a term "top1_error".
    evaluate: called every `eval_every` steps (0: never on the way) and at the end; first of all
    when the run stopped where one was due. save_best: called when metrics[best_metric] exceeds all
    before; None (nothing to measure) never does. save_last: called every `save_every` steps, before
    and after every evaluation, and on Ctrl-C or SIGTERM. clip_grad_norm: largest 2-norm of all
    gradients together. precision: "bf16" runs the forward under autocast. Randomness inside the
    model (sampling) is seeded from (seed, step), so a resumed run repeats a straight one.

    Raises NonFiniteLossError before the weights are touched, Interrupted after saving, ValueError
    when `batches` ends early.
    """
    steps = schedule.steps

    def evaluation_is_due() -> bool:
        on_the_way = eval_every > 0 and progress.step > 0 and progress.step % eval_every == 0
        return progress.step >= steps or (on_the_way and progress.step not in progress.scores)

    def scored() -> Metrics:
        metrics = evaluate()
        model.train()
        log.evaluation(progress.step, metrics)
        if progress.see_score(metrics[best_metric]):
            save_best(progress)
        save_last(progress)
        return metrics

    if progress.step >= steps and progress.step in progress.scores:
        return evaluate()
    with _StopSignals() as stop:
        if evaluation_is_due():
            metrics = scored()
            if stop.asked:
                raise Interrupted(progress.step)
            if progress.step >= steps:
                return metrics
        window = _Window()
        model.train()
        for images, targets in batches:
            window.data_ready()
            lr = schedule.at(progress)
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
            torch.manual_seed((seed * 1_000_003 + progress.step) % 2**63)

            images = images.to(device)
            targets = (
                [target.to(device) for target in targets]
                if isinstance(targets, list)
                else targets.to(device)
            )
            optimizer.zero_grad(set_to_none=True)  # before the forward, which needs the memory
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                losses = model(images, targets)
                total = losses.total()
            total.backward()
            parameters = [
                parameter for parameter in model.parameters() if parameter.grad is not None
            ]
            grad_norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
            # The one wait for the device in a step, after all its work is queued: nothing
            # non-finite may reach the weights.
            if not torch.isfinite(total.detach() + grad_norm):
                raise NonFiniteLossError(
                    _culprit(model, losses.terms(), images, targets, progress.step, lr, log.folder)
                )
            if clip_grad_norm is not None:
                nn.utils.clip_grads_with_norm_(parameters, clip_grad_norm, grad_norm)
            optimizer.step()
            terms = losses.terms()
            if schedule.waits_for_error(progress):
                progress.see_error(terms["top1_error"].item(), schedule.warmup_until_error)
            progress.step += 1
            window.step_done({"loss": total, **terms, "grad_norm": grad_norm}, len(images))

            log.advance(progress.step)
            if progress.step == steps or progress.step % log_every == 0:
                log.train(progress.step, window.flush() | {"lr": lr})
            elif progress.step == log.start_step + 1:
                log.first_step(total.item())
            if evaluation_is_due() or stop.asked or progress.step % save_every == 0:
                save_last(progress)
            if stop.asked:
                raise Interrupted(progress.step)
            if evaluation_is_due():
                metrics = scored()
                if stop.asked:
                    raise Interrupted(progress.step)
            if progress.step == steps:
                return metrics
            window.wait_for_data()
    raise ValueError(f"the batches ended after step {progress.step}, expected {steps}")


def sgd(
    model: nn.Module,
    *,
    momentum: float,
    weight_decay: float,
    norm_weight_decay: float = 0.0,
    bias_lr_scale: float = 2.0,
) -> torch.optim.SGD:
    """Return SGD over the parameters that learn; `fit` sets the rate, times each group's
    "lr_scale", in every step.

    weight_decay: of weights and of biases alike; bias_lr_scale: how much faster the biases of
    layers learn. Both as in py-faster-rcnn's prototxt (lr_mult 2 on biases, one decay for all).
    norm_weight_decay: of the affine terms of batch and group norm, which the paper's detector keeps
    fixed and py-faster-rcnn does not have; they learn at the plain rate.

    Raises ValueError when nothing learns.
    """
    weights, biases, norms = _learning(model)
    groups = [
        {"params": weights, "weight_decay": weight_decay, "lr_scale": 1.0},
        {"params": biases, "weight_decay": weight_decay, "lr_scale": bias_lr_scale},
        {"params": norms, "weight_decay": norm_weight_decay, "lr_scale": 1.0},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]], lr=0.0, momentum=momentum, fused=True
    )


def adamw(model: nn.Module, *, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW (betas 0.9, 0.99) over the parameters that learn; only the weights of layers
    decay.

    Not the paper's: for short runs from random weights, where it learns several times as fast as
    SGD. `fit` sets the rate. Raises ValueError when nothing learns.
    """
    weights, biases, norms = _learning(model)
    groups = [
        {"params": weights, "weight_decay": weight_decay},
        {"params": biases + norms, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=0.0, betas=(0.9, 0.99), fused=True
    )


def _learning(
    model: nn.Module,
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that learn: weights of layers, biases of layers, affine terms of norms."""
    weights, biases, norms = [], [], []
    for module in model.modules():
        is_norm = isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm))
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                (norms if is_norm else biases if name == "bias" else weights).append(parameter)
    if not weights + biases + norms:
        raise ValueError("no parameter of the model learns: all are frozen")
    return weights, biases, norms


class _Window:
    """Averages over the steps between two log records; reads the device only when flushed.

    data_s is the time spent waiting for batches, step_s the time of the steps; evaluation and
    saving are in neither.
    """

    def __init__(self) -> None:
        self._clear()
        self.wait_for_data()

    def wait_for_data(self) -> None:
        self.mark = time.monotonic()

    def data_ready(self) -> None:
        self.data_s += self._lap()

    def step_done(self, values: dict[str, torch.Tensor], num_images: int) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().float()
        self.steps += 1
        self.images += num_images
        self.step_s += self._lap()

    def flush(self) -> dict[str, float]:
        record = {name: (value / self.steps).item() for name, value in self.sums.items()}
        record |= {"step_s": self.step_s / self.steps, "data_s": self.data_s / self.steps}
        record["images_per_s"] = self.images / max(self.step_s + self.data_s, 1e-9)
        self._clear()
        return record

    def _clear(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.steps = self.images = 0
        self.data_s = self.step_s = 0.0

    def _lap(self) -> float:
        before, self.mark = self.mark, time.monotonic()
        return self.mark - before


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

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        sys.stderr.write(
            "\nstopping when this step (and the evaluation, if one is under way) is done and "
            "saved; once more stops at once\n"
        )


def _culprit(
    model: nn.Module,
    terms: dict[str, torch.Tensor],
    images: object,
    targets: list,
    step: int,
    lr: float,
    folder: Path,
) -> str:
    """Write nonfinite.json, enough to repeat the step, into the run folder and return the
    message.
    """
    values = {name: value.item() for name, value in terms.items()}
    what = "non-finite loss"
    bad = [f"{name} = {value}" for name, value in values.items() if not math.isfinite(value)]
    if not bad:
        what = "finite loss but non-finite gradient"
        bad = [
            name
            for name, parameter in model.named_parameters()
            if parameter.grad is not None and not parameter.grad.isfinite().all()
        ]
    record = {
        "step": step,
        "lr": lr,
        "terms": values,
        "images": list(images.ids),
        "targets": _plain(targets),
    }
    write_text(folder / "nonfinite.json", json.dumps(without_nan(record)) + "\n")
    more = f" and {len(bad) - 4} more" if len(bad) > 4 else ""
    return (
        f"{what} in step {step + 1}: {', '.join(bad[:4])}{more}; images "
        f"{', '.join(map(str, images.ids))}; lr {lr:g}. "
        f"Nothing was saved after it; the batch is in {folder / 'nonfinite.json'}. "
        "A smaller train.lr or train.clip_grad_norm, both of which --resume --set takes, or a "
        "longer train.warmup_steps usually cures it"
    )


def _plain(target: object) -> object:
    """Targets as JSON: tensors become lists, dataclasses mappings."""
    if isinstance(target, list):
        return [_plain(item) for item in target]
    if is_dataclass(target):
        return {field.name: _plain(getattr(target, field.name)) for field in fields(target)}
    return target.tolist() if isinstance(target, torch.Tensor) else target

"""The training loop, one screen: anything that turns (images, targets) into losses, in steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

from detres.engine.distributed import Group
from detres.engine.ema import WeightAverage
from detres.engine.flight_recorder import FlightRecorder, NonFiniteLossError
from detres.engine.log import RunLog
from detres.engine.meter import Meter
from detres.engine.optimizers import clip_gradients, gradient_norm, set_rate
from detres.engine.probes import Precision
from detres.engine.progress import Progress
from detres.engine.scaling import only_scaled_too_far
from detres.engine.schedule import Schedule
from detres.engine.step import Batch, GradientStep, in_steps
from detres.engine.stop import Interrupted, StopSignals

_NAMED = 8
"""Images of a step that are named where a process is late."""


@dataclass(frozen=True)
class LoopSettings:
    """How the loop goes on.

    seed: of the randomness inside the model (dropout), drawn anew from (seed, step), so that a
    resumed run repeats a straight one. accumulate: batches a step. log_every, save_every: steps.
    eval_every: steps, 0: only at the end. early_stopping: evaluations in a row without a better
    one, after which the run is over, 0: never. clip_grad_norm: largest 2-norm of all gradients
    together, None: no limit. precision: "bf16" and "fp16" run the forward under autocast.
    """

    seed: int
    log_every: int
    save_every: int
    accumulate: int = 1
    eval_every: int = 0
    early_stopping: int = 0
    clip_grad_norm: float | None = None
    precision: Precision = "fp32"


class Run(Protocol):
    """What the loop asks of a run, and tells it: detres.runs.run.TrainingRun."""

    progress: Progress
    meter: Meter
    log: RunLog
    average: WeightAverage | None
    recorder: FlightRecorder
    scaler: torch.amp.GradScaler

    def saw(self, parts: list[Batch]) -> None:
        """Take in the images of the step that is done."""

    def evaluate(self) -> None:
        """Evaluate at this step, log it, keep what is the best, and save."""

    def save(self) -> None:
        """Save all that resuming needs."""


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable,
    *,
    schedule: Schedule,
    settings: LoopSettings,
    run: Run,
    device: torch.device,
    group: Group,
) -> None:
    """Train from the run's step to the last of `schedule`, or until early stopping, saving and
    evaluating on the way and there; first of all, evaluate where that was due when the run stopped.

    model: (images, targets) -> Losses. batches: (images, targets) from the run's step on, as many a
    step as the settings say, of the images that this process of `group` looks at; images have
    .to(device), len() and .ids, targets, or each of a list of them, .to(device). Raises
    NonFiniteLossError before the weights are touched, Interrupted after saving, ValueError when
    `batches` ends early.
    """
    progress, meter, recorder, scaler = run.progress, run.meter, run.recorder, run.scaler
    end = schedule.steps, settings.early_stopping
    gradients = GradientStep(
        *(model, group.wrapped(model), group, device, settings.precision, scaler, run.log.line)
    )
    with StopSignals(group) as stop:
        model.train()
        if progress.evaluation_is_due(settings.eval_every, *end):
            run.evaluate()
            stop.raise_if_asked(progress.step)
        if progress.is_over(*end):
            return
        meter.wait_for_data()
        group.doing(f"waiting for the images of step {progress.step + 1}")
        for parts in in_steps(batches, settings.accumulate):
            waited = meter.data_ready()
            group.doing(f"step {progress.step + 1}, images {_named(parts)}")
            lr = set_rate(optimizer, schedule.at(progress))
            seed = (settings.seed * 1_000_003 + progress.step) % 2**63
            recorder.begin(progress.step, parts, lr=lr, seed=seed, data_s=waited)
            optimizer.zero_grad(set_to_none=True)  # before the forward, which needs the memory
            total, terms = gradients.take(parts, seed)
            scaler.unscale_(optimizer)
            norm = gradient_norm(model)
            values = {"loss": total, **terms, "grad_norm": norm}
            recorder.computed(values)
            # The step's one wait for the device: nothing non-finite may reach the weights.
            if not torch.isfinite(total + norm):
                if not only_scaled_too_far(scaler, total):
                    raise NonFiniteLossError(model, terms, parts, step=progress.step, lr=lr)
                norm = values["grad_norm"] = torch.zeros_like(norm)  # the scaler skips this step
            clip_gradients(model, settings.clip_grad_norm, norm)
            scaler.step(optimizer)
            scaler.update()
            schedule.advance(progress, terms)
            run.saw(parts)
            if run.average is not None:
                run.average.update(model, progress.step)
            took = meter.step_done(values, group.size * sum(len(i) for i, _ in parts))
            recorder.end(took)
            run.log.step_done(progress.step, meter, lr=lr, every=settings.log_every)
            due = progress.evaluation_is_due(settings.eval_every, *end)
            stopping = stop.asked_anywhere()
            if due or stopping or progress.step % settings.save_every == 0:
                run.save()
            if stopping:
                raise Interrupted(progress.step)
            if due:
                run.evaluate()
                stop.raise_if_asked(progress.step)
            if progress.is_over(*end):
                return
            meter.wait_for_data()
            group.doing(f"waiting for the images of step {progress.step + 1}")
    raise ValueError(f"batches ended after step {progress.step}, expected {schedule.steps}")


def _named(parts: list[Batch]) -> str:
    """The first images of a step, for a message."""
    ids = [image_id for images, _ in parts for image_id in images.ids]
    more = f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else ""
    return ", ".join(map(str, ids[:_NAMED])) + more

"""How many steps a time allows: a few real ones are timed first, and part of an evaluation."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from detres.detection.build import train_loader
from detres.detection.config import DetectionConfig, DetectionTrainConfig
from detres.detection.duration import in_units
from detres.detection.judging import WithLosses
from detres.detection.training import DetectionTraining
from detres.engine.flight_recorder import FlightRecorder
from detres.engine.loop import LoopSettings, fit
from detres.engine.meter import Meter
from detres.engine.progress import Progress
from detres.engine.scaling import scaler_of
from detres.runs.settings import share_of

LEAST_STEPS = 20

_TIMED = 5
"""Steps that are timed; the first, in which memory is taken, does not count."""

_KEPT_BACK = 0.06
"""Of the time, for what is not timed: saving, pictures, slower steps."""


class ShortTimeError(ValueError):
    """No training fits into the time."""


@dataclass
class _Trial:
    """A run of a few steps that leaves nothing behind: what the loop asks of a run.

    ends: when each step was over. image: s that judging one held-out image takes.
    """

    training: DetectionTraining
    scaler: torch.amp.GradScaler
    progress: Progress = field(default_factory=Progress)
    meter: Meter = field(default_factory=Meter)
    average: None = None
    recorder: FlightRecorder = field(default_factory=FlightRecorder)
    ends: list[float] = field(default_factory=list)
    image: float = 0.0

    @property
    def log(self) -> _Trial:
        """What is told of each step."""
        return self

    def step_done(self, step: int, meter: Meter, *, lr: float, every: int) -> None:
        """Note the time."""
        del step, meter, lr, every
        self.ends.append(time.monotonic())

    def line(self, text: str) -> None:
        """Say nothing."""

    def saw(self, parts: list) -> None:
        """Remember nothing."""

    def evaluate(self) -> None:
        """Time the first batch of held-out images, their losses included."""
        training = self.training
        first = next(iter(training.held_out.part_batches))
        begin = time.monotonic()
        ids = np.asarray(first[0].ids)
        judged = WithLosses([first], training.model, ids, seed=0, device=training.device)
        truth = training.held_out.part.subset(np.arange(len(ids)), "the first")
        training.find(truth, judged)
        self.image = (time.monotonic() - begin) / len(ids)

    def save(self) -> None:
        """Keep nothing."""


@dataclass(frozen=True)
class Pace:
    """step: s of one. image: s that judging a held-out image takes. spent: s from the begin of the
    command to the first step.
    """

    step: float
    image: float
    spent: float

    def takes(self, train: DetectionTrainConfig, steps: int, num_val: int) -> float:
        """Return the s of a run of `steps`, its evaluations on `num_val` images included."""
        return self.spent + steps * self.step + images_judged(train, steps, num_val) * self.image


def images_judged(train: DetectionTrainConfig, steps: int, num_val: int) -> int:
    """Return how many held-out images the evaluations of a run of `steps` look at, in all: on the
    way at some; at the end at all, and once more where earlier weights may be the best.
    """
    every, looked_at = train.evaluated_every(steps), train.looked_at(steps, num_val)
    on_the_way = (steps - 1) // every if every else 0
    return on_the_way * looked_at + num_val * (2 if looked_at < num_val else 1)


def pace_of(training: DetectionTraining, *, began: float, building: float) -> Pace:
    """Time a few steps and a batch of an evaluation of `training`, which learns from them: it is to
    be thrown away. began: time.monotonic() at the begin of the command. building: s that making
    `training` took, and takes once more.
    """
    settings = training.config.train.settled(training.device)[0]
    trial = _Trial(training, scaler_of(settings.precision, training.device))
    batches = train_loader(
        training.data.train_set,
        batch_size=settings.images_per_step,
        steps=_TIMED,
        seed=training.config.seed,
        num_workers=training.config.data.workers,
        share=share_of(settings, training.group),
    )
    fit(
        training.model,
        training.optimizer,
        batches,
        schedule=replace(training.schedule, steps=_TIMED, milestones=()),
        settings=LoopSettings(
            seed=training.config.seed,
            accumulate=settings.accumulate,
            log_every=_TIMED,
            save_every=_TIMED + 1,
            clip_grad_norm=settings.clip_grad_norm,
            precision=settings.precision,
        ),
        run=trial,
        device=training.device,
        group=training.group,
    )
    step = (trial.ends[-1] - trial.ends[0]) / (_TIMED - 1)
    return Pace(step, trial.image, time.monotonic() - began + building)


def with_time(config: DetectionConfig, pace: Pace, seconds: float, num_val: int) -> DetectionConfig:
    """Return `config` with as many steps as fit into `seconds`, and milestones and warm-up where
    they are in the length it had; raises ShortTimeError where less than LEAST_STEPS fit.
    """
    usable, train = seconds * (1 - _KEPT_BACK), config.train
    least = pace.takes(train, LEAST_STEPS, num_val)
    if least > usable:
        raise ShortTimeError(
            f"{in_units(seconds)} is too short: a step takes {pace.step:.2g} s, judging "
            f"{num_val} held-out images {num_val * pace.image:.2g} s, and {pace.spent:.0f} s go "
            f"before the first step; give at least {in_units(least / (1 - _KEPT_BACK) + 30)}"
        )
    steps = LEAST_STEPS
    most = int(usable / pace.step) + LEAST_STEPS
    while most - steps > 1:
        middle = (steps + most) // 2
        fits = pace.takes(train, middle, num_val) <= usable
        steps, most = (middle, most) if fits else (steps, middle)
    return config.model_copy(update={"train": in_length(train, steps)})


def in_length(train: DetectionTrainConfig, steps: int) -> DetectionTrainConfig:
    """Return the same training in `steps`: milestones at the same parts of it, the warm-up a fifth
    at most.
    """
    whole = train.steps if train.steps is not None else train.epochs
    milestones = (float(round(one * steps / whole)) for one in train.milestones)
    update = {
        "steps": steps,
        "epochs": None,
        "milestones": tuple(one for one in milestones if 0 < one < steps),
        "warmup_steps": min(train.warmup_steps, steps // 5),
    }
    return train.model_copy(update=update)

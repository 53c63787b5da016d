"""How many steps a given time allows: a few real ones are timed first, and part of an evaluation."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

import torch

from detres.detection.build import train_loader
from detres.detection.config import DetectionConfig, DetectionTrainConfig
from detres.detection.inference.dataset import detect_dataset
from detres.detection.training import DetectionTraining
from detres.engine.loop import LoopSettings, fit
from detres.engine.meter import Meter
from detres.engine.progress import Progress

LEAST_SECONDS = 30
"""Less does not hold the measuring and a run."""

LEAST_STEPS = 20

_TIMED = 6
"""Steps that are timed, at most; the first, in which memory is taken, does not count."""

_TIMED_SHARE = 0.05
"""Of the time that timing may take, three steps apart."""

_KEPT_BACK = 0.06
"""Of the time, for what is not timed: saving, pictures, slower steps."""

_UNITS = {"h": 3600, "m": 60, "s": 1}


class ShortTimeError(ValueError):
    """No training fits into the time."""


def seconds_of(text: str) -> int:
    """Return the seconds of a time such as 30m, 90s, 2h or 1h30m; raises ValueError for another
    text, and for less than LEAST_SECONDS.
    """
    match = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,5})m)?(?:(\d{1,6})s)?", text.strip().lower())
    if match is None or not any(match.groups()):
        raise ValueError(f"{text!r} is no time: write it as 30m, 90s, 2h or 1h30m")
    numbers = zip(match.groups(), _UNITS.values(), strict=True)
    seconds = sum(int(number or 0) * unit for number, unit in numbers)
    if seconds < LEAST_SECONDS:
        raise ValueError(
            f"{text} is too short: measuring how long a step takes, and a run, need at least "
            f"{LEAST_SECONDS}s"
        )
    return seconds


@dataclass
class _Trial:
    """A run of a few steps that leaves nothing behind: what the loop asks of a run.

    ends: when each step was over. evaluation: s of one batch of held-out images.
    """

    training: DetectionTraining
    budget: float
    progress: Progress = field(default_factory=Progress)
    meter: Meter = field(default_factory=Meter)
    ends: list[float] = field(default_factory=list)
    evaluation: float = 0.0

    @property
    def log(self) -> _Trial:
        """What is told of each step."""
        return self

    def step_done(self, step: int, meter: Meter, *, lr: float, every: int) -> None:
        """Note the time."""
        del step, meter, lr, every
        self.ends.append(time.monotonic())

    def evaluate(self) -> None:
        """Time one batch of held-out images."""
        begin = time.monotonic()
        first = [next(iter(self.training.held_out))]
        classes = self.training.data.val.class_map
        detect_dataset(self.training.detecting, first, classes, self.training.device)
        self.evaluation = time.monotonic() - begin

    def save(self) -> None:
        """Keep nothing."""


@dataclass(frozen=True)
class Pace:
    """step: s of one. evaluation: s of one of all held-out images. spent: s since the command began,
    all that comes before the first step included.
    """

    step: float
    evaluation: float
    spent: float

    def steps_within(self, seconds: float, evaluations: int) -> int:
        """Return how many steps fit into `seconds` beside so many evaluations; raises ShortTimeError
        where that are fewer than LEAST_STEPS.
        """
        left = seconds * (1 - _KEPT_BACK) - self.spent - evaluations * self.evaluation
        steps = int(left / self.step)
        if steps >= LEAST_STEPS:
            return steps
        needed = self.spent + self.evaluation + LEAST_STEPS * self.step
        raise ShortTimeError(
            f"{in_units(seconds)} is too short: a step takes {self.step:.1f} s, an evaluation "
            f"{self.evaluation:.0f} s, and {self.spent:.0f} s went before the first step; give at "
            f"least {in_units(needed / (1 - _KEPT_BACK) + 60)}"
        )


def in_units(seconds: float) -> str:
    """Return seconds as `seconds_of` reads them, whole minutes from two on."""
    if seconds < 120:
        return f"{round(seconds)}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return "".join(f"{number}{unit}" for number, unit in ((hours, "h"), (minutes, "m")) if number)


def pace_of(training: DetectionTraining, *, seconds: float, began: float) -> Pace:
    """Time a few steps and a batch of an evaluation of `training`, which learns from them: it is to
    be thrown away.

    seconds: that the whole run may take. began: time.monotonic() at the begin of the command.
    """
    config, built = training.config.train.settled(training.device)[0], time.monotonic()
    trial = _Trial(training, seconds)
    length = _TIMED if seconds > 600 else _TIMED // 2
    batches = train_loader(
        training.data.train_set,
        batch_size=config.batch_size,
        steps=length,
        seed=training.config.seed,
        num_workers=training.config.data.workers,
    )
    schedule = training.schedule
    settings = LoopSettings(
        seed=training.config.seed,
        log_every=length,
        save_every=length + 1,
        clip_grad_norm=config.clip_grad_norm,
        precision=config.precision,
    )
    fit(
        training.model,
        training.optimizer,
        batches,
        schedule=type(schedule)(**{**vars(schedule), "steps": length}),
        settings=settings,
        run=trial,
        device=training.device,
    )
    step = (trial.ends[-1] - trial.ends[0]) / (length - 1)
    per_batch = trial.evaluation
    before = built - began  # reading and building, once more for the run itself
    spent = time.monotonic() - began + before
    return Pace(step, per_batch * len(training.held_out), spent)


def with_steps(config: DetectionConfig, pace: Pace, seconds: float) -> DetectionConfig:
    """Return `config` with the number of steps that fits into `seconds`, and milestones, warm-up and
    evaluations where they are in the length it had; raises ShortTimeError, and ValueError for a
    scheme that is several runs.
    """
    train = config.train
    evaluations, previous = 1, 0
    while evaluations != previous:  # fewer steps, fewer evaluations
        previous = evaluations
        steps = pace.steps_within(seconds, evaluations)
        evaluations = -(-steps // train.eval_every) if train.eval_every else 1
    return config.model_copy(update={"train": in_length(train, steps)})


def in_length(train: DetectionTrainConfig, steps: int) -> DetectionTrainConfig:
    """Return the same training in `steps`."""
    whole = train.steps if train.steps is not None else train.epochs
    milestones = tuple(float(round(one * steps / whole)) for one in train.milestones)
    update = {
        "steps": steps,
        "epochs": None,
        "milestones": tuple(one for one in milestones if 0 < one < steps),
        "warmup_steps": min(train.warmup_steps, steps // 5),
    }
    return train.model_copy(update=update)

"""What a run writes down while it trains, against the same steps without: the flight recorder, the
order of the images, the log and the state to resume from.
"""

from __future__ import annotations

import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from detres.benchmarks.timing import Timing
from detres.detection.config import DetectionConfig
from detres.detection.training import DetectionTraining
from detres.engine.distributed import Group
from detres.engine.flight_recorder import FlightRecorder
from detres.engine.log import QuietLog, RunLog
from detres.engine.loop import LoopSettings, Run, fit
from detres.engine.meter import Meter
from detres.engine.progress import Progress
from detres.engine.scaling import scaler_of
from detres.engine.step import Batch
from detres.runs.run import TrainingRun

STEPS = 20
"""Steps that are timed at once; as many as from one record of the log to the next by default."""

RECORDER, ORDER, LOG, STATE = "flight recorder", "order of images", "log", "state"


class _Clock:
    """Seconds by name."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys((RECORDER, ORDER, LOG, STATE), 0.0)

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Add what the block takes."""
        began = time.perf_counter()
        yield
        self.spent[name] += time.perf_counter() - began


class _ClockedRecorder(FlightRecorder):
    def __init__(self, clock: _Clock) -> None:
        super().__init__()
        self.clock = clock

    def begin(self, step: int, parts: list[Batch], *, lr: float, seed: int, data_s: float) -> None:
        with self.clock.on(RECORDER):
            super().begin(step, parts, lr=lr, seed=seed, data_s=data_s)

    def computed(self, values: dict[str, Tensor]) -> None:
        with self.clock.on(RECORDER):
            super().computed(values)

    def end(self, step_s: float) -> None:
        with self.clock.on(RECORDER):
            super().end(step_s)


class _ClockedLog:
    """A RunLog, as far as the loop asks."""

    def __init__(self, log: RunLog, clock: _Clock) -> None:
        self.log, self.clock, self.line = log, clock, log.line
        self.flush, self.close = log.flush, log.close

    def step_done(self, step: int, meter: Meter, *, lr: float, every: int) -> None:
        with self.clock.on(LOG):
            self.log.step_done(step, meter, lr=lr, every=every)


class _ClockedRun(TrainingRun):
    """A run that knows how long it wrote; what it learns is not evaluated."""

    def clocked_by(self, clock: _Clock) -> None:
        """Add to `clock` from here on."""
        self.clock, self.recorder = clock, _ClockedRecorder(clock)
        self.log = _ClockedLog(self.log, clock)

    def saw(self, parts: list[Batch]) -> None:
        with self.clock.on(ORDER):
            super().saw(parts)

    def evaluate(self) -> None:
        """Do nothing."""

    def save(self) -> None:
        with self.clock.on(STATE):
            super().save()


class _NoRecorder(FlightRecorder):
    def begin(self, step: int, parts: list[Batch], *, lr: float, seed: int, data_s: float) -> None:
        """Keep nothing."""

    def computed(self, values: dict[str, Tensor]) -> None:
        """Keep nothing."""

    def end(self, step_s: float) -> None:
        """Keep nothing."""


@dataclass
class _BareRun:
    """A run that writes nothing down."""

    scaler: torch.amp.GradScaler
    progress: Progress = field(default_factory=Progress)
    meter: Meter = field(default_factory=Meter)
    log: QuietLog = field(default_factory=QuietLog)
    recorder: FlightRecorder = field(default_factory=_NoRecorder)
    average: None = None

    def saw(self, parts: list[Batch]) -> None:
        """Remember nothing."""

    def evaluate(self) -> None:
        """Do nothing."""

    def save(self) -> None:
        """Save nothing."""


def benchmark_recorder(timing: Timing, config: DetectionConfig) -> None:
    """Time steps of `config`, their batches made before, STEPS with all that a run keeps of them
    and STEPS with nothing in turns; then say what of a step each part takes: records of the log,
    one in STEPS steps, and the state, shared out among train.save_every, are in no median.
    """
    config = config.model_copy(update={"data": config.data.model_copy(update={"workers": 0})})
    with _silent():
        training = DetectionTraining.start(config, timing.device)
    training.schedule = replace(training.schedule, steps=STEPS, milestones=(), warmup_steps=0)
    with _begun(training) as run:
        batches, train = list(training.batches(run)), run.config.train
    bare = _BareRun(scaler_of(train.precision, timing.device))
    clock, kept, without = _Clock(), [], []
    for repeat in range(timing.repeats + 1):
        with _begun(training) as run:
            run.clocked_by(clock if repeat else _Clock())
            kept += _step_times(run, training, batches)
        fresh = replace(bare, progress=Progress(), meter=Meter())
        without += _step_times(fresh, training, batches)
    mine, other = (statistics.median(times[STEPS:]) for times in (kept, without))
    job = f"a training step of {config.name}, {train.precision}"
    timing.add(
        {"job": job, "way": "recorded", "s": mine, "peer": "bare", "peer_s": other},
        f"{job:<58}  recorded {mine:8.4f} s  bare {other:8.4f} s  "
        f"{other / mine:6.2f} times as fast",
    )
    steps = {STATE: timing.repeats * train.save_every}
    each = {name: s / steps.get(name, timing.repeats * STEPS) for name, s in clock.spent.items()}
    parts = ", ".join(f"{name} {1e3 * s:.3f} ms" for name, s in each.items())
    share = sum(each.values()) / other
    timing.add(
        {"job": f"what is kept of {job}", "share": share, **each},
        f"of a step: {parts} (one every {train.save_every} steps, "
        f"{clock.spent[STATE] / timing.repeats:.3f} s), together {share:.2%}",
    )


def _silent() -> contextlib.AbstractContextManager:
    return contextlib.redirect_stdout(io.StringIO())


@contextlib.contextmanager
def _begun(training: DetectionTraining) -> Iterator[_ClockedRun]:
    """A new run in a folder that is removed afterwards."""
    with (
        tempfile.TemporaryDirectory() as folder,
        _silent(),
        _ClockedRun.start(
            training, Path(folder) / "run", device=training.device, resume_line=lambda *_: ""
        ) as run,
    ):
        yield run


def _step_times(run: Run, training: DetectionTraining, batches: list[Batch]) -> list[float]:
    """The seconds of each step that is trained on these batches as `run` has it; of the last one
    with what follows it.
    """
    config, device = training.config, training.device
    settings, begins = config.train.settled(device)[0], []

    def timed() -> Iterator[Batch]:
        for batch in batches:
            begins.append(time.perf_counter())
            yield batch

    fit(
        training.model,
        training.optimizer,
        timed(),
        schedule=training.schedule,
        settings=LoopSettings(
            seed=config.seed,
            accumulate=settings.accumulate,
            log_every=settings.log_every,
            save_every=STEPS,
            clip_grad_norm=settings.clip_grad_norm,
            precision=settings.precision,
        ),
        run=run,
        device=device,
        group=Group(),
    )
    return [end - begin for begin, end in pairwise([*begins, time.perf_counter()])]

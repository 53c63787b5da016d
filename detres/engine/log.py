"""The log of a run: records in a file, the same to writers, progress on the console."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from detres.console import clock, printable, write_line
from detres.engine.memory import most_memory
from detres.engine.meter import Meter
from detres.engine.progress import Progress
from detres.engine.record_files import RecordFile
from detres.engine.writers import Writer, Writers
from detres.files import write_text

try:
    from detres.engine.event_files import TensorBoardWriter
except ModuleNotFoundError:  # tensorboard is an extra
    TensorBoardWriter = None

_SILENT_S = 30.0
"""After so long without a line there is one, between two records too."""

_REFRESHED_S = 1.0
"""So often the bar of a terminal shows new numbers."""


def without_nan(value: object) -> object:
    """Return `value` with NaN and infinities replaced by None, at any depth: JSON has neither."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class RunLog:
    """Writes records (one JSON object a line), tells them to writers, and shows progress on the
    console.

    records: the file they go to, in the run's folder. tensorboard: the folder of TensorBoard's
    events, which are one writer's where that is installed; a line says where it is not. console: a
    terminal gets one progress bar with the time that is left, images a second and memory, anything
    else plain lines, one every 30 s at least. steps: of the whole run. progress: what was done
    before; records of other steps and evaluations, left by an interrupted run, are cut away so that
    none is there twice. writers: told the same. config: what they are told of the settings.
    """

    def __init__(
        self,
        records: Path,
        tensorboard: Path,
        *,
        console: TextIO,
        steps: int,
        progress: Progress,
        writers: Sequence[Writer] = (),
        config: Mapping[str, object] | None = None,
    ) -> None:
        self.console = console
        self.steps = steps
        self.start_step = progress.step
        self.started = self.shown = time.monotonic()
        if records.exists():
            lines = records.read_bytes().splitlines()
            kept = [line.decode("utf-8") for line in lines if _is_of(line, progress)]
            write_text(records, "".join(f"{line}\n" for line in kept))
        self.records = RecordFile(records)
        self.bar = None
        if console.isatty():
            self.bar = tqdm(total=steps, initial=self.start_step, file=console, dynamic_ncols=True)
        if TensorBoardWriter is None:
            self.line(f"the curves are in {records}; for TensorBoard: pip install tensorboard")
        else:
            writers = (TensorBoardWriter(tensorboard), *writers)
        self.writers = Writers(writers, self.line)
        self.writers.started(config or {}, records.parent, self.start_step)

    def step_done(self, step: int, meter: Meter, *, lr: float, every: int) -> None:
        """Show that `step` steps are done; log what `meter` holds every `every` steps and after the
        last one, and show the loss of the first, and between two records that are far apart.
        """
        if self.bar is not None:
            self.bar.update(step - self.bar.n)
        silent = time.monotonic() - self.shown
        if step == self.steps or step % every == 0:
            self.train(step, meter.flush() | {"lr": lr})
        elif self.bar is not None and silent >= _REFRESHED_S:
            self._show(step, meter.means(), lr, meter.images_per_s)
        elif self.bar is None and step == self.start_step + 1:
            seconds = time.monotonic() - self.started
            loss = meter.mean("loss")
            self.line(f"step {step}/{self.steps}  loss {loss:.3f}  {seconds:.1f} s to start")
        elif silent >= _SILENT_S:
            self._show(step, meter.means(), lr, meter.images_per_s)

    def train(self, step: int, record: dict[str, float]) -> None:
        """Log one training record after `step` steps are done."""
        self._write("train", step, record)
        self._show(step, record, record["lr"], record.get("images_per_s"))

    def _show(
        self, step: int, values: dict[str, float], lr: float, images_per_s: float | None
    ) -> None:
        """Show the losses and errors among `values` on the bar, or in a line with the time that is
        left.
        """
        losses = "  ".join(
            f"{name.removeprefix('loss_')} {value:.3f}"
            for name, value in values.items()
            if name.startswith("loss") or name.endswith("error")
        )
        if self.bar is not None:
            rate = None if images_per_s is None else f"{images_per_s:.1f} images/s"
            shown = [each for each in (losses, rate, most_memory()) if each]
            self.bar.set_postfix_str("  ".join(shown))
            self.shown = time.monotonic()
        else:
            rate = (step - self.start_step) / (time.monotonic() - self.started)
            left = (self.steps - step) / rate
            self.line(
                f"step {step}/{self.steps}  {losses}  lr {lr:.5f}  {1 / rate:.2f} s/step "
                f" {clock(left)} left"
            )

    def evaluation(self, step: int, record: dict[str, float | None]) -> None:
        """Log the numbers of an evaluation after `step` steps."""
        self._write("eval", step, record)

    def averaged(self, step: int, record: dict[str, float | None]) -> None:
        """Log the numbers of an evaluation with averaged batch norm statistics, after all steps."""
        self._write("averaged", step, record)

    def line(self, text: str) -> None:
        """Print one line (or several) without disturbing the progress bar."""
        self.shown = time.monotonic()
        if self.bar is not None:
            self.bar.write(printable(text), file=self.console)
        else:
            write_line(text, self.console)

    def flush(self) -> None:
        """Return when all records are on the disk."""
        self.records.flush()

    def close(self) -> None:
        """Close everything; the log cannot be used afterwards."""
        self.writers.closed()
        if self.bar is not None:
            self.bar.close()
        self.records.close()

    def _write(self, kind: str, step: int, record: dict) -> None:
        finite = without_nan(record)
        line = json.dumps({"step": step, "kind": kind, **finite})
        self.records.write(f"{line}\n".encode())
        self.writers.numbers(kind, step, finite)


class QuietLog:
    """The log of a process that follows another one, which writes: it only begins its averages anew
    when that one does.
    """

    def step_done(self, step: int, meter: Meter, *, lr: float, every: int) -> None:  # noqa: ARG002
        """Forget what `meter` holds every `every` steps."""
        if step % every == 0:
            meter.flush()

    def evaluation(self, step: int, record: dict[str, float | None]) -> None:
        """Log nothing."""

    def averaged(self, step: int, record: dict[str, float | None]) -> None:
        """Log nothing."""

    def line(self, text: str) -> None:
        """Print nothing."""

    def flush(self) -> None:
        """Wait for nothing."""

    def close(self) -> None:
        """Close nothing."""


def _is_of(line: bytes, progress: Progress) -> bool:
    """Whether a record belongs to what a resumed run has done; a line cut off by a crash does
    not.
    """
    try:
        record = json.loads(line)
        known = record["kind"] == "train" or (
            record["kind"] == "eval" and record["step"] in progress.evaluations
        )
        return known and record["step"] <= progress.step
    except (ValueError, KeyError, TypeError, RecursionError):
        return False

"""The life of a run: start, resume, train, evaluate, keep the best, say how to go on after a
stop.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from detres.config import Section, check, to_yaml, what_differs, with_overrides
from detres.engine.flight_recorder import NonFiniteLossError
from detres.engine.log import RunLog, without_nan
from detres.engine.loop import LoopSettings, fit
from detres.engine.progress import Progress
from detres.engine.schedule import Schedule
from detres.engine.stop import Interrupted
from detres.files import write_text
from detres.runs import folder as names
from detres.runs.environment import write_environment
from detres.runs.settings import TrainConfig, with_data_root
from detres.runs.state import load_state, save_state

STATE_KEYS = ("config", "classes", "num_images", "progress", "model", "optimizer")

MAY_CHANGE = ("data.workers", "data.damaged", "train.lr", "train.clip_grad_norm")
"""Settings that a resumed run may have otherwise: where and how data are read, and what helps where
the loss became infinite.
"""


ResumeLine = Callable[[Path, dict[str, float]], str]
"""Run folder and settings, key -> value, -> the command line that goes on with them."""


LISTED = 4
"""Of images that could not be read, so many are named in a line."""


class RunConfig(Protocol):
    """What the configurations of both wings have in common."""

    name: str
    seed: int
    train: TrainConfig


class Evaluation(Protocol):
    """The numbers of one evaluation: metrics by name, None where there was nothing to measure."""

    metrics: dict[str, float | None]
    best_metric: str

    def table(self) -> str:
        """Return the numbers for people, with their protocol."""


class Training(Protocol):
    """What a wing gives a run: what learns, from what, how it is judged, and what is kept of it.

    loaded: what was loaded into the network before the first step, in words; None: nothing.
    """

    config: RunConfig
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    num_images: int
    loaded: str | None

    def describe_data(self) -> str:
        """Return what is trained and judged on, in words."""

    def state(self) -> dict:
        """Return what last.pt holds beside the STATE_KEYS that a run knows; "classes" at least."""

    def batches(self, run: TrainingRun) -> Iterable:
        """Return the batches of the run's steps that are not done yet."""

    def evaluate(self) -> Evaluation:
        """Judge the model as it is; writes nothing."""

    def keep(self, run: TrainingRun, evaluation: Evaluation, *, improved: bool) -> None:
        """Write into the run folder what is kept of this evaluation."""


@dataclass(frozen=True)
class SavedRun:
    """A run folder to be resumed: what its last.pt holds, and the configuration to go on with."""

    folder: Path
    state: dict
    config: Section
    earlier: Section

    @classmethod
    def read(
        cls,
        folder: Path,
        kind: type[Section],
        *,
        keys: Sequence[str] = (),
        overrides: Sequence[str] = (),
        root: str | None = None,
    ) -> SavedRun:
        """Read the last.pt of `folder`.

        kind: of its configuration. keys: what it must hold beside STATE_KEYS. overrides:
        "key=value" settings that are to be otherwise. root: where the data are now.

        Raises CheckpointError naming the file when it is missing, damaged or of another kind,
        ConfigError for overrides that do not fit, and what with_data_root raises.
        """
        path = folder / names.STATE
        state = load_state(path, (*STATE_KEYS, *keys))
        earlier = check(kind, json.loads(state["config"]), str(path))
        config = with_overrides(earlier, overrides, str(path)) if overrides else earlier
        if root:
            config = config.model_copy(update={"data": with_data_root(config.data, root)})
        return cls(folder, state, config, earlier)


class TrainingRun:
    """A run folder while it is trained in; to be used in a `with` statement, which closes its log
    and says how to go on after a stop.

    resume_line: the command line that goes on with a run folder, some settings otherwise; None: it
    cannot be resumed. saved: of a resumed run; the optimizer is then put where it was, the model
    must be there already.

    Raises ValueError when a resumed run had another number of training images: its schedule and its
    order would change.
    """

    def __init__(
        self,
        folder: Path,
        training: Training,
        *,
        device: torch.device,
        resume_line: ResumeLine | None,
        saved: SavedRun | None = None,
    ) -> None:
        self.folder, self.training, self.device = folder, training, device
        self.resume_line = resume_line
        self.config = training.config
        self.schedule = training.schedule
        self.progress = Progress()
        self.evaluation: Evaluation | None = None
        self.skipped: set[str] | None = None
        if saved is not None:
            self._go_on(saved)
        self.started = time.monotonic()
        write_environment(folder / names.ENVIRONMENT, device, start_step=self.progress.step)
        self.log = RunLog(
            folder / names.RECORDS,
            folder / names.TENSORBOARD,
            console=sys.stdout,
            steps=self.schedule.steps,
            progress=self.progress,
        )

    @classmethod
    def start(
        cls,
        training: Training,
        out: str | Path | None,
        *,
        device: torch.device,
        resume_line: ResumeLine | None,
    ) -> TrainingRun:
        """Begin a run in a new folder: `out`, or the next free one of its name under runs/.

        Raises RunFolderError when `out` cannot be used.
        """
        folder = names.new_run_folder(training.config.name, out)
        write_text(folder / names.CONFIG, to_yaml(training.config))
        return cls(folder, training, device=device, resume_line=resume_line)

    @classmethod
    def resume(
        cls, saved: SavedRun, training: Training, *, device: torch.device, resume_line: ResumeLine
    ) -> TrainingRun:
        """Go on with a run where its last.pt left it; raises as the constructor does."""
        return cls(saved.folder, training, device=device, resume_line=resume_line, saved=saved)

    def __enter__(self) -> TrainingRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        if kind is not None and (line := self._how_it_stopped(error)):
            self.log.line(line)
        self.log.close()

    def train(self) -> Evaluation:
        """Train to the configured end and return the last evaluation; a run that is finished is
        only evaluated once more; this method then writes nothing.

        Raises what `fit` raises.
        """
        self._announce()
        if self.progress.step >= self.schedule.steps and not self.progress.evaluation_is_due(
            0, self.schedule.steps
        ):
            return self._evaluated()
        settings = self.config.train
        try:
            fit(
                self.training.model,
                self.training.optimizer,
                self._saved_before_an_error(self.training.batches(self)),
                schedule=self.schedule,
                settings=LoopSettings(
                    seed=self.config.seed,
                    log_every=settings.log_every,
                    save_every=settings.save_every,
                    eval_every=settings.eval_every,
                    clip_grad_norm=settings.clip_grad_norm,
                    precision=settings.precision,
                ),
                run=self,
                device=self.device,
            )
        except NonFiniteLossError as error:
            report = self.folder / names.NONFINITE
            write_text(report, json.dumps(without_nan(error.record)) + "\n")
            error.written_to(report)
            raise
        return self.evaluation

    def evaluate(self) -> None:
        """Evaluate at this step, log it, let the training keep what it keeps, and save."""
        evaluation = self._evaluated()
        improved = self.progress.see_metric(evaluation.metrics[evaluation.best_metric])
        self.log.evaluation(self.progress.step, evaluation.metrics)
        self.training.keep(self, evaluation, improved=improved)
        self.save()

    def save(self) -> None:
        """Write last.pt, from which the run goes on; nothing for a run that cannot be resumed."""
        if self.resume_line is None:
            return
        model = self.training.model.state_dict()
        state = {
            "config": self.config.model_dump_json(),
            "num_images": self.training.num_images,
            "progress": self.progress.to_dict(),
            "model": {name: tensor.contiguous() for name, tensor in model.items()},
            "optimizer": self.training.optimizer.state_dict(),
            **self.training.state(),
        }
        save_state(self.folder / names.STATE, state)

    def list_skipped(self, files: Iterable[str]) -> None:
        """Add the names of images that could not be read to skipped.txt, each once, and say so."""
        path = self.folder / names.SKIPPED
        if self.skipped is None:
            self.skipped = set(
                path.read_text(encoding="utf-8").splitlines() if path.is_file() else ()
            )
        new = [name for name in files if name not in self.skipped]
        if new:
            self.skipped.update(new)
            write_text(path, "".join(f"{name}\n" for name in sorted(self.skipped)))
            more = f" and {len(new) - LISTED} more" if len(new) > LISTED else ""
            self.log.line(
                f"damaged, skipped: {', '.join(new[:LISTED])}{more} "
                f"({len(self.skipped)} so far, listed in {path})"
            )

    def duration(self) -> str:
        """Return the time since the start in words."""
        minutes, seconds = divmod(round(time.monotonic() - self.started), 60)
        return f"{minutes} min {seconds} s"

    def _go_on(self, saved: SavedRun) -> None:
        """Take over the progress and the optimizer of a saved run; write its configuration anew
        where it has changed, and keep the earlier one beside it.
        """
        num_images, path = self.training.num_images, self.folder / names.CONFIG
        if saved.state["num_images"] != num_images:
            raise ValueError(
                f"{saved.folder / names.STATE} is of a run on {saved.state['num_images']} training "
                f"images, there are {num_images} now: put the data back as they were, or start a "
                "new run from its weights"
            )
        self.training.optimizer.load_state_dict(saved.state["optimizer"])
        self.progress = Progress.from_dict(saved.state["progress"])
        if saved.config == saved.earlier:
            return
        kept = self.folder / names.CONFIG_UNTIL.format(step=self.progress.step)
        if path.is_file() and not kept.exists():
            path.rename(kept)
        write_text(path, to_yaml(self.config))

    def _how_it_stopped(self, error: BaseException) -> str | None:
        """A line for people, with the command that goes on where there is a state to go on from;
        None where there is nothing to say.
        """
        interrupted = isinstance(error, Interrupted)
        line = f"stopped after step {error.step}" if interrupted else "stopped"
        if self.resume_line is None or not (self.folder / names.STATE).is_file():
            return line if interrupted else None
        smaller = {"train.lr": self.config.train.lr / 10}
        settings = smaller if isinstance(error, NonFiniteLossError) else {}
        return f"{line}; continue with: {self.resume_line(self.folder, settings)}"

    def _announce(self) -> None:
        """Print the settings, the data, what was loaded, and what is about to be done."""
        settings, step, steps = self.config.train, self.progress.step, self.schedule.steps
        epochs = steps / -(-self.training.num_images // settings.batch_size)
        self.log.line(
            f"{what_differs(self.config)}every setting, defaults included: "
            f"{self.folder / names.CONFIG}"
        )
        self.log.line(self.training.describe_data())
        if self.training.loaded is not None:
            self.log.line(f"from  {self.training.loaded}")
        self.log.line(
            f"{self.folder}: steps {step}..{steps} ({epochs:.4g} epochs), lr "
            f"{settings.effective_lr:g} at batch {settings.batch_size} (lr {settings.lr:g} for "
            f"{settings.reference_batch}), device {self.device}, {torch.get_num_threads()} threads"
        )

    def _evaluated(self) -> Evaluation:
        """Evaluate, show the numbers and write nothing."""
        self.evaluation = self.training.evaluate()
        self.training.model.train()
        self.log.line(self.evaluation.table())
        return self.evaluation

    def _saved_before_an_error(self, batches: Iterable) -> Iterator:
        """Pass the batches on; where one cannot be made, keep what was learnt so far."""
        try:
            yield from batches
        except Exception:
            if self.progress.step > 0:
                self.save()
            raise

"""The life of a run: start, resume, train, evaluate, keep the best, say how to go on after a
stop.
"""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch

from detres.config import to_yaml, what_differs
from detres.console import plural
from detres.engine.determinism import OrderDigest, explained, shown, weights_digest
from detres.engine.distributed import ElsewhereError
from detres.engine.ema import WeightAverage, having
from detres.engine.flight_recorder import FlightRecorder, NonFiniteLossError
from detres.engine.log import QuietLog, RunLog
from detres.engine.loop import LoopSettings, fit
from detres.engine.memory_probe import peak_in_words
from detres.engine.meter import Meter
from detres.engine.optimizers import restore, saved_state
from detres.engine.probes import native_precision
from detres.engine.progress import Progress
from detres.engine.scaling import restore_scaler, scaler_of
from detres.engine.step import Batch, GradientStep
from detres.engine.stop import Interrupted
from detres.engine.writers import Writer, kinds_of, lacking, told_no_more
from detres.files import first_line, write_text
from detres.runs import folder as names
from detres.runs.advice import advice_on, batch_in_words
from detres.runs.agreement import require_same_everywhere
from detres.runs.bundle import write_bundle
from detres.runs.changes import changed_data, changed_length
from detres.runs.environment import facts_of, other_facts, write_environment
from detres.runs.fingerprint import DataChangedError
from detres.runs.judgement import Evaluation, Judgement
from detres.runs.lock import FolderLock, FollowedFolder
from detres.runs.saved import SavedRun
from detres.runs.skipped import SkippedImages
from detres.runs.state import FORMAT, reading_field, save_state
from detres.runs.training import RunConfig, Training

ResumeLine = Callable[[Path, dict[str, float]], str]
"""Run folder and settings, key -> value, -> the command line that goes on with them."""


class TrainingRun:
    """A run folder while it is trained in; to be used in a `with` statement, which closes its log,
    gives the folder back and says how to go on after a stop.

    lock: of the folder. resume_line: the command line that goes on with a run folder, some settings
    otherwise; None: it cannot be resumed. saved: of a resumed run; the optimizer is then put where
    it was, the model must be there already. accept_data_change: whether a resumed run may go on
    with other data than it has learned from. writers: told the numbers beside metrics.jsonl.

    Raises DataChangedError for other data, which would change its order and its schedule, and
    CheckpointError when the state does not fit; nothing is written then.
    """

    def __init__(
        self,
        lock: FolderLock | FollowedFolder,
        training: Training,
        *,
        device: torch.device,
        resume_line: ResumeLine | None,
        saved: SavedRun | None = None,
        accept_data_change: bool = False,
        writers: Sequence[Writer] = (),
    ) -> None:
        self.lock, self.folder, self.group = lock, lock.folder, training.group
        self.training, self.device, self.resume_line = training, device, resume_line
        self.config, reason = _settled(training.config, device)
        self.notes = [lock.taken_over] if lock.taken_over else []
        if reason is not None:
            self.notes.append(f"precision {self.config.train.precision}: {reason}")
        self.schedule = training.schedule
        self.progress, self.meter, self.recorder = Progress(), Meter(), FlightRecorder()
        decay = self.config.train.ema_decay
        self.average = None if decay is None else WeightAverage(training.model, decay)
        self.order = OrderDigest()
        self.scaler = scaler_of(self.config.train.precision, device)
        self.earlier_s = 0.0  # that a resumed run has taken before
        self.evaluation: Evaluation | None = None
        self.skipped = SkippedImages(self.folder / names.SKIPPED, self.group)
        self.settings_said = False
        self.writers = kinds_of(writers)  # that it has, or had before it was resumed
        self.unsaved = saved is None  # what it begins with
        self.data = training.fingerprints() if resume_line is not None else {}
        if saved is not None:
            self._go_on(saved, accept_data_change)
        self.started = time.monotonic()
        if not self.group.is_first:
            self.log: RunLog | QuietLog = QuietLog()
            return
        write_environment(self.folder / names.ENVIRONMENT, device, start_step=self.progress.step)
        self.log = RunLog(
            self.folder / names.RECORDS,
            self.folder / names.TENSORBOARD,
            console=sys.stdout,
            steps=self.schedule.steps,
            progress=self.progress,
            writers=writers,
            config=json.loads(self.config.model_dump_json()),
        )

    @classmethod
    def start(
        cls,
        training: Training,
        out: str | Path | None,
        *,
        device: torch.device,
        resume_line: ResumeLine | None,
        settings_said: bool = False,
        writers: Sequence[Writer] = (),
    ) -> TrainingRun:
        """Begin a run in a new folder: `out`, or the next free one of its name under runs/.

        settings_said: whether the user has read the settings before. Raises what new_run_folder
        raises.
        """
        group, lock = training.group, None
        with group.together():
            if group.is_first:
                lock = names.new_run_folder(training.config.name, out)
        folder = group.broadcast(None if lock is None else lock.folder)
        lock = lock or FollowedFolder(folder)
        try:
            with group.together():
                if group.is_first:
                    config, _ = _settled(training.config, device)
                    write_text(lock.folder / names.CONFIG, to_yaml(config))
                    training.begin(lock.folder)
                run = cls(lock, training, device=device, resume_line=resume_line, writers=writers)
            require_same_everywhere(group, run.config, run.data)
            run.settings_said = settings_said
            return run
        except BaseException:
            lock.release(keep=True)  # so that the folder is known as one to be used again
            raise

    @classmethod
    def resume(
        cls,
        saved: SavedRun,
        training: Training,
        *,
        device: torch.device,
        resume_line: ResumeLine,
        accept_data_change: bool = False,
        writers: Sequence[Writer] = (),
    ) -> TrainingRun:
        """Go on with a run where its last.pt left it; raises as the constructor does, and what
        SavedRun.take_over raises.
        """
        group, lock = training.group, FollowedFolder(saved.folder)
        with group.together():
            if group.is_first:
                lock = saved.take_over()
        try:
            with group.together():
                run = cls(
                    lock,
                    training,
                    device=device,
                    resume_line=resume_line,
                    saved=saved,
                    accept_data_change=accept_data_change,
                    writers=writers,
                )
            require_same_everywhere(group, run.config, run.data)
            return run
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> TrainingRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        try:
            if kind is not None and (line := self._how_it_stopped(error)):
                self.log.line(line)
            self.log.close()
        finally:
            begun = self.resume_line is not None and not (self.folder / names.STATE).is_file()
            self.lock.release(keep=begun)

    def train(self) -> Evaluation:
        """Train to the configured end, or until early stopping, and return the last evaluation; a
        run that is finished is only evaluated once more; this method then writes nothing.

        Raises what `fit` raises.
        """
        if self.group.is_first:
            self._announce()
        if self._is_over and self.progress.whole == self.progress.step:
            return self._evaluated_once_more()
        if self.unsaved:
            self.save()  # so that a run that is killed can be resumed from its first step on
        settings = self.config.train
        try:
            fit(
                self.training.model,
                self.training.optimizer,
                self._saved_before_an_error(self.training.batches(self)),
                schedule=self.schedule,
                settings=LoopSettings(
                    seed=self.config.seed,
                    accumulate=settings.accumulate,
                    log_every=settings.log_every,
                    save_every=settings.save_every,
                    eval_every=settings.evaluated_every(self.schedule.steps),
                    early_stopping=settings.early_stopping,
                    clip_grad_norm=settings.clip_grad_norm,
                    precision=settings.precision,
                ),
                run=self,
                device=self.device,
                group=self.group,
            )
        except (Interrupted, ElsewhereError):
            raise
        except Exception as error:
            is_ours = isinstance(error, NonFiniteLossError) or not isinstance(error, RuntimeError)
            told = error if is_ours else explained(error) or self.group.explained(error)
            self._write_bundle(told)
            if told is error:
                raise
            raise told from error
        return self.evaluation

    def _write_bundle(self, error: Exception) -> None:
        """Write what is known of an error, and say where it is; what hinders that is said too."""
        model = self.training.model
        precision = self.config.train.precision
        try:
            self.lock.require_held()
            place = write_bundle(
                self.folder,
                error,
                self.training,
                self.config,
                recorder=self.recorder,
                gradients=GradientStep(model, model, self.group, self.device, precision),
                step=self.progress.step,
            )
        except Exception as hindrance:  # the first error is the one to be told
            self.log.line(f"no bundle of it could be written: {first_line(hindrance)}")
        else:
            if place is not None:
                self.log.line(
                    f"written: {place}; what is at fault says: python -m detres replay "
                    f"{shlex.quote(str(place))}"
                )

    def probe_memory(self) -> None:
        """Say how much memory the worst batch that the settings allow takes at most, of those that
        are gone through at once; raises StepMemoryError where there is not enough.
        """
        train, model = self.config.train, self.training.model
        batch = self.training.worst_batch(train.batch_size // self.group.size)
        self.log.line(peak_in_words(model, batch, self.device, train.precision))

    def evaluate(self) -> None:
        """Evaluate at this step, log it, let the training keep what it keeps, and save; the
        processes of the group do so together.

        On the way an evaluation may look at some of the held-out images; where the run is over, at
        its last step or by early stopping, it looks at all. Evaluated and kept is the moving
        average of the weights where there is one.
        """
        self.group.doing(f"evaluating after step {self.progress.step}")
        self.group.same_buffers(self.training.model)
        digests = {
            "weights_digest": weights_digest(self.training.model.state_dict()),
            "order_digest": shown(self.order.of_all(self.group)),
        }
        with self._averaged():
            whole = self._is_over
            judgement = self._judged(whole=whole)
            improved = self.progress.see_metric(judgement.comparable)
            if self._is_over and not whole:
                self.log.line(
                    f"early stopping: none of the last {self.progress.without_better} evaluations "
                    f"was better than {self.progress.best:.4g}"
                )
                whole, judgement = True, self._judged(whole=True)
            if whole:
                self.progress.whole = self.progress.step
            self.lock.require_held()
            self.log.evaluation(self.progress.step, judgement.record() | digests)
            self.training.keep(self, judgement, improved=improved, whole=whole)
        self.save()

    def saw(self, parts: list[Batch]) -> None:
        """Take in the images of the step that is done into the digest of their order."""
        self.order.see(self.progress.step, parts, self.group)

    def save(self) -> None:
        """Write last.pt, from which the run goes on; nothing for a run that cannot be resumed. All
        processes of the group call this, the first one writes.
        """
        self.skipped.list_of_all(self.log.line)
        order = self.order.of_all(self.group)
        if self.resume_line is None or not self.group.is_first:
            return
        self.lock.require_held()
        self.log.flush()
        model = self.training.model.state_dict()
        state = {
            "format": FORMAT,
            "wing": self.training.wing,
            "config": self.config.model_dump_json(),
            "num_images": self.training.num_images,
            "data": {split: found.state() for split, found in self.data.items()},
            "environment": facts_of(self.device),
            "progress": self.progress.to_dict(),
            "meter": self.meter.state(),
            "seconds": self._seconds(),
            "order": order,
            "writers": self.writers,
            "model": {name: tensor.contiguous() for name, tensor in model.items()},
            "optimizer": saved_state(self.training.optimizer),
            **({} if self.average is None else {"average": self.average.state()}),
            **({"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {}),
            **self.training.state(),
        }
        save_state(self.folder / names.STATE, state, previous=self.folder / names.PREVIOUS)

    def list_skipped(self, files: Iterable[str]) -> None:
        """Add the names of images that could not be read to skipped.txt, each once, and say so; of
        several processes when the run is saved.
        """
        self.skipped.add(files, self.log.line)

    def duration(self) -> str:
        """Return in words the time that the run has taken, that before it was resumed included."""
        return in_words(self._seconds())

    def _seconds(self) -> float:
        return self.earlier_s + time.monotonic() - self.started

    @property
    def _is_over(self) -> bool:
        return self.progress.is_over(self.schedule.steps, self.config.train.early_stopping)

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """The moving average in the place of the weights, where there is one."""
        if self.average is None:
            return contextlib.nullcontext()
        return having(self.training.model, self.average.tensors)

    def _go_on(self, saved: SavedRun, accept_data_change: bool) -> None:
        """Take over the progress, the running means and the optimizer of a saved run; write its
        configuration anew where it has changed, and keep the earlier one beside it.
        """
        state, path = saved.state, saved.path
        self.notes += saved.notes
        with reading_field(path, "progress"):
            self.progress = Progress.from_dict(state["progress"])
        self._compare_data(saved, accept_data_change)
        with reading_field(path, "environment"):
            others = other_facts(state.get("environment", {}), facts_of(self.device))
        if others is not None:
            self.notes.append(f"{others}: the last digits may differ from a run never stopped")
        if self.config.train.precision == "bf16":
            native, reason = native_precision(self.device)
            if native != "bf16":
                self.notes.append(f"goes on in bf16, as it began, though {reason}: slower here")
        if "meter" in state:
            with reading_field(path, "meter"):
                self.meter.restore(state["meter"])
        if "seconds" in state:  # earlier versions did not keep them
            with reading_field(path, "seconds"):
                self.earlier_s = _checked_seconds(state["seconds"])
        if "order" in state:  # earlier versions did not keep it
            with reading_field(path, "order"):
                self.order.restore(state["order"], self.group)
        with reading_field(path, "writers"):  # earlier versions did not keep them
            lacks = lacking(state.get("writers", []), self.writers)
        if lacks:
            self.writers += lacks
            self.notes.append(told_no_more(lacks))
        if self.average is not None:
            with reading_field(path, "average"):
                self.average.restore(state["average"])
        if self.scaler.is_enabled():
            with reading_field(path, "scaler"):
                restore_scaler(self.scaler, state["scaler"])
        with reading_field(path, "optimizer"):
            complete = not saved.is_of_format_1
            restore(self.training.optimizer, state["optimizer"], complete=complete)
        note = changed_length(saved, self.schedule, self.progress, self.training.num_images)
        if note is not None:
            self.notes.append(note)
        if not self.group.is_first:
            return
        saved.put_in_place()
        config = self.folder / names.CONFIG
        if saved.config == saved.earlier:
            return
        kept = self.folder / names.CONFIG_UNTIL.format(step=self.progress.step)
        if config.is_file() and not kept.exists():
            config.rename(kept)
        write_text(config, to_yaml(self.config))
        self.unsaved = True

    def _compare_data(self, saved: SavedRun, accepted: bool) -> None:
        """Raise DataChangedError when the data are not those of a saved run, unless `accepted`."""
        if "data" not in saved.state:
            self.notes.append(
                f"{saved.path} is of an earlier version and does not say which data it was trained "
                "on: only their number was compared"
            )
        changed = changed_data(saved, self.data, self.training.num_images)
        if changed is None:
            with reading_field(saved.path, "progress"):
                self._require_within_schedule()
        elif accepted:
            self.notes.append(f"goes on with other data than it was trained on: {changed}")
        else:
            raise DataChangedError(
                f"the data are not those that {saved.path} was trained on: {changed}"
            )

    def _require_within_schedule(self) -> None:
        if self.progress.step > self.schedule.steps:
            raise ValueError(f"step {self.progress.step} of {self.schedule.steps}")

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
        epochs = steps / -(-self.training.num_images // settings.images_per_step)
        differs = "" if self.settings_said else what_differs(self.config)
        self.log.line(f"{differs}every setting, defaults included: {self.folder / names.CONFIG}")
        self.log.line(self.training.describe_data())
        if self.training.loaded is not None:
            self.log.line(f"from  {self.training.loaded}")
        self.log.line(
            f"{self.folder}: steps {step}..{steps} ({epochs:.4g} epochs), lr "
            f"{settings.effective_lr:g} at batch {batch_in_words(settings, self.group.size)} "
            f"(lr {settings.lr:g} for {settings.reference_batch}), device {self.device}, "
            f"{plural(torch.get_num_threads(), 'thread')}, {settings.precision}"
        )
        self.notes += advice_on(settings, self.schedule, self.training.model, self.group.size)
        for note in self.notes:
            self.log.line(f"note: {note}")

    def _evaluated_once_more(self) -> Evaluation:
        step, steps = self.progress.step, self.schedule.steps
        done = f"all {steps} steps are done"
        if step < steps:
            done = f"stopped early after step {step} of {steps}"
        self.log.line(f"finished: {done}; evaluated once more")
        with self._averaged():
            return self._judged(whole=True).evaluation

    def _judged(self, *, whole: bool) -> Judgement:
        """Evaluate, show the numbers and write nothing."""
        judgement = self.training.judge(whole=whole)
        self.training.model.train()
        self.evaluation = judgement.evaluation
        self.log.line(judgement.table())
        return judgement

    def _saved_before_an_error(self, batches: Iterable) -> Iterator:
        """Pass the batches on; where one cannot be made, keep what was learnt so far."""
        try:
            yield from batches
        except Exception:
            if self.progress.step > 0:
                self.save()
            raise


def in_words(duration: float) -> str:
    """Return a duration in s as minutes and seconds."""
    minutes, seconds = divmod(round(duration), 60)
    return f"{minutes} min {seconds} s"


def _checked_seconds(value: object) -> float:
    if type(value) is not float or not 0 <= value < math.inf:
        raise ValueError(f"{value!r:.40} are no seconds")
    return value


def _settled(config: RunConfig, device: torch.device) -> tuple[RunConfig, str | None]:
    """The configuration with its precision settled, and why it is that; None: it was."""
    train, reason = config.train.settled(device)
    return (config if reason is None else config.model_copy(update={"train": train})), reason

"""The other schemes of training: RPN alone, Fast R-CNN alone on saved proposals, and the paper's
four steps made of them (Ren et al. 2015, section 3.2; He et al. 2016, appendix A).
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from detres.config import ConfigError, Section, check, to_yaml, with_overrides
from detres.console import write_line
from detres.detection.annotations import Annotations
from detres.detection.build import build_val_set, eval_loader
from detres.detection.config import PHASES, TRAINING_SPLITS, DetectionConfig
from detres.detection.data.proposals import ProposalsError, read_proposals, save_proposals
from detres.detection.data.read import read_split
from detres.detection.evaluation.proposal_recall import COUNTS, RecallResult, proposal_recall
from detres.detection.evaluation.protocol import DetectionEvaluation, evaluate
from detres.detection.inference.dataset import detect_dataset, propose_dataset
from detres.detection.judging import Batches
from detres.detection.models.faster_rcnn import FasterRCNN, FastRCNN, ProposalNetwork
from detres.detection.models.rpn import ProposalCounts
from detres.detection.structures import Proposals
from detres.detection.training import (
    WING,
    DetectionTraining,
    detecting_in_training,
    keep_detector,
)
from detres.detection.weights_file import Origin, learnt_images_of, load_detector, save_detector
from detres.engine.writers import Writer, kinds_of, lacking, told_no_more
from detres.files import CheckpointError, first_line, write_text
from detres.runs import folder as names
from detres.runs.environment import write_environment
from detres.runs.fingerprint import DataChangedError
from detres.runs.lock import FolderLock
from detres.runs.run import ResumeLine, TrainingRun, in_words
from detres.runs.saved import SavedRun
from detres.runs.settings import with_data_root
from detres.user_files import JsonError, TextError, read_json

FOLDERS = tuple(f"{number}-{scheme}" for number, scheme in enumerate(PHASES, start=1))
"""Of the four steps, below the run folder; each is a run folder of its own scheme."""

FORMAT = "detres-alternating-1"
"""What phase.json calls itself."""


class ProposalTraining(DetectionTraining):
    """An RPN alone: what it learns is to propose, and the recall of its proposals judges it."""

    @staticmethod
    def trained_part(detector: FasterRCNN) -> nn.Module:
        """Return the RPN on the shared layers."""
        return ProposalNetwork(detector)

    def find(self, truth: Annotations, batches: Batches) -> Proposals:
        """Return what is proposed for the images of `truth`, which come in `batches`."""
        counts = ProposalCounts(self.config.model.rpn.test_pre_nms_top_n, COUNTS[-1])
        return propose_dataset(self.detector, batches, truth, counts, self.device)

    def measure(
        self,
        truth: Annotations,
        found: Proposals,
        *,
        whole: bool,  # noqa: ARG002
    ) -> RecallResult:
        """Return the recall of what was proposed for the images of `truth`."""
        return proposal_recall(truth, found)

    def as_final(self, evaluation: RecallResult) -> RecallResult:
        """Return it as it is: recall has no backends."""
        return evaluation

    def of_part(self, found: Proposals) -> Proposals:
        """Return what was proposed for the images that all evaluations look at."""
        return found.of_images(self.held_out.rows)

    def write(self, folder: Path, evaluation: RecallResult, step: int, truth: Annotations) -> None:
        """Write the numbers of an evaluation on the images of `truth`, and the weights as they are,
        after `step` steps.
        """
        class_map, weights = self.data.train.class_map, folder / names.DETECTOR_WEIGHTS
        save_detector(weights, self.detector, self.config, class_map, step, self.origin)
        numbers = {"step": step, "images": len(truth), **evaluation.to_dict()}
        metrics = json.dumps(numbers, indent=2)
        write_text(folder / names.METRICS, metrics)


class FastRCNNTraining(DetectionTraining):
    """Fast R-CNN: the RoI head on proposals that were saved, in training and in evaluation."""

    @staticmethod
    def trained_part(detector: FasterRCNN) -> nn.Module:
        """Return the detector without its RPN."""
        return FastRCNN(detector)


TRAININGS = {"joint": DetectionTraining, "rpn": ProposalTraining, "fast_rcnn": FastRCNNTraining}
"""Scheme -> what one run trains by it; alternating is four runs."""


def propose_split(
    detector: FasterRCNN,
    config: DetectionConfig,
    split: str,
    counts: ProposalCounts,
    device: torch.device,
) -> tuple[Annotations, Proposals]:
    """Return the annotations of a `split`, and what `detector` proposes for its images at test
    size, `counts` of them; raises what `read_split` raises.
    """
    annotations = read_split(config.data, split)
    loader = eval_loader(
        build_val_set(config.model, annotations),
        batch_size=config.eval.batch_size,
        num_workers=config.data.workers,
    )
    return annotations, propose_dataset(detector.to(device), loader, annotations, counts, device)


def described(source: Path, counts: ProposalCounts, nms_thresh: float) -> str:
    """Return in words what made proposals: the weights at `source`, and how many there are."""
    entering = "all boxes" if counts.pre_nms is None else f"the best {counts.pre_nms}"
    return f"{source}: {entering} into NMS at IoU {nms_thresh:g}, the best {counts.post_nms} out"


@dataclass(frozen=True)
class SavedAlternating:
    """A run folder of scheme alternating to be resumed, as its phase.json says.

    phase: the step it is in, 0..3. config: to go on with; earlier: as it was. init_from: weights
    that the first two steps start from. data: split -> a digest of what is learned from, {} before
    the first step. seconds: that the steps before took. computes_alike: whether it was
    deterministic. writers: that were told its numbers, by the names of their classes.
    """

    folder: Path
    phase: int
    config: DetectionConfig
    earlier: DetectionConfig
    init_from: str | None
    data: dict[str, str]
    seconds: float = 0.0
    computes_alike: bool = False
    writers: tuple[str, ...] = ()

    @classmethod
    def read(
        cls, folder: Path, *, overrides: tuple[str, ...] | list[str], root: str | None
    ) -> SavedAlternating:
        """Read phase.json; overrides: "key=value" settings that are to be otherwise; root: where
        the data are now. Raises CheckpointError naming the file when it is not what a run writes,
        InUseError, ConfigError.
        """
        path = folder / names.PHASE
        FolderLock.require_free(folder / names.LOCK)
        try:
            found = read_json(path, "state of a run")
            phase, init_from, data = found["phase"], found["init_from"], found["data"]
            if found["format"] != FORMAT:
                raise ValueError(f"format {found['format']!r:.40}, expected {FORMAT}")
            if type(phase) is not int or not 0 <= phase < len(PHASES):
                raise ValueError(f"phase {phase!r:.40}, expected 0..{len(PHASES) - 1}")
            if not isinstance(init_from, str | None) or not isinstance(data, dict):
                raise ValueError("init_from is no path, or data no digests by split")
            seconds = found.get("seconds", 0.0)  # earlier versions did not keep them
            if type(seconds) is not float or not 0 <= seconds < math.inf:
                raise ValueError(f"seconds {seconds!r:.40} are no time")
            computes_alike = found.get("deterministic", False)  # nor this
            if type(computes_alike) is not bool:
                raise ValueError(f"deterministic {computes_alike!r:.40} is neither true nor false")
            writers = tuple(lacking(found.get("writers", []), ()))  # nor these
            tree = dict(found["config"])
        except (JsonError, TextError) as error:
            raise CheckpointError(str(error)) from None
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path} is not what a run of four steps writes: {first_line(error):.200}"
            ) from None
        earlier = check(DetectionConfig, tree, str(path))
        config = with_overrides(earlier, overrides, str(path)) if overrides else earlier
        for name in ("steps", "epochs", "milestones", "early_stopping"):
            if getattr(config.train, name) != getattr(earlier.train, name):
                raise ConfigError(
                    f"train.{name}: a run of scheme alternating keeps the lengths that its four "
                    "steps were divided by; start a new one for others"
                )
        if root:
            config = config.model_copy(update={"data": with_data_root(config.data, root)})
        return cls(
            folder, phase, config, earlier, init_from, data, seconds, computes_alike, writers
        )


def read_saved(
    folder: Path,
    kind: type[Section],
    *,
    wing: str,
    keys: tuple[str, ...] = (),
    overrides: tuple[str, ...] | list[str] = (),
    root: str | None = None,
) -> SavedRun | SavedAlternating:
    """Read a run folder of any scheme; arguments and errors as those of SavedRun.read."""
    if (folder / names.PHASE).is_file():
        return SavedAlternating.read(folder, overrides=overrides, root=root)
    return SavedRun.read(folder, kind, wing=wing, keys=keys, overrides=overrides, root=root)


class AlternatingRun:
    """A run folder while the four steps are trained in it; to be used in a `with` statement.

    Each step is a run in a folder of its own below it, FOLDERS, which is resumed as any run is; the
    proposals of the two RPNs are in theirs. phase.json says which step it is in. The end is one
    detector in best.safetensors, evaluated with its own RPN.

    lock: of the folder. saved: the state it goes on from. resume_line: the command line that goes
    on with it. first: what the first step trains, where that is made already. accept_data_change:
    whether it may go on with other data than it has learned from. writers: told the numbers of each
    step, a run of its own.
    """

    def __init__(
        self,
        lock: FolderLock,
        saved: SavedAlternating,
        *,
        device: torch.device,
        resume_line: ResumeLine,
        first: DetectionTraining | None = None,
        accept_data_change: bool = False,
        writers: Sequence[Writer] = (),
    ) -> None:
        self.lock, self.folder, self.config = lock, lock.folder, saved.config
        self.phase, self.init_from, self.data = saved.phase, saved.init_from, dict(saved.data)
        self.device, self.accept_data_change = device, accept_data_change
        self.resume_line, self.first, self.writers = resume_line, first, writers
        self.told = list(dict.fromkeys([*saved.writers, *kinds_of(writers)]))
        self.in_a_step, self.started = False, time.monotonic()
        self.earlier_s = saved.seconds  # that the run has taken before
        self.configs = configs_of_phases(self.config, self.folder)

    @classmethod
    def start(
        cls,
        config: DetectionConfig,
        out: str | Path | None,
        *,
        device: torch.device,
        resume_line: ResumeLine,
        init_from: str | None = None,
        writers: Sequence[Writer] = (),
    ) -> AlternatingRun:
        """Begin a run in a new folder: `out`, or the next free one of its name under runs/.

        init_from: weights file of a trained detector, of these or other classes, from which the
        first two steps start. Raises what configs_of_phases and DetectionTraining.start raise,
        before a folder is made, and what new_run_folder raises.
        """
        train, reason = config.train.settled(device)
        config = config.model_copy(update={"train": train})
        first = configs_of_phases(config, Path())[0]
        training = TRAININGS[first.train.scheme].start(first, device, init_from)
        lock = names.new_run_folder(config.name, out)
        try:
            path = None if init_from is None else str(Path(init_from).absolute())
            saved = SavedAlternating(lock.folder, 0, config, config, path, {})
            run = cls(
                lock,
                saved,
                device=device,
                resume_line=resume_line,
                first=training,
                writers=writers,
            )
            write_text(run.folder / names.CONFIG, to_yaml(config))
            write_environment(run.folder / names.ENVIRONMENT, device)
            run.save()
        except BaseException:
            lock.release(keep=True)  # so that the folder is known as one to be used again
            raise
        if reason is not None:
            write_line(f"note: precision {train.precision}: {reason}")
        return run

    @classmethod
    def resume(
        cls,
        saved: SavedAlternating,
        *,
        device: torch.device,
        resume_line: ResumeLine,
        accept_data_change: bool = False,
        writers: Sequence[Writer] = (),
    ) -> AlternatingRun:
        """Go on with a run in the step that it is in; raises InUseError, and what the constructor
        raises.
        """
        lock = FolderLock(saved.folder / names.LOCK)
        try:
            names.remove_unfinished(saved.folder)
            run = cls(
                lock,
                saved,
                device=device,
                resume_line=resume_line,
                accept_data_change=accept_data_change,
                writers=writers,
            )
            done = sum(config.train.steps for config in run.configs[: saved.phase])
            write_environment(run.folder / names.ENVIRONMENT, device, start_step=done)
            if saved.config != saved.earlier:
                write_text(run.folder / names.CONFIG, to_yaml(saved.config))
                run.save()
        except BaseException:
            lock.release()
            raise
        if lock.taken_over:
            write_line(f"note: {lock.taken_over}")
        lacks = lacking(run.told, kinds_of(writers))
        if lacks and not run.is_in_a_step:  # a step says it by itself
            write_line(f"note: {told_no_more(lacks)}")
        return run

    def __enter__(self) -> AlternatingRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        if kind is not None and not self.in_a_step:  # a step says by itself how to go on
            write_line(f"stopped; continue with: {self.resume_line(self.folder, {})}")
        self.lock.release()

    def duration(self) -> str:
        """Return in words the time that the run has taken, that before it was resumed included."""
        return in_words(self._seconds())

    def _seconds(self) -> float:
        return self.earlier_s + time.monotonic() - self.started

    def save(self) -> None:
        """Write phase.json, from which the run goes on."""
        self.lock.require_held()
        state = {
            "format": FORMAT,
            "phase": self.phase,
            "init_from": self.init_from,
            "data": self.data,
            "seconds": self._seconds(),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "writers": self.told,
            "config": json.loads(self.config.model_dump_json()),
        }
        write_text(self.folder / names.PHASE, json.dumps(state, indent=2) + "\n")

    def train(self) -> DetectionEvaluation:
        """Train the steps that are not done and return the evaluation of the whole detector;
        raises what TrainingRun.train raises, DataChangedError where the data have changed between
        two steps.
        """
        while True:
            self._train_step()
            if self.phase == len(PHASES) - 1:
                return self._evaluated()
            self.phase += 1
            self.save()

    def probe_memory(self) -> None:
        """Raise ValueError: each of the steps has a model of its own."""
        raise ValueError(
            "--probe-memory goes with one model, and train.scheme=alternating trains four: leave "
            "it out"
        )

    def _train_step(self) -> None:
        """Train the step the run is in to its end, and save what its RPN proposes."""
        config, number = self.configs[self.phase], self.phase + 1
        write_line(f"== step {number} of {len(PHASES)}, {config.train.scheme}: {self._step_folder}")
        if config.train.scheme == "fast_rcnn":
            self._save_proposals(self.phase - 1)  # but for what is there
        with self._step_run(config) as run:
            self.in_a_step = True
            self.earlier_s += run.earlier_s
            run.train()
        self.in_a_step = False
        if config.train.scheme == "rpn":
            self._save_proposals(self.phase)

    @property
    def _step_folder(self) -> Path:
        return self.folder / FOLDERS[self.phase]

    @property
    def is_in_a_step(self) -> bool:
        """Whether the step has begun before."""
        return any((self._step_folder / name).exists() for name in (names.STATE, names.PREVIOUS))

    def _step_run(self, config: DetectionConfig) -> TrainingRun:
        """The run of the step, where it was left or new."""
        kind, folder = TRAININGS[config.train.scheme], self._step_folder

        def resume_line(_: Path, settings: dict[str, float]) -> str:
            return self.resume_line(self.folder, settings)

        if self.is_in_a_step:
            saved = SavedRun.read(folder, DetectionConfig, wing=WING)
            saved = replace(saved, config=config)
            return TrainingRun.resume(
                saved,
                kind.resume(saved, self.device),
                device=self.device,
                resume_line=resume_line,
                accept_data_change=self.accept_data_change,
                writers=self.writers,
            )
        training, self.first = self.first, None
        if training is None:
            training = kind.start(config, self.device, self._weights_before())
            training.init_from = self.init_from  # the last two start from the run's own weights
        self._compare_data(training)
        return TrainingRun.start(
            training,
            folder,
            device=self.device,
            resume_line=resume_line,
            writers=self.writers,
        )

    def _weights_before(self) -> str | None:
        """What the step starts from: the pretrained backbone in the first two, then the detector of
        the step before.
        """
        if self.configs[self.phase].train.shared_layers == "learn":
            return self.init_from
        return str(self.folder / FOLDERS[self.phase - 1] / names.DETECTOR_WEIGHTS)

    def _compare_data(self, training: DetectionTraining) -> None:
        """Raise DataChangedError when a new step has other data than the first, unless accepted."""
        found = training.fingerprints()
        now = {split: _digest(found[split].state()) for split in TRAINING_SPLITS}
        if now == self.data:
            return
        if self.data and not self.accept_data_change:
            split = next(split for split in now if now[split] != self.data.get(split))
            raise DataChangedError(
                f"the data are not those that {self.folder} was trained on: they differ in {split}"
            )
        self.data = now
        self.save()

    def _save_proposals(self, phase: int) -> None:
        """Write what the RPN of a step proposes for both splits, but for what is there."""
        folder, config = self.folder / FOLDERS[phase], self.configs[phase]
        settings, rpn = config.train, config.model.rpn
        wanted = {
            names.TRAIN_PROPOSALS: (
                "train",
                ProposalCounts(settings.proposals_pre_nms_top_n, settings.proposals_post_nms_top_n),
            ),
            # what the detector will look at
            names.VAL_PROPOSALS: (
                "val",
                ProposalCounts(rpn.test_pre_nms_top_n, rpn.test_post_nms_top_n),
            ),
        }
        wanted = {
            name: one
            for name, one in wanted.items()
            if not self._has_proposals(folder / name, one[0])
        }
        if not wanted:
            return
        weights = folder / names.DETECTOR_WEIGHTS
        detector, _, _ = load_detector(weights)
        for name, (split, counts) in wanted.items():
            annotations, found = propose_split(detector, config, split, counts, self.device)
            self.lock.require_held()
            made_by = described(weights, counts, rpn.nms_thresh)
            save_proposals(folder / name, found, annotations, made_by)
            write_line(
                f"{folder / name}: {len(found.scores)} proposals for {len(found)} images of {split}"
            )

    def _has_proposals(self, file: Path, split: str) -> bool:
        """Whether proposals for a split are there; those of the data as they were before a change
        that is accepted are not.
        """
        if not file.is_file() or not self.accept_data_change:
            return file.is_file()
        try:
            read_proposals(file, read_split(self.config.data, split))
        except ProposalsError:
            return False
        return True

    def _evaluated(self) -> DetectionEvaluation:
        """Evaluate the detector of the last step with its own RPN, and keep it where it is not kept
        yet.
        """
        weights = self.folder / FOLDERS[-1] / names.DETECTOR_WEIGHTS
        detector, _, class_map = load_detector(weights)
        val = read_split(self.config.data, "val").matched_to(class_map, str(self.folder))
        detector = detector.to(self.device)
        detecting, other_scales = detecting_in_training(self.config, detector, detector)
        loader = eval_loader(
            build_val_set(self.config.model, val, other_scales),
            batch_size=self.config.eval.batch_size,
            num_workers=self.config.data.workers,
        )
        precision = self.config.eval.precision
        found = detect_dataset(detecting, loader, class_map, self.device, precision)
        evaluation = evaluate(
            self.config.eval.protocol, val, found, backend=self.config.eval.backend
        )
        write_line(evaluation.table())
        if not (self.folder / names.DETECTOR_WEIGHTS).exists():
            self.lock.require_held()
            step = sum(config.train.steps for config in self.configs)
            origin = Origin(self.init_from, learnt_images_of(weights))
            keep_detector(self.folder, detector, self.config, val, evaluation, step, origin)
        return evaluation


def configs_of_phases(config: DetectionConfig, folder: Path) -> list[DetectionConfig]:
    """Return the configurations of the four steps of a run in `folder`; raises ConfigError for
    settings that no step can have, and what DetectionTrainConfig.phases raises.
    """
    num_images = 0  # which steps do not depend on
    if config.train.steps is None:
        num_images = len(read_split(config.data, "train"))
    configs = []
    for number, train in enumerate(config.train.phases(num_images)):
        tree = {**json.loads(config.model_dump_json()), "train": train}
        if train["scheme"] == "fast_rcnn":
            proposed = (folder / FOLDERS[number - 1]).absolute()
            tree["data"] |= {
                "train_proposals": str(proposed / names.TRAIN_PROPOSALS),
                "val_proposals": str(proposed / names.VAL_PROPOSALS),
            }
        where = f"step {number + 1} of train.scheme=alternating"
        configs.append(check(DetectionConfig, tree, where))
    return configs


def _digest(state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in ("records", "files"):
        digest.update(state[name].numpy().tobytes())
    return digest.hexdigest()

"""A localiser that learns: what a run trains, how it is evaluated, and what is kept of it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from detres.class_map import ClassMap
from detres.detection.annotations import Annotations
from detres.detection.build import train_loader
from detres.detection.data.crops import ProposalsByImage
from detres.detection.evaluation.localisation import (
    LocalisationResult,
    first_outcome,
    given_class_error,
)
from detres.detection.inference.sheet import write_sheet
from detres.detection.localisation.build import (
    build_class_rpn,
    build_localiser,
    build_rcnn,
    build_train_set,
    read_localisation,
)
from detres.detection.localisation.config import LocalisationConfig, LocalisationModelConfig
from detres.detection.localisation.localise import (
    LoaderSettings,
    Member,
    Views,
    how,
    localise,
    own_labels,
    propose,
)
from detres.detection.localisation.weights_file import (
    WING,
    load_proposer,
    proposer_of_state,
    save_localiser,
)
from detres.detection.models.class_rpn import ClassRPN
from detres.detection.models.rcnn import RCNN
from detres.detection.training import fingerprint_of
from detres.engine.distributed import Group
from detres.files import load_model_state, write_text
from detres.runs.fingerprint import Fingerprint
from detres.runs.folder import DETECTOR_WEIGHTS, METRICS, PICTURE
from detres.runs.judgement import Judgement
from detres.runs.saved import SavedRun
from detres.runs.settings import build_optimizer, build_schedule, share_of
from detres.runs.state import reading_field
from detres.runs.training import RunSoFar


class LocalisationData:
    """The training and the held-out images of one run; raises, before anything is written, what
    read_localisation raises, and ClassMismatchError when the names of their classes differ.
    """

    def __init__(self, config: LocalisationConfig) -> None:
        self.train = read_localisation(config.data, "train")
        val = read_localisation(config.data, "val")
        self.val = val.matched_to(self.train.class_map, self.train.source)


class LocalisationTraining:
    """What a TrainingRun trains, evaluates and keeps: a localiser on images of one class each.

    proposer: of an R-CNN, the settings of its per-class RPN. Evaluated is the error given the true
    class; the weights kept are the best by it.
    """

    wing = WING

    def __init__(
        self,
        config: LocalisationConfig,
        model: ClassRPN | RCNN,
        data: LocalisationData,
        device: torch.device,
        proposer: LocalisationModelConfig | None = None,
    ) -> None:
        self.config, self.data, self.device, self.proposer = config, data, device, proposer
        self.group = Group()  # one process by itself
        self.model = model.to(device)
        if config.train.checkpoint_activations:
            net = model.net if isinstance(model, RCNN) else model.backbone
            net.checkpoint_activations(tuple(net.channels))
        self.num_images = len(data.train)
        self.optimizer = build_optimizer(config.train, model)
        self.schedule = build_schedule(config.train, len(data.train))
        self.loaded: str | None = None
        proposals = self._proposals() if isinstance(model, RCNN) else None
        self.train_set = build_train_set(config, data.train, proposals)

    @classmethod
    def start(cls, config: LocalisationConfig, device: torch.device) -> LocalisationTraining:
        """Return what a new run trains.

        Raises what LocalisationData, the builders and load_proposer raise, ClassMismatchError for
        proposals of other classes.
        """
        config.train.require_possible(device)
        torch.manual_seed(config.seed)
        data = LocalisationData(config)
        model, proposer = _build(config, data.train)
        training = cls(config, model, data, device, proposer)
        backbone = model.net if isinstance(model, RCNN) else model.backbone
        if backbone.load_report is not None:
            training.loaded = str(backbone.load_report)
        return training

    @classmethod
    def resume(cls, saved: SavedRun, device: torch.device) -> LocalisationTraining:
        """Return what a saved run trained, as its last.pt left it; the per-class RPN of an R-CNN is
        in it, too.

        Raises what LocalisationData raises, ClassMismatchError when the data have other classes
        now, CheckpointError when the weights do not fit.
        """
        saved.config.train.require_possible(device)
        data = LocalisationData(saved.config)
        path, train = saved.path, data.train
        with reading_field(path, "classes"):
            class_map = ClassMap.from_dict(saved.state["classes"])
        class_map.require_same(train.class_map, str(path), train.source)
        proposer = proposer_of_state(path, saved.state, saved.config)
        model = build_localiser(saved.config.model, proposer, len(class_map))
        with reading_field(path, "model"):
            load_model_state(model, saved.state["model"], path)
        return cls(saved.config, model, data, device, proposer)

    def describe_data(self) -> str:
        """Return what is trained and evaluated on, in words."""
        train, val = self.data.train, self.data.val
        return f"train {train.describe()}\nval   {val.describe(train.notes)}"

    def fingerprints(self) -> dict[str, Fingerprint]:
        """Return those of the training and the held-out annotations."""
        return {"train": fingerprint_of(self.data.train), "val": fingerprint_of(self.data.val)}

    def begin(self, folder: Path) -> None:
        """Write nothing: the settings say all."""

    def file_of(self, image_id: int | str) -> str:
        """Return the file of a training image."""
        return self.data.train.file_of(image_id)

    def state(self) -> dict:
        """Return what last.pt holds of the classes and, of an R-CNN, of its per-class RPN."""
        proposer = None if self.proposer is None else self.proposer.model_dump_json()
        return {"classes": self.data.train.class_map.to_dict(), "proposer": proposer}

    def batches(self, run: RunSoFar) -> DataLoader:
        """Return the batches of the run's steps that are not done."""
        return train_loader(
            self.train_set,
            batch_size=self.config.train.images_per_step,
            steps=run.schedule.steps,
            seed=self.config.seed,
            start_step=run.progress.step,
            num_workers=self.config.data.workers,
            share=share_of(self.config.train, self.group),
        )

    def evaluate(self) -> LocalisationResult:
        """Return the error on the held-out images given their class; writes nothing."""
        settings = self.config.eval
        views = Views.of(settings, self.config.model.input.crop_side)
        members = [Member(self.model, views)]
        guesses = localise(
            members,
            self.data.val,
            own_labels(self.data.val),
            settings,
            device=self.device,
            num_workers=self.config.data.workers,
        )
        return given_class_error(self.data.val, guesses, how(members))

    def judge(self, *, whole: bool) -> Judgement:  # noqa: ARG002
        """Return what `evaluate` does, which looks at all held-out images every time."""
        return Judgement.of_all(self.evaluate())

    def keep(
        self,
        run: RunSoFar,
        judgement: Judgement,
        *,
        improved: bool,
        whole: bool,  # noqa: ARG002
    ) -> None:
        """Write weights, numbers and a picture of the best evaluation so far."""
        if not improved:
            return
        evaluation = judgement.evaluation
        folder, step, class_map = run.folder, run.progress.step, self.data.train.class_map
        save_localiser(
            folder / DETECTOR_WEIGHTS, self.model, self.config, class_map, step, self.proposer
        )
        metrics = {"step": step, **evaluation.to_dict()}
        write_text(folder / METRICS, json.dumps(metrics, indent=2))
        first = evaluation.guesses.first(self.data.val)
        outcome = first_outcome(self.data.val, first)
        write_sheet(folder / PICTURE, self.data.val, first, outcome, seed=self.config.seed)

    def _proposals(self) -> ProposalsByImage:
        """What R-CNN learns from: of each training image the proposals of its class."""
        train, settings = self.data.train, self.config.eval
        views = Views((settings.short_side,), None, settings.max_side)
        loader = LoaderSettings(views, settings.batch_size, self.config.data.workers)
        found = propose(self.model.proposer, train, own_labels(train), loader, device=self.device)
        return ProposalsByImage(train.image_ids, [of_image[0][0] for of_image in found])


def _build(
    config: LocalisationConfig, train: Annotations
) -> tuple[ClassRPN | RCNN, LocalisationModelConfig | None]:
    """The model for the classes of `train`, and of an R-CNN the settings of its per-class RPN."""
    num_classes = len(train.class_map)
    if config.model.kind == "class_rpn":
        return build_class_rpn(config.model, num_classes), None
    path = Path(config.model.rcnn.proposals)
    proposer, own, class_map = load_proposer(path)
    class_map.require_same(train.class_map, str(path), train.source)
    return build_rcnn(config.model, num_classes, proposer), own.model

"""A detector that learns: what a run trains, how it is evaluated, and what is kept of it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from detres.class_map import ClassMap
from detres.detection.annotations import Annotations
from detres.detection.build import (
    build_detector,
    build_ensemble,
    build_train_set,
    build_val_set,
    eval_loader,
    saved_proposals,
    train_loader,
)
from detres.detection.config import DetectionConfig
from detres.detection.data.box_policy import require_objects
from detres.detection.data.read import read_split
from detres.detection.evaluation.protocol import DetectionEvaluation, evaluate
from detres.detection.evaluation.result_files import to_coco_results
from detres.detection.evaluation_files import write_evaluation, write_training_curves
from detres.detection.inference.dataset import detect_dataset
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.detection.structures import Proposals, Scale
from detres.detection.transfer import start_from
from detres.detection.weights_file import current_names, require_same_context, save_detector
from detres.files import load_model_state, write_text
from detres.runs.fingerprint import Fingerprint, file_hashes, hashes_of
from detres.runs.folder import DETECTOR_WEIGHTS, METRICS, PREDICTIONS
from detres.runs.run import TrainingRun
from detres.runs.saved import SavedRun
from detres.runs.settings import build_optimizer, build_schedule
from detres.runs.state import reading_field

WING = "detection"


class DetectionData:
    """The training set and the held-out annotations of one run.

    Raises, before anything is written, what the readers raise; AnnotationError when one of the two
    has no object to learn from or to evaluate on; ClassMismatchError when the names of their
    classes differ.
    """

    def __init__(self, config: DetectionConfig) -> None:
        self.train_set = build_train_set(config)
        self.train = self.train_set.annotations
        val = read_split(config.data, "val")
        self.val = val.matched_to(self.train.class_map, self.train.source)
        require_objects(self.val, "to evaluate on, so no weights could be chosen as the best")
        self.train_proposals = self.train_set.proposals
        self.val_proposals = saved_proposals(config.data.val_proposals, self.val)


class DetectionTraining:
    """What a TrainingRun trains, evaluates and keeps: a detector on annotated images, its RPN and
    its RoI head at once; the other schemes are subclasses.
    """

    wing = WING

    def __init__(
        self,
        config: DetectionConfig,
        detector: FasterRCNN,
        data: DetectionData,
        device: torch.device,
    ) -> None:
        self.config, self.data, self.device = config, data, device
        self.detector = detector.to(device)
        if config.train.shared_layers == "fixed":
            detector.backbone.freeze(len(detector.backbone.channels))
        self.model = self.trained_part()
        self.num_images = len(data.train)
        self.optimizer = build_optimizer(config.train, self.model)
        self.schedule = build_schedule(config.train, len(data.train))
        self.loaded: str | None = None
        self.init_from: str | None = None  # the trained detector that it started from
        improvements = build_ensemble([(detector, config.model)], config.eval).describe()
        self.improvements = "" if config.train.scheme == "rpn" else improvements  # it only proposes
        self.detecting, other_scales = detecting_in_training(config, detector, self.model)
        self.held_out = eval_loader(
            build_val_set(config.model, data.val, other_scales, data.val_proposals),
            batch_size=config.eval.batch_size,
            num_workers=config.data.workers,
        )

    def trained_part(self) -> nn.Module:
        """Return what of the detector learns, as the loop calls it: of (images, targets)."""
        return self.detector

    @classmethod
    def start(
        cls, config: DetectionConfig, device: torch.device, init_from: str | None = None
    ) -> DetectionTraining:
        """Return what a new run trains.

        init_from: weights file of a trained detector, of these or other classes, to start from, in
        place of the backbone's weights. Raises what DetectionData, build_detector and start_from
        raise, ValueError for shared layers that are random and fixed.
        """
        fixed = config.train.shared_layers == "fixed"
        if fixed and init_from is None and config.model.backbone.weights is None:
            raise ValueError(
                "train.shared_layers=fixed: they would stay random; start from a trained detector, "
                "or give model.backbone.weights"
            )
        torch.manual_seed(config.seed)
        data = DetectionData(config)
        class_map, notes = data.train.class_map, []
        detector = build_detector(config.model, len(class_map), pretrained=init_from is None)
        if init_from is not None:
            report = start_from(detector, config.model, class_map, Path(init_from), notes.append)
            notes.append(report)
        training = cls(config, detector, data, device)
        training.init_from = None if init_from is None else str(Path(init_from).absolute())
        if detector.backbone.load_report is not None:
            notes.insert(0, str(detector.backbone.load_report))
        training.loaded = "\n".join(notes) or None
        return training

    @classmethod
    def resume(cls, saved: SavedRun, device: torch.device) -> DetectionTraining:
        """Return what a saved run trained, as its last.pt left it.

        Raises what DetectionData raises, ClassMismatchError when the data have other classes now,
        CheckpointError when the weights do not fit.
        """
        data = DetectionData(saved.config)
        path, train = saved.path, data.train
        with reading_field(path, "classes"):
            class_map = ClassMap.from_dict(saved.state["classes"])
        class_map.require_same(train.class_map, str(path), train.source)
        detector = build_detector(saved.config.model, len(class_map), pretrained=False)
        training = cls(saved.config, detector, data, device)
        with reading_field(path, "model"):
            tensors = current_names(saved.state["model"])
            require_same_context(detector, tensors, path)
            load_model_state(training.model, tensors, path)
        with reading_field(path, "init_from"):
            training.init_from = saved.state.get("init_from")  # earlier versions did not keep it
            if not isinstance(training.init_from, str | None):
                raise TypeError(f"a {type(training.init_from).__name__}, expected a path or none")
        return training

    def describe_data(self) -> str:
        """Return what is trained and evaluated on, in words."""
        lines = [f"train {self.data.train.describe()}", f"val   {self.data.val.describe()}"]
        if self.improvements and self.config.eval.improved_in_training:
            lines.append(f"      by {self.improvements}")
        elif self.improvements:
            lines.append(
                f"      by plain detections; {self.improvements}: when the weights are evaluated, "
                "or with eval.improved_in_training=true"
            )
        shared = self.data.train.num_shared_files(self.data.val)
        if shared:
            lines.append(
                f"note: {shared} of {len(self.data.val)} images of val are trained on too: its "
                "numbers, which choose the best weights, are better than on images never seen"
            )
        for proposals in (self.data.train_proposals, self.data.val_proposals):
            if proposals is not None:
                lines.append(f"{len(proposals.scores)} boxes: {proposals.source}")
        return "\n".join(lines)

    def fingerprints(self) -> dict[str, Fingerprint]:
        """Return those of the training and the held-out annotations, and of the proposals for
        them.
        """
        data = self.data
        found = {"train": fingerprint_of(data.train), "val": fingerprint_of(data.val)}
        proposals = {"train_proposals": data.train_proposals, "val_proposals": data.val_proposals}
        for name, given in proposals.items():
            if given is not None:
                found[name] = fingerprint_of_proposals(given)
        return found

    def state(self) -> dict:
        """Return what last.pt holds of the classes, and of what the run started from."""
        return {"classes": self.data.train.class_map.to_dict(), "init_from": self.init_from}

    def batches(self, run: TrainingRun) -> DataLoader:
        """Return the batches of the run's steps that are not done."""
        return train_loader(
            self.data.train_set,
            batch_size=self.config.train.batch_size,
            steps=run.schedule.steps,
            seed=self.config.seed,
            start_step=run.progress.step,
            num_workers=self.config.data.workers,
        )

    def evaluate(self) -> DetectionEvaluation:
        """Return the numbers on the held-out images; writes nothing."""
        val = self.data.val
        found = detect_dataset(self.detecting, self.held_out, val.class_map, self.device)
        return evaluate(self.config.eval.protocol, val, found)

    def keep(self, run: TrainingRun, evaluation: DetectionEvaluation, *, improved: bool) -> None:
        """Write the curves of the run; of the best evaluation so far also weights, detections,
        numbers and pictures, which cost seconds and are of those weights.
        """
        write_training_curves(run.folder)
        if not improved:
            return
        keep_detector(
            run.folder,
            self.detector,
            self.config,
            evaluation,
            run.progress.step,
            self.init_from,
        )


def detecting_in_training(
    config: DetectionConfig, detector: FasterRCNN, plain: nn.Module
) -> tuple[nn.Module, tuple[Scale, ...]]:
    """Return what detects in held-out images while `detector` is trained, and the scales it wants
    them at beside the model's own: `plain`, unless the improvements of `eval` are asked for there;
    an RPN alone detects nothing.
    """
    if not config.eval.improved_in_training or config.train.scheme == "rpn":
        return plain, ()
    improved = build_ensemble([(detector, config.model)], config.eval)
    return improved, improved.other_scales


def keep_detector(
    folder: Path,
    detector: FasterRCNN,
    config: DetectionConfig,
    evaluation: DetectionEvaluation,
    step: int,
    init_from: str | None,
) -> None:
    """Write into `folder` the detections, numbers and pictures of an `evaluation`, and the weights,
    after `step` steps from those of `init_from`, at the last, with the scores from which the
    classes are best taken.
    """
    found = evaluation.predictions
    write_text(folder / PREDICTIONS, json.dumps(to_coco_results(found)))
    metrics = json.dumps({"step": step, **evaluation.result.to_dict()}, indent=2)
    write_text(folder / METRICS, metrics)
    thresholds = write_evaluation(folder, evaluation, seed=config.seed)
    weights, class_map = folder / DETECTOR_WEIGHTS, evaluation.truth.class_map
    save_detector(weights, detector, config, class_map, step, init_from, thresholds)


def fingerprint_of(annotations: Annotations) -> Fingerprint:
    """Return that of annotated images: id, size and objects of each, in their order, and the files
    they are in.
    """
    sizes, boxes = annotations.image_sizes, annotations.boxes.astype("float64")
    areas = annotations.areas.astype("float64")
    objects = (annotations.labels, annotations.crowd, annotations.difficult)
    bounds = annotations.offsets.tolist()
    ids = annotations.image_ids.tolist()
    records = hashes_of(
        (
            str(image_id),
            sizes[row].tobytes(),
            *(
                values[bounds[row] : bounds[row + 1]].tobytes()
                for values in (boxes, areas, *objects)
            ),
        )
        for row, image_id in enumerate(ids)
    )
    files = file_hashes(annotations.image_files.tolist())
    return Fingerprint(records, files, lambda row: f"image {ids[row]}")


def fingerprint_of_proposals(proposals: Proposals) -> Fingerprint:
    """Return that of proposals: id, boxes and scores of each image, in their order."""
    ids = proposals.image_ids.tolist()
    records = hashes_of(
        (
            str(image_id),
            proposals.boxes[proposals.rows_of(row)].tobytes(),
            proposals.scores[proposals.rows_of(row)].tobytes(),
        )
        for row, image_id in enumerate(ids)
    )
    return Fingerprint(records, torch.zeros_like(records), lambda row: f"image {ids[row]}")

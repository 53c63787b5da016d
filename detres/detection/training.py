"""A detector that learns: what a run trains, how it is evaluated, and what is kept of it."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from detres.class_map import ClassMap
from detres.console import write_line
from detres.detection.annotations import Annotations
from detres.detection.build import (
    build_detector,
    build_ensemble,
    build_train_set,
    saved_proposals,
    train_loader,
)
from detres.detection.config import DetectionConfig
from detres.detection.data.anchor_fit import describe_fit
from detres.detection.data.audit import audit_briefly
from detres.detection.data.batch import worst_batch
from detres.detection.data.box_policy import require_objects
from detres.detection.data.digest import training_digest
from detres.detection.data.learnt_images import LearntImages
from detres.detection.data.read import read_split
from detres.detection.data.split import write_split
from detres.detection.evaluation.coco_backends import backend_on_the_way, require_backend
from detres.detection.evaluation.protocol import DetectionEvaluation, evaluate
from detres.detection.evaluation.result_files import to_coco_results
from detres.detection.evaluation_files import write_evaluation, write_training_curves
from detres.detection.inference.dataset import detect_dataset, joined_predictions
from detres.detection.inference.fast import fast_copy
from detres.detection.judging import Batches, HeldOut, WithLosses
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.detection.structures import ImageBatch, Predictions, Proposals, Scale, Target
from detres.detection.transfer import start_from
from detres.detection.weights_file import (
    LEARNT,
    WING,
    Origin,
    current_names,
    read_tensors,
    require_same_context,
    save_detector,
)
from detres.engine.distributed import Group
from detres.engine.ema import having
from detres.engine.progress import is_better
from detres.files import (
    CheckpointError,
    first_line,
    load_model_state,
    require_fitting,
    write_text,
)
from detres.runs.fingerprint import Fingerprint, file_hashes, hashes_of
from detres.runs.folder import DETECTOR_WEIGHTS, METRICS, PREDICTIONS, SPLIT
from detres.runs.judgement import Judgement
from detres.runs.saved import SavedRun
from detres.runs.settings import (
    build_optimizer,
    build_schedule,
    compile_where_asked,
    share_of,
    with_batch_that_fits,
)
from detres.runs.state import reading_field
from detres.runs.training import RunSoFar
from detres.waiting import counted


class DetectionData:
    """The training set and the held-out annotations of one run.

    read: train and val as `config` has them, where they were read already. Raises, before anything
    is written, what the readers raise; AnnotationError when one of the two has no object to learn
    from or to evaluate on; ClassMismatchError when the names of their classes differ.
    """

    def __init__(
        self, config: DetectionConfig, read: tuple[Annotations, Annotations] | None = None
    ) -> None:
        train, val = (None, None) if read is None else read
        self.train_set = build_train_set(config, train)
        self.train = self.train_set.annotations
        if val is None:
            val = read_split(config.data, "val")
        self.val = val.matched_to(self.train.class_map, self.train.source)
        require_objects(self.val, "to evaluate on, so no weights could be chosen as the best")
        self.train_proposals = self.train_set.proposals
        self.val_proposals = saved_proposals(config.data.val_proposals, self.val)

    def files(self) -> tuple[list[str], list[str]]:
        """Return the image files of train, and those of val."""
        return self.train.image_files.tolist(), self.val.image_files.tolist()


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
        group: Group,
    ) -> None:
        require_backend(config.eval.backend)
        self.config, self.data, self.device, self.group = config, data, device, group
        if group.size > 1 and config.train.scheme == "rpn":
            raise ValueError("train.scheme=rpn trains on one process: start it without torchrun")
        self.detector = detector.to(device)
        if config.train.checkpoint_activations:
            detector.checkpoint_activations()
        compile_where_asked(config.train.compile, detector, device, write_line)
        if config.train.shared_layers == "fixed":
            detector.backbone.freeze(len(detector.backbone.channels))
        self.model = self.trained_part(detector)
        self.num_images = len(data.train)
        self.optimizer = build_optimizer(config.train, self.model)
        self.schedule = build_schedule(config.train, len(data.train))
        train = with_batch_that_fits(
            config.train, self.model, self.worst_batch, device, group, write_line
        )
        self.config = config = config.model_copy(update={"train": train})
        self.share = share_of(config.train, group)
        self.loaded: str | None = None
        self.init_from: str | None = None  # the trained detector that it started from
        improvements = build_ensemble([(detector, config.model)], config.eval).describe()
        self.improvements = "" if config.train.scheme == "rpn" else improvements  # it only proposes
        self.detecting, self.other_scales = detecting_in_training(config, detector, self.model)
        self.hold_out(config.train.looked_at(self.schedule.steps, len(data.val)))

    def hold_out(self, number: int) -> None:
        """Let every evaluation look at the same `number` of held-out images, or all where there are
        no more.
        """
        self.held_out = HeldOut(
            self.config,
            self.data.val,
            number,
            proposals=self.data.val_proposals,
            other_scales=self.other_scales,
            share=self.group.share,
        )

    @staticmethod
    def trained_part(detector: FasterRCNN) -> nn.Module:
        """Return what of a detector learns, as the loop calls it: of (images, targets)."""
        return detector

    @classmethod
    def start(
        cls,
        config: DetectionConfig,
        device: torch.device,
        init_from: str | None = None,
        read: tuple[Annotations, Annotations] | None = None,
        group: Group | None = None,
    ) -> DetectionTraining:
        """Return what a new run trains.

        init_from: weights file of a trained detector, of these or other classes, to start from, in
        place of the backbone's weights. read: see DetectionData. group: of the processes that
        train, None: one alone. Raises what DetectionData,
        build_detector and start_from raise, ValueError for shared layers that are random and fixed.
        """
        config.train.require_possible(device)
        fixed = config.train.shared_layers == "fixed"
        if fixed and init_from is None and config.model.backbone.weights is None:
            raise ValueError(
                "train.shared_layers=fixed: they would stay random; start from a trained detector, "
                "or give model.backbone.weights"
            )
        torch.manual_seed(config.seed)
        data = DetectionData(config, read)
        class_map, notes = data.train.class_map, []
        detector = build_detector(config.model, len(class_map), pretrained=init_from is None)
        if init_from is not None:
            report = start_from(detector, config.model, class_map, Path(init_from), notes.append)
            notes.append(report)
        training = cls(config, detector, data, device, group or Group())
        training.init_from = None if init_from is None else str(Path(init_from).absolute())
        if detector.backbone.load_report is not None:
            notes.insert(0, str(detector.backbone.load_report))
        training.loaded = "\n".join(notes) or None
        return training

    @classmethod
    def resume(
        cls, saved: SavedRun, device: torch.device, group: Group | None = None
    ) -> DetectionTraining:
        """Return what a saved run trained, as its last.pt left it; group: as of `start`.

        Raises what DetectionData raises, ClassMismatchError when the data have other classes now,
        CheckpointError when the weights do not fit.
        """
        saved.config.train.require_possible(device)
        data = DetectionData(saved.config)
        path, train = saved.path, data.train
        with reading_field(path, "classes"):
            class_map = ClassMap.from_dict(saved.state["classes"])
        class_map.require_same(train.class_map, str(path), train.source)
        detector = build_detector(saved.config.model, len(class_map), pretrained=False)
        training = cls(saved.config, detector, data, device, group or Group())
        with reading_field(path, "model"):
            tensors = current_names(saved.state["model"])
            require_same_context(detector, tensors, path)
            load_model_state(training.model, tensors, path)
        with reading_field(path, "init_from"):
            training.init_from = saved.state.get("init_from")  # earlier versions did not keep it
            if not isinstance(training.init_from, str | None):
                raise TypeError(f"a {type(training.init_from).__name__}, expected a path or none")
        with reading_field(path, "eval_images"):  # earlier versions looked at all
            training.hold_out(_checked_count(saved.state.get("eval_images", len(data.val))))
        return training

    def describe_data(self) -> str:
        """Return what is trained and evaluated on, in words."""
        digest = training_digest(self.data.train)
        lines = [
            f"train {self.data.train.describe()}",
            f"      digest of what is learned from, the same in every format: {digest}",
            f"val   {self.data.val.describe(self.data.train.notes)}",
        ]
        if self.improvements and self.config.eval.improved_in_training:
            lines.append(f"      by {self.improvements}")
        elif self.improvements:
            lines.append(
                f"      by plain detections; {self.improvements}: when the weights are evaluated, "
                "or with eval.improved_in_training=true"
            )
        held_out = self.held_out
        if held_out.is_divided:
            lines.append(
                f"      on the way on {len(held_out.part)} of them, the same every time; on all at "
                "the end (train.eval_images)"
            )
        lines += self.anchor_lines()
        cache = self.data.train_set.cache
        if cache is not None:
            lines.append(
                f"      training images are kept decoded in up to {cache.budget / 2**30:g} GiB of "
                "RAM, which all data.workers of a process share (data.cache_gib)"
            )
        shared = self.data.train.num_shared_files(self.data.val)
        if shared:
            lines.append(
                f"note: {shared} of {len(self.data.val)} images of val are trained on too: its "
                "numbers, which choose the best weights, are better than on images never seen"
            )
        given = self.config.model.input
        lines += audit_briefly(self.data.train, self.data.val, (given.short_side, given.max_side))
        for proposals in (self.data.train_proposals, self.data.val_proposals):
            if proposals is not None:
                lines.append(f"{len(proposals.scores)} boxes: {proposals.source}")
        return "\n".join(lines)

    def anchor_lines(self) -> list[str]:
        """Return how well the anchors fit the boxes, a line each; none where no RPN learns."""
        if self.config.train.scheme == "fast_rcnn":
            return []
        map_size = functools.partial(self.detector.backbone.map_size, self.detector.stages[0])
        return describe_fit(self.data.train, self.config.model, map_size)

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

    def begin(self, folder: Path) -> None:
        """Write which images are train and val where that is not said by the data."""
        if self.config.data.is_drawn:
            write_split(folder / SPLIT, *self.data.files())

    @functools.cached_property
    def origin(self) -> Origin:
        """What the weights come from."""
        learnt = LearntImages.of(*self.data.files()) if self.config.data.is_drawn else None
        return Origin(self.init_from, learnt)

    def file_of(self, image_id: int | str) -> str:
        """Return the file of a training image."""
        return self.data.train.file_of(image_id)

    def state(self) -> dict:
        """Return what last.pt holds of the classes, of what the run started from and learned from,
        and of how many held-out images evaluations on the way look at.
        """
        learnt = self.origin.learnt
        return {
            "classes": self.data.train.class_map.to_dict(),
            "init_from": self.init_from,
            LEARNT: None if learnt is None else learnt.to_dict(),
            "eval_images": len(self.held_out.part),
        }

    def worst_batch(self, number: int) -> tuple[ImageBatch, list[Target]]:
        """Return `number` images of the largest size that the settings allow, each with the boxes
        of the most crowded image.
        """
        given, proposals = self.config.model.input, self.data.train_proposals
        short_side = max((given.short_side, *given.train_short_sides))
        num_proposals = None if proposals is None else int(np.diff(proposals.offsets).max())
        return worst_batch(
            number,
            (short_side, given.max_side),
            num_boxes=int(np.diff(self.data.train.offsets).max()),
            num_proposals=num_proposals,
        )

    def batches(self, run: RunSoFar) -> DataLoader:
        """Return the batches of the run's steps that are not done."""
        return train_loader(
            self.data.train_set,
            batch_size=self.config.train.images_per_step,
            steps=run.schedule.steps,
            seed=self.config.seed,
            start_step=run.progress.step,
            num_workers=self.config.data.workers,
            share=self.share,
        )

    def judge(self, *, whole: bool) -> Judgement:
        """Return the numbers on the held-out images, the `whole` or those that all evaluations look
        at, and the losses on these; writes nothing. Each process of the group looks at its share.
        """
        held_out = self.held_out
        truth = held_out.val if whole else held_out.part
        batches = WithLosses(
            held_out.all_batches if whole else held_out.part_batches,
            fast_copy(self.model),
            held_out.part.image_ids,
            seed=self.config.seed,
            device=self.device,
        )
        found = self.found_together(truth, batches)
        losses, loss_images = batches.means(self.group)
        if found is None:
            return self.group.broadcast(None)
        evaluation = compared = self.measure(truth, found, whole=whole)
        if whole and held_out.is_divided:
            compared = self.measure(held_out.part, self.of_part(found), whole=whole)
        return self.group.broadcast(
            Judgement(
                evaluation,
                compared.metrics[compared.best_metric],
                images=(len(truth), len(held_out.val)),
                losses=losses,
                loss_images=loss_images,
            )
        )

    def found_together(self, truth: Annotations, batches: Batches) -> Predictions | None:
        """Return what all processes of the group find in the images of `truth`, of which this one
        looks at `batches`, in the order of `truth`; None in all but the first.
        """
        found = self.find(truth, batches)
        if self.group.size == 1:
            return found
        shares = self.group.gather(found)
        return joined_predictions(shares, truth.image_ids) if self.group.is_first else None

    def find(self, truth: Annotations, batches: Batches) -> Predictions:
        """Return what is found in the images of `truth`, which come in `batches`."""
        precision = self.config.eval.precision
        return detect_dataset(self.detecting, batches, truth.class_map, self.device, precision)

    def measure(
        self, truth: Annotations, found: Predictions, *, whole: bool
    ) -> DetectionEvaluation:
        """Return the numbers of what was `found` in the images of `truth`; whole: at the end of the
        run, not on the way.
        """
        given = self.config.eval
        backend = given.backend if whole else backend_on_the_way(given.backend)
        return evaluate(given.protocol, truth, found, backend=backend)

    def as_final(self, evaluation: DetectionEvaluation) -> DetectionEvaluation:
        """Return an evaluation on the way with the numbers of who counts at the end, which are
        those that are kept.
        """
        given = self.config.eval.backend
        if backend_on_the_way(given) == given:
            return evaluation
        return self.measure(evaluation.truth, evaluation.predictions, whole=True)

    def of_part(self, found: Predictions) -> Predictions:
        """Return what was found in the images that all evaluations look at."""
        return self.held_out.predictions_of_part(found)

    def write(
        self,
        folder: Path,
        evaluation: DetectionEvaluation,
        step: int,
        truth: Annotations,
    ) -> None:
        """Write into `folder` the detections, numbers and a picture of an evaluation on the images
        of `truth`, and the weights as they are, after `step` steps, at the last.
        """
        keep_detector(folder, self.detector, self.config, truth, evaluation, step, self.origin)

    def keep(self, run: RunSoFar, judgement: Judgement, *, improved: bool, whole: bool) -> None:
        """In the first process write the curves of the run; of the best evaluation so far also
        weights, detections, numbers and pictures, which cost a second and are of those weights.

        On the way the best is the one with the highest metric on the images that all evaluations
        look at, the earlier of two equal ones. At the end the last weights, which are evaluated on
        all held-out images, are the best where they are ahead on those few too; else the weights
        that are ahead there are evaluated on all as well, and are the best where they are ahead
        again. So numbers are only compared that are of the same images.
        """
        if self.group.is_first:
            write_training_curves(run.folder)
        if not improved and whole and self.held_out.is_divided:
            improved = not self._earlier_is_best(run, judgement)
        if improved and self.group.is_first:
            truth = self.held_out.val if whole else self.held_out.part
            evaluation = judgement.evaluation if whole else self.as_final(judgement.evaluation)
            self.write(run.folder, evaluation, run.progress.step, truth)

    def _earlier_is_best(self, run: RunSoFar, judgement: Judgement) -> bool:
        """Whether the weights in the run folder are ahead of those after the last step on all
        held-out images; what is kept is then of all, too.
        """
        last, kept = judgement.evaluation, None
        if run.progress.best is None:  # nothing could be measured on the way, or kept
            return False
        if self.group.is_first:
            kept = self._kept_earlier(run)
        kept = self.group.broadcast(kept)
        if kept is None:
            return False
        tensors, step = kept
        run.log.line(
            f"ahead on the way was step {step}: evaluated on all held-out images, too, to choose "
            "the best"
        )
        with having(self.detector, tensors):
            found = self.found_together(self.held_out.val, self.held_out.all_batches)
            if found is None:  # the first process decides and writes
                return self.group.broadcast(None)
            earlier = self.measure(self.held_out.val, found, whole=True)
            best = earlier.best_metric
            ahead = is_better(earlier.metrics[best], last.metrics[best])
            if ahead:
                self.write(run.folder, earlier, step, self.held_out.val)
        run.log.line(
            f"{best} on all: {shown_metric(earlier.metrics[best])} after step {step}, "
            f"{shown_metric(last.metrics[best])} after step {run.progress.step}; kept are the "
            f"weights of step {step if ahead else run.progress.step}"
        )
        return self.group.broadcast(ahead)

    def _kept_earlier(self, run: RunSoFar) -> tuple[dict[str, Tensor], int] | None:
        """The weights in the run folder and their step; None, which is said, where they cannot be
        read.
        """
        path = run.folder / DETECTOR_WEIGHTS
        try:
            tensors, step = read_tensors(path)
            require_fitting(self.detector, tensors, path)
        except CheckpointError as error:
            run.log.line(f"note: {first_line(error)}: the weights of the last step are kept")
            return None
        return tensors, step


def shown_metric(value: float | None) -> str:
    """Return a metric as a line shows it."""
    return "nothing to measure" if value is None else f"{value:.4f}"


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
    truth: Annotations,
    evaluation: DetectionEvaluation,
    step: int,
    origin: Origin,
) -> None:
    """Write into `folder` the detections, numbers and pictures of an `evaluation` on the images of
    `truth`, and the weights, after `step` steps, at the last, with the scores from which the
    classes are best taken.
    """
    found = evaluation.predictions
    write_text(folder / PREDICTIONS, json.dumps(to_coco_results(found)))
    numbers = {"step": step, "images": len(truth), **evaluation.result.to_dict()}
    metrics = json.dumps(numbers, indent=2)
    write_text(folder / METRICS, metrics)
    thresholds = write_evaluation(folder, evaluation, seed=config.seed)
    weights = folder / DETECTOR_WEIGHTS
    save_detector(weights, detector, config, truth.class_map, step, origin, thresholds)


def _checked_count(value: object) -> int:
    if type(value) is not int or value < 1:
        raise ValueError(f"{value!r:.40} is no number of images")
    return value


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
        for row, image_id in enumerate(counted(ids, "hashing annotations", "images"))
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

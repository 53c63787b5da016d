"""A classifier that learns: what a run trains, how it is evaluated, and what is kept of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from backbones import recompute_batch_norm
from detres.class_map import ClassMap
from detres.classification.build import (
    build_class_optimizer,
    build_class_schedule,
    build_model,
    build_train_batches,
)
from detres.classification.config import ClassificationConfig
from detres.classification.data.read import input_of, read_class_splits
from detres.classification.evaluation.protocol import evaluate_classifier
from detres.classification.evaluation.top_k import ClassResult
from detres.classification.model import ClassificationModel
from detres.classification.structures import ClassTargets, CropBatch
from detres.classification.weights_file import WING, model_of_state, save_classifier
from detres.console import write_line
from detres.engine.batches import WHOLE, Share
from detres.engine.distributed import Group
from detres.files import write_text
from detres.images.source import ImageArrays, ImageShards, LabelledImages
from detres.runs.fingerprint import Fingerprint, file_hashes, hashes_of
from detres.runs.folder import CLASSIFIER_WEIGHTS, METRICS
from detres.runs.judgement import Judgement
from detres.runs.saved import SavedRun
from detres.runs.settings import compile_where_asked, share_of, with_batch_that_fits
from detres.runs.state import reading_field
from detres.runs.training import RunSoFar

Show = Callable[[str], None]
Batches = Iterable[tuple[CropBatch, ClassTargets]]


class ClassificationTraining:
    """What a TrainingRun trains, evaluates and keeps: a classifier on labelled images.

    train, val: the images; the weights kept are those of the last evaluation, not of the best:
    choosing by the test set would flatter the number.
    """

    wing = WING

    def __init__(
        self,
        config: ClassificationConfig,
        model: ClassificationModel,
        train: LabelledImages,
        val: LabelledImages,
        device: torch.device,
        group: Group,
    ) -> None:
        self.config, self.model, self.train, self.val = config, model, train, val
        self.device, self.group = device, group
        if config.train.checkpoint_activations:
            model.net.checkpoint_activations(tuple(model.net.channels))
        self.num_images = len(train)
        self.optimizer = build_class_optimizer(config.train, model)
        self.schedule = build_class_schedule(config.train, len(train))
        fitting = with_batch_that_fits(
            config.train, model, self.worst_batch, device, group, write_line
        )
        self.config = config.model_copy(update={"train": fitting})
        self.share = share_of(self.config.train, group)
        self.loaded = None if model.net.load_report is None else str(model.net.load_report)

    @classmethod
    def start(
        cls,
        config: ClassificationConfig,
        device: torch.device,
        show: Show,
        group: Group | None = None,
    ) -> ClassificationTraining:
        """Return what a new run trains.

        group: of the processes that train, None: one alone. show: called with a line before
        something that takes long, and where compiling does not work. Raises what the readers and
        build_model raise, ValueError for a compilation that was asked for and does not work.
        """
        config.train.require_possible(device)
        torch.manual_seed(config.seed)
        train, val = read_class_splits(config.data, show)
        model = build_model(config, len(train.class_map))
        model.take_input(input_of(config, train, model.net.input_spec))
        compile_where_asked(config.train.compile, model.to(device), device, show)
        return cls(config, model, train, val, device, group or Group())

    @classmethod
    def resume(
        cls, saved: SavedRun, device: torch.device, show: Show, group: Group | None = None
    ) -> ClassificationTraining:
        """Return what a saved run trained, as its last.pt left it; raises as `start` does, and
        ClassMismatchError when the data have other classes now.
        """
        config, state = saved.config, saved.state
        config.train.require_possible(device)
        train, val = read_class_splits(config.data, show)
        path = saved.path
        with reading_field(path, "classes"):
            class_map = ClassMap.from_dict(state["classes"])
        class_map.require_same(train.class_map, str(path), train.source)
        model = model_of_state(path, state, config, class_map)
        compile_where_asked(config.train.compile, model.to(device), device, show)
        return cls(config, model, train, val, device, group or Group())

    def describe_data(self) -> str:
        """Return what is trained and evaluated on, in words."""
        num_damaged = len(self.train.damaged)
        damaged = f", {num_damaged} damaged left out" if num_damaged else ""
        return (
            f"train {self.train.source}: {len(self.train)} images of {len(self.train.class_map)} "
            f"classes{damaged}\nval   {self.val.source}: {len(self.val)}"
        )

    def fingerprints(self) -> dict[str, Fingerprint]:
        """Return those of the training and the held-out images."""
        return {"train": fingerprint_of(self.train), "val": fingerprint_of(self.val)}

    def begin(self, folder: Path) -> None:
        """Write nothing: the settings say all."""

    def file_of(self, image_id: int | str) -> str:
        """Return the name of a training image, of one in memory its row."""
        in_memory = isinstance(self.train, ImageArrays)
        return f"row {image_id} of {self.train.source}" if in_memory else str(image_id)

    def state(self) -> dict:
        """Return what last.pt holds of the classes and the input."""
        spec = self.model.net.input_spec
        return {
            "classes": self.train.class_map.to_dict(),
            "input": spec.to_json(),
            "mean_image": spec.mean_image,
        }

    def worst_batch(self, number: int) -> tuple[CropBatch, ClassTargets]:
        """Return `number` crops, all of which have one size."""
        side = self.config.data.crop_side if self.train.size is None else self.train.size
        sides = (side, side) if isinstance(side, int) else side
        pixels = torch.zeros((number, 3, *sides), dtype=torch.uint8)
        labels = torch.zeros(number, dtype=torch.int64)
        return CropBatch(pixels, tuple(range(number))), ClassTargets(labels)

    def batches(self, run: RunSoFar) -> Batches:
        """Return the batches of the run's steps that are not done; images that cannot be read are
        listed in the run folder.
        """
        run.list_skipped(self.train.damaged)
        return self._batches(run, run.progress.step, run.schedule.steps, self.share)

    def evaluate(self) -> ClassResult:
        """Return the errors on the held-out images, of which each process of the group classifies
        its share; writes nothing.
        """
        return evaluate_classifier(self.config, self.model, self.val, self.device, self.group)

    def judge(self, *, whole: bool) -> Judgement:  # noqa: ARG002
        """Return what `evaluate` does, which looks at all held-out images every time."""
        return Judgement.of_all(self.evaluate())

    def keep(
        self,
        run: RunSoFar,
        judgement: Judgement,
        *,
        improved: bool,  # noqa: ARG002
        whole: bool,  # noqa: ARG002
    ) -> None:
        """In the first process write the weights and the numbers of this evaluation, whether it
        `improved` or not.
        """
        self._write(run, judgement.evaluation)

    def _write(self, run: RunSoFar, evaluation: ClassResult) -> None:
        if not self.group.is_first:
            return
        path, step = run.folder / CLASSIFIER_WEIGHTS, run.progress.step
        save_classifier(path, self.model, self.config, self.train.class_map, step)
        metrics = json.dumps({"step": step, **evaluation.to_dict()}, indent=2)
        write_text(run.folder / METRICS, metrics)

    def average_batch_norm(self, run: RunSoFar) -> None:
        """Where train.recompute_batches asks for it, replace the statistics of batch norm by
        averages over the batches that training would have seen next, evaluate, and keep that
        (paper, appendix A).
        """
        number, steps = self.config.train.recompute_batches, run.schedule.steps
        if not number:
            return
        whole = self._batches(run, steps, steps + number, WHOLE)  # the same in every process
        crops = (crops.pixels for crops, _ in whole)
        inputs = (self.model.normalizer(pixels.to(self.device)) for pixels in crops)
        recompute_batch_norm(self.model.net, inputs)
        run.log.line(f"batch norm statistics averaged over {number} batches (paper, appendix A)")
        evaluation = self.evaluate()
        run.log.line(evaluation.table())
        run.log.averaged(run.progress.step, evaluation.metrics)
        self._write(run, evaluation)

    def _batches(self, run: RunSoFar, start: int, end: int, share: Share) -> Iterator:
        batches = build_train_batches(
            self.config, self.train, steps=end, start_step=start, device=self.device, share=share
        )
        for images, targets in batches:
            run.list_skipped(images.damaged)
            yield images, targets


def fingerprint_of(images: LabelledImages) -> Fingerprint:
    """Return that of labelled images: the class of each, in their order, and the files they are in;
    of arrays their pixels, of shards where in them they lie.
    """
    labels = [str(label) for label in images.labels.tolist()]
    if isinstance(images, ImageArrays):
        places = (row.tobytes() for row in images.pixels)
    elif isinstance(images, ImageShards):
        shards = [url.rpartition("/")[2] for url in images.urls]
        rows = zip(
            images.shards.tolist(), images.offsets.tolist(), images.keys.tolist(), strict=True
        )
        places = (f"{shards[shard]} {offset} {key}" for shard, offset, key in rows)
    else:
        places = (str(file).rpartition("/")[2] for file in images.files.tolist())
    records = hashes_of(zip(labels, places, strict=True))
    if isinstance(images, ImageArrays):
        files = hashes_of(() for _ in labels)
    elif isinstance(images, ImageShards):
        files = hashes_of((str(size),) for size in images.sizes.tolist())
    else:
        files = file_hashes(images.files.tolist())
    return Fingerprint(records, files, images.name)

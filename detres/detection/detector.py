"""A trained detector, as a user calls it: images in, what is in them out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from detres.class_map import ClassMap
from detres.config import Notice
from detres.detection.build import build_ensemble, build_val_set, eval_loader
from detres.detection.config import DetectionConfig
from detres.detection.data.learnt_images import LearntImages
from detres.detection.data.read import read_to_detect
from detres.detection.evaluation.protocol import DetectionEvaluation, evaluate
from detres.detection.inference.dataset import detect_dataset
from detres.detection.inference.detect import batch_of, detect_batch
from detres.detection.inference.ensemble import Ensemble
from detres.detection.inference.fast import (
    Precision,
    fast_copy,
    require_precision,
    weights_stamp,
)
from detres.detection.inference.results import Results
from detres.detection.inference.tiles import Tiling, View, Window, merge_views
from detres.detection.named_weights import weights_called
from detres.detection.own_data import data_to_evaluate
from detres.detection.structures import Detections, Scale, names_of
from detres.detection.weights_file import (
    learnt_images_of,
    load_detector,
    score_thresholds_of,
)
from detres.images.decode import as_rgb
from detres.images.given import Pictures, is_one, pictures_of
from detres.images.resize import Resizing
from detres.waiting import PASS_S, counted


class Detector:
    """A model with all that predicting needs beside it; `Detector.load` makes one of a weights
    file.

    model: called with an ImageBatch, returns one Detections an image. class_map: of its classes.
    short_side, max_side: px to which an image's short side is resized, and the cap on its long one.
    other_scales: further such pairs at which the model wants to see every image. resizing: see
    images.resize. nms_thresh: IoU, of NMS over what was found in the tiles of a picture.
    score_thresholds: for each class the score from which it is best taken, found on held-out
    images; None: it was not measured. precision: of the networks, see inference.fast; the model is
    rewritten for inference when it is first used, and again once it has changed, which what is
    written through a tensor's `.data` does not show. config: of the run that trained it, which only
    `evaluate` needs; learnt: which images it learned from, where val was drawn from them.
    """

    def __init__(
        self,
        model: nn.Module,
        class_map: ClassMap,
        *,
        short_side: int,
        max_side: int,
        other_scales: Sequence[Scale] = (),
        resizing: Resizing = "cv2",
        nms_thresh: float = 0.3,
        score_thresholds: Sequence[float] | None = None,
        precision: Precision = "fp32",
        config: DetectionConfig | None = None,
        learnt: LearntImages | None = None,
    ) -> None:
        require_precision(precision)
        self.model = model
        self.class_map = class_map
        self.short_side = short_side
        self.max_side = max_side
        self.other_scales = tuple(other_scales)
        self.resizing = resizing
        self.nms_thresh = nms_thresh
        self.score_thresholds = None if score_thresholds is None else tuple(score_thresholds)
        self.precision = precision
        self.config = config
        self.learnt = learnt
        self.device = torch.device("cpu")
        self._fast: tuple[tuple[object, ...], nn.Module] | None = None

    @classmethod
    def load(
        cls,
        file_or_name: str | Path,
        notice: Notice = lambda _: None,
        *,
        offline: bool = False,
        precision: Precision | None = None,
    ) -> Detector:
        """Return the detector that a run has learned, or a published one, on the CPU; it detects as
        the `eval` settings of its training say.

        file_or_name: its weights file; the state it was stopped in, last.pt; its folder, or its
        name (runs/NAME, of several the one saved last), of which it is what find_weights chooses;
        or the name of a published detector, see weights_called. notice: called with a line when the
        file, of an earlier version, carries no checksum, and when it is a state. offline: nothing
        is downloaded. precision: of the networks, by default that of the `eval` settings.
        Raises CheckpointError naming the file when it is missing, damaged, or no detector's, and
        saying what it is; OtherWingError for the state of another wing; ValueError for another
        precision.
        """
        path = weights_called(file_or_name, offline=offline, notice=notice)
        model, config, class_map = load_detector(path, notice)
        ensemble = build_ensemble([(model, config.model)], config.eval)
        size = config.model.input
        return cls(
            ensemble,
            class_map,
            short_side=size.short_side,
            max_side=size.max_side,
            other_scales=ensemble.other_scales,
            resizing=size.resize,
            nms_thresh=config.model.roi.nms_thresh,
            config=config,
            precision=precision or config.eval.precision,
            score_thresholds=score_thresholds_of(path, class_map),
            learnt=learnt_images_of(path),
        )

    def __getstate__(self) -> dict[str, object]:
        # what is laid out for this processor cannot be copied, and is made anew where it is used
        return {**self.__dict__, "_fast": None}

    def __repr__(self) -> str:
        num = sum(parameter.numel() for parameter in self.model.parameters())
        members = self.model.models if isinstance(self.model, Ensemble) else [self.model]
        networks = " + ".join(type(member).__name__ for member in members)
        return (
            f"Detector({networks} of {num / 1e6:.1f} M parameters, "
            f"{self.class_map!r}, {self.short_side} px, {self.device})"
        )

    def to(self, device: torch.device | str) -> Detector:
        """Move the model to `device`, and return this detector."""
        self.device = torch.device(device)
        self.model.to(self.device)
        return self

    def predict(
        self,
        images: Pictures,
        *,
        batch_size: int = 1,
        tile: int | None = None,
        overlap: float = 0.2,
        whole: bool = True,
    ) -> Results | list[Results]:
        """Return what is in one image, a Results, or in several, a list of them.

        images: one is a path, a (H, W, 3) uint8 RGB array or a picture of Pillow; several are a
        list of such, a folder, a text file with a path a line, or an array (N, H, W, 3). EXIF
        orientation is honoured. No images: an empty list. batch_size: so many are looked at at
        once. tile: px of the tiles in which pictures larger than one are looked at, at their own
        resolution (None: not), overlapping by the fraction `overlap` of their side; whole: and the
        whole picture too, resized as without tiles. The model's train/eval state is left as it was.

        Raises ImageReadError naming a file that cannot be read, ValueError for an array of another
        shape or dtype, for a folder without images, for a batch_size below 1 and as Tiling does.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected 1 or more")
        tiling = None if tile is None else Tiling(tile, overlap, whole)
        pictures = pictures_of(images)
        together = batch_size if tiling is None else 1  # large pictures are held one at a time
        results = []
        for start in range(0, len(pictures), together):
            given = pictures[start : start + together]
            pixels = [as_rgb(each, f"image {n}") for n, each in enumerate(given, start=start)]
            if tiling is None:
                found = self._detect(pixels, start)
            else:
                found = [self._detect_tiled(pixels[0], tiling, batch_size)]
            results += [
                Results(own, self.class_map, picture, image.shape[:2])
                for own, picture, image in zip(found, given, pixels, strict=True)
            ]
        return results[0] if is_one(images) else results

    def evaluate(
        self, data: str | Path | None = None, *, split: str = "val", protocol: str | None = None
    ) -> DetectionEvaluation:
        """Detect in a split of annotated data and evaluate what was found: `metrics` are the
        protocol's numbers, as fractions, `table()` says them with their protocol.

        data: a folder, data.yaml or COCO JSON, in any format that training takes; where it is laid
        out as the configuration of the run says, that says what is what. None: the data trained
        with, where they were. Where val is drawn from train, all images are looked at that the
        detector did not learn from, however these were moved or renamed. split: "train", "val" or
        "test". protocol: "coco", "voc07", "voc12" or "imagenet_det", by default the run's. Classes
        are told by their names.

        Raises ValueError for a detector that was not loaded, ClassMismatchError for data of other
        classes, and what the readers raise.
        """
        if self.config is None:
            raise ValueError("evaluate needs the configuration of a run: load the detector from it")
        config = data_to_evaluate(self.config, data)
        learnt = () if self.learnt is None else (self.learnt,)
        images = read_to_detect(config.data, split, self.class_map, learnt)
        truth = images.matched_to(self.class_map, "the detector")
        truth.require_truth()
        batches = eval_loader(
            build_val_set(config.model, truth, self.other_scales),
            batch_size=config.eval.batch_size,
            num_workers=config.data.workers,
        )
        found = detect_dataset(self.model, batches, truth.class_map, self.device, self.precision)
        return evaluate(protocol or config.eval.protocol, truth, found, backend=config.eval.backend)

    def names_of(self, detections: Detections | Results) -> list[str]:
        """Return the class name of every one of D detections."""
        return names_of(self.class_map, detections.labels)

    @property
    def _model(self) -> nn.Module:
        """The model rewritten for inference, anew where it has changed since."""
        stamp = (self.precision, self.device, *weights_stamp(self.model))
        if self._fast is None or self._fast[0] != stamp:
            self._fast = stamp, fast_copy(self.model, self.precision)
        return self._fast[1]

    def _detect(self, pixels: Sequence[np.ndarray], first: int) -> list[Detections]:
        """What is in N images, whose ids count from `first`."""
        ids = range(first, first + len(pixels))
        scale = (self.short_side, self.max_side)
        batch = batch_of(pixels, ids, scale, self.other_scales, self.resizing)
        return detect_batch(self._model, batch, self.device)

    def _detect_tiled(self, pixels: np.ndarray, tiling: Tiling, batch_size: int) -> Detections:
        """What is in one picture (H, W, 3), by its tiles where it is larger than one."""
        height, width = size = pixels.shape[:2]
        windows = tiling.windows(size)
        if not windows:
            (found,) = self._detect([pixels], 0)
            return found
        views: list[View] = []
        if tiling.whole:
            (found,) = self._detect([pixels], 0)
            views.append(View((0, 0, width, height), found))
        starts = range(0, len(windows), batch_size)
        for start in counted(starts, "looking at tiles", "batches", soon=PASS_S):
            views += self._views(pixels, windows[start : start + batch_size], start)
        return merge_views(views, size, self.nms_thresh)

    def _views(self, pixels: np.ndarray, windows: Sequence[Window], first: int) -> list[View]:
        """What is in these windows of a picture, at its own resolution."""
        tiles = [pixels[y1:y2, x1:x2] for x1, y1, x2, y2 in windows]
        ids = range(first, first + len(tiles))
        batch = batch_of(tiles, ids, None, self.other_scales, self.resizing)
        found = detect_batch(self._model, batch, self.device)
        return [View(window, own) for window, own in zip(windows, found, strict=True)]

"""A trained detector, as a user calls it: images in, detections in their pixels out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from detres.boxes import scale_boxes
from detres.class_map import ClassMap
from detres.detection.data.batch import pad_images
from detres.detection.structures import Detections, ImageBatch, Scale, names_of
from detres.eval_mode import evaluating
from detres.images.decode import Picture, as_rgb, one_or_more
from detres.images.resize import resize_image, resized_size


class Detector:
    """A model with all that predicting needs beside it; `detres.load` makes one of a weights file.

    model: called with an ImageBatch, returns one Detections an image. class_map: of its classes.
    short_side, max_side: px to which an image's short side is resized, and the cap on its long one.
    other_scales: further such pairs at which the model wants to see every image. score_thresholds:
    for each class the score from which it is best taken, found on held-out images; None: it was not
    measured.
    """

    def __init__(
        self,
        model: nn.Module,
        class_map: ClassMap,
        *,
        short_side: int,
        max_side: int,
        other_scales: Sequence[Scale] = (),
        score_thresholds: Sequence[float] | None = None,
    ) -> None:
        self.model = model
        self.class_map = class_map
        self.short_side = short_side
        self.max_side = max_side
        self.other_scales = tuple(other_scales)
        self.score_thresholds = None if score_thresholds is None else tuple(score_thresholds)
        self.device = torch.device("cpu")

    def to(self, device: torch.device | str) -> Detector:
        """Move the model to `device`, and return this detector."""
        self.device = torch.device(device)
        self.model.to(self.device)
        return self

    def predict(
        self, images: Picture | Sequence[Picture], *, batch_size: int = 1
    ) -> list[Detections]:
        """Return one Detections an image, on the CPU, boxes in the pixels of the image as given.

        images: one or more, each a (H, W, 3) uint8 RGB array or a path (EXIF orientation is
        honoured). No images: an empty list. The model's train/eval state is left as it was.

        Raises ImageReadError naming a file that cannot be read, ValueError for an array of another
        shape or dtype and for a batch_size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected 1 or more")
        images = one_or_more(images)
        detections = []
        for start in range(0, len(images), batch_size):
            batch = self._batch(images[start : start + batch_size], start)
            detections += detect_batch(self.model, batch, self.device)
        return detections

    def names_of(self, detections: Detections) -> list[str]:
        """Return the class name of every one of D detections."""
        return names_of(self.class_map, detections.labels)

    def _batch(self, images: Sequence[Picture], first: int) -> ImageBatch:
        pixels = [as_rgb(image, f"image {n}") for n, image in enumerate(images, start=first)]
        sizes = [image.shape[:2] for image in pixels]
        ids = range(first, first + len(images))

        def at(scale: Scale) -> ImageBatch:
            short_side, max_side = scale
            resized = [
                resize_image(image, resized_size(*size, short_side=short_side, max_side=max_side))
                for image, size in zip(pixels, sizes, strict=True)
            ]
            return pad_images(resized, original_sizes=sizes, ids=ids)

        others = {scale: at(scale) for scale in self.other_scales}
        return replace(at((self.short_side, self.max_side)), others=others)


def detect_batch(model: nn.Module, images: ImageBatch, device: torch.device) -> list[Detections]:
    """Return what `model`, in eval mode, finds in a batch: one Detections an image, on the CPU,
    boxes in the pixels of the original files.

    The model's train/eval state is put back afterwards.
    """
    with evaluating(model):
        found = model(images.to(device))
        boxes = [
            scale_boxes(each.boxes, from_size=size, to_size=original)
            for each, size, original in zip(found, images.sizes, images.original_sizes, strict=True)
        ]
        return [
            Detections(box, each.scores, each.labels).to("cpu")
            for box, each in zip(boxes, found, strict=True)
        ]

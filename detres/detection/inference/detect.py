"""Pixels of any sizes -> a batch -> what a model finds in it, in those pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from detres.boxes import scale_boxes
from detres.detection.data.batch import pad_images
from detres.detection.structures import Detections, ImageBatch, ImageId, Scale
from detres.eval_mode import evaluating
from detres.images.resize import Resizing, resize_image, resized_size


def batch_of(
    images: Sequence[np.ndarray],
    ids: Sequence[ImageId],
    scale: Scale | None,
    other_scales: Sequence[Scale] = (),
    resizing: Resizing = "cv2",
) -> ImageBatch:
    """Return N images (H, W, 3) uint8 as a batch, resized to `scale`, or at their own size where it
    is None, and the same images at `other_scales` beside it; raises what `pad_images` raises.
    """
    sizes = [image.shape[:2] for image in images]

    def at(scale: Scale) -> list[np.ndarray]:
        short_side, max_side = scale
        wanted = [
            resized_size(*size, short_side=short_side, max_side=max_side, resizing=resizing)
            for size in sizes
        ]
        return [
            resize_image(image, size, resizing) for image, size in zip(images, wanted, strict=True)
        ]

    def padded(images: Sequence[np.ndarray]) -> ImageBatch:
        return pad_images(images, original_sizes=sizes, ids=ids)

    others = {each: padded(at(each)) for each in other_scales}
    return replace(padded(images if scale is None else at(scale)), others=others)


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

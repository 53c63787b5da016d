"""Images of different sizes -> one padded batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detres.detection.structures import ImageBatch, ImageId

MIN_SIDE = 32
"""Px of a batch's sides, conv5's stride: a smaller image would leave a stage without a cell."""


_DTYPES = (np.uint8, np.float32)


def pad_images(
    images: Sequence[np.ndarray],
    *,
    original_sizes: Sequence[tuple[int, int]],
    ids: Sequence[ImageId],
    proposals: Sequence[Tensor] | None = None,
) -> ImageBatch:
    """Return N images (H, W, 3) uint8, or float32 on the same scale, as one batch, padded with
    zeros at the right and bottom; uint8 where all of them are.

    original_sizes: N (h, w) px of the files as read. ids: N image ids. proposals: N tensors (P, 4)
    float32 xyxy px, which padding at the right and bottom leaves where they are. The common size is
    the smallest that holds them all, and at least MIN_SIDE: images of one size are not padded, as
    in py-faster-rcnn and in detectron2's C4 models. Raises ValueError without images, when these
    are not of one length, and for an image of another shape or dtype, naming its id.
    """
    if not images:
        raise ValueError("a batch needs at least one image")
    if not len(images) == len(original_sizes) == len(ids):
        raise ValueError(
            f"a batch of {len(images)} images has {len(original_sizes)} original sizes and "
            f"{len(ids)} ids"
        )
    if proposals is not None and len(proposals) != len(images):
        raise ValueError(f"a batch of {len(images)} images has proposals for {len(proposals)}")
    for image, image_id in zip(images, ids, strict=True):
        if image.dtype not in _DTYPES or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"image {image_id} is {image.dtype} {image.shape}, expected uint8 (H, W, 3)"
            )
    height, width = (max(MIN_SIDE, *(image.shape[axis] for image in images)) for axis in (0, 1))
    whole = all(image.dtype == np.uint8 for image in images)
    dtype = torch.uint8 if whole else torch.float32
    pixels = torch.zeros((len(images), height, width, 3), dtype=dtype)
    for row, image in zip(pixels.numpy(), images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return ImageBatch(
        pixels=pixels.permute(0, 3, 1, 2),  # channels last in memory, as the model wants it
        sizes=tuple(image.shape[:2] for image in images),
        original_sizes=tuple(original_sizes),
        ids=tuple(ids),
        proposals=None if proposals is None else tuple(proposals),
    )

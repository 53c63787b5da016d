"""Images of different sizes -> one padded batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detres.detection.structures import ImageBatch, ImageId, Target

_BOX = 16.0
"""Px of the least side of a box of `worst_batch`."""

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


def worst_batch(
    number: int, size: tuple[int, int], *, num_boxes: int, num_proposals: int | None
) -> tuple[ImageBatch, list[Target]]:
    """Return `number` images of `size` (h, w) px, made up, with as many boxes each, and proposals;
    num_proposals None: there are none. Always the same; num_boxes may be 0.
    """
    generator = torch.Generator().manual_seed(0)
    height, width = size

    def boxes(count: int) -> Tensor:
        room = torch.tensor([max(0.0, width - _BOX), max(0.0, height - _BOX)])
        corners = torch.rand((2, count, 2), generator=generator) * room
        return torch.cat((corners.amin(0), corners.amax(0) + _BOX), dim=1)  # (count, 4)

    nothing = torch.zeros(num_boxes, dtype=torch.bool)
    labels = torch.ones(num_boxes, dtype=torch.int64)
    rows = range(number)
    images = ImageBatch(
        pixels=torch.randint(0, 256, (number, *size, 3), generator=generator)
        .byte()
        .permute(0, 3, 1, 2),  # channels last in memory
        sizes=(size,) * number,
        original_sizes=(size,) * number,
        ids=tuple(rows),
        proposals=None if num_proposals is None else tuple(boxes(num_proposals) for _ in rows),
        seeds=tuple(rows),
    )
    return images, [Target(row, boxes(num_boxes), labels, nothing, nothing) for row in rows]

"""Batches of small images held in memory, on the device that trains: padded, cropped and mirrored
as a batch (paper, section 4.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from detres.classification.structures import ClassTargets, CropBatch
from detres.engine.batches import WHOLE, Share, StepSampler, once_in_order
from detres.images.decode import ImageReadError, decode_image
from detres.images.source import EncodedImages, ImageArrays


class ArrayTrainBatches:
    """(CropBatch, ClassTargets) for the steps start_step..steps - 1, in StepSampler's order, every
    batch full.

    pad: px of black on every side, out of which a crop of the image's own size is drawn. flip:
    probability of the mirror image. share: as of StepSampler. What a step gives depends on (seed,
    step) alone, so a resumed run sees what a straight one would.
    """

    def __init__(
        self,
        images: ImageArrays,
        *,
        batch_size: int,
        seed: int,
        steps: int,
        start_step: int = 0,
        pad: int = 4,
        flip: float = 0.5,
        device: torch.device | str = "cpu",
        share: Share = WHOLE,
    ) -> None:
        self.sampler = StepSampler(
            np.ones(len(images)),
            batch_size=batch_size,
            seed=seed,
            steps=steps,
            start_step=start_step,
            group_by_aspect=False,
            share=share,
        )
        self.seed, self.start_step, self.pad, self.flip = seed, start_step, pad, flip
        self.height, self.width = images.size
        padded = F.pad(torch.from_numpy(images.pixels), (0, 0, pad, pad, pad, pad))
        self.pixels = padded.to(device)  # (M, H, W, 3) -> (M, H + 2 pad, W + 2 pad, 3)
        self.labels = torch.from_numpy(images.labels).to(device)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[tuple[CropBatch, ClassTargets]]:
        for step, keys in enumerate(self.sampler.whole_steps(), start=self.start_step):
            rng = np.random.default_rng((self.seed, 2, step))
            corners = rng.integers(0, 2 * self.pad + 1, (2, len(keys)))
            mirrored = rng.random(len(keys)) < self.flip
            for rows in self.sampler.share.of(np.arange(len(keys))):
                indices = [keys[row][0] for row in rows]
                crops = self._crops(indices, corners[:, rows], mirrored[rows])
                yield CropBatch(crops, tuple(indices)), ClassTargets(self.labels[indices])

    def _crops(self, indices: list[int], corners: np.ndarray, mirrored: np.ndarray) -> Tensor:
        """Pixels (N, 3, H, W) uint8, channels last, of the crops at corners (2, N) (top, left)."""
        device = self.pixels.device
        rows = corners[0][:, None] + np.arange(self.height)
        across = np.arange(self.width)
        columns = np.where(mirrored[:, None], across[::-1], across) + corners[1][:, None]
        n = torch.tensor(indices, device=device)[:, None, None]
        rows = torch.from_numpy(rows).to(device)[:, :, None]
        columns = torch.from_numpy(columns).to(device)[:, None, :]
        return self.pixels[n, rows, columns].permute(0, 3, 1, 2)  # (N, H, W, 3) -> (N, 3, H, W)


class ArrayEvalBatches:
    """(CropBatch, ClassTargets) over all images once, in their order, as they are, or the `share`
    of their batches; the last batch may be short.
    """

    def __init__(self, images: ImageArrays, *, batch_size: int, share: Share = WHOLE) -> None:
        self.images = images
        self.batches = once_in_order(len(images), batch_size, share)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[CropBatch, ClassTargets]]:
        for batch in self.batches:
            rows = [index for index, _ in batch]
            pixels = torch.from_numpy(self.images.pixels[rows]).permute(0, 3, 1, 2)
            labels = torch.from_numpy(self.images.labels[rows])
            yield CropBatch(pixels, tuple(rows)), ClassTargets(labels)


def decode_in_memory(
    images: EncodedImages, *, damaged: Literal["error", "skip"] = "error"
) -> ImageArrays:
    """Return encoded images of one size as arrays, every one read once.

    damaged: whether an image that cannot be decoded is an error, or left out and listed; one that
    is gone is always an error. Raises ValueError naming the first image of another size than the
    one before, and for no images; ImageReadError naming a damaged one, and when none can be read.
    """
    if len(images) == 0:
        raise ValueError(f"{images.source} has no images")
    pixels: np.ndarray | None = None
    good, left_out = [], []
    for row in range(len(images)):
        file = images.name(row)
        data = images.read_bytes(row)
        try:
            image = decode_image(data, file)
        except ImageReadError:
            if damaged == "error":
                raise
            left_out.append(file)
            continue
        good.append(row)
        if pixels is None:
            pixels = np.empty((len(images), *image.shape), np.uint8)
        if image.shape != pixels.shape[1:]:
            expected = f"{pixels.shape[2]}x{pixels.shape[1]}"
            raise ValueError(
                f"{file} has {image.shape[1]}x{image.shape[0]} px, the files before it {expected}: "
                "in memory they must be of one size"
            )
        pixels[row] = image
    if pixels is None:
        raise ImageReadError(
            f"{images.source}: none of the {len(images)} images can be read, the first is "
            f"{images.name(0)}"
        )
    if left_out:
        pixels = pixels[good]
    return ImageArrays(
        images.source,
        images.class_map,
        pixels,
        images.labels[good],
        (*images.damaged, *left_out),
    )


def mean_of_arrays(images: ImageArrays) -> Tensor:
    """Return the mean image (3, H, W) float32 of all images (paper, section 4.2)."""
    mean = torch.from_numpy(images.pixels.mean(axis=0, dtype=np.float64)).float()
    return mean.permute(2, 0, 1).contiguous()  # (H, W, 3) -> (3, H, W)

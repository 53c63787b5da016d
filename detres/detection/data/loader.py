"""Annotations -> images and targets, one by one, and their collation into batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from torch.utils.data import Dataset

from detres.detection.annotations import Annotations
from detres.detection.data.batch import pad_images
from detres.detection.data.transforms import EvalTransform
from detres.detection.structures import ImageBatch, Scale, Target
from detres.images.decode import read_image

Transform = Callable[[np.ndarray, Target, int], tuple[np.ndarray, Target]]

Item = tuple[np.ndarray, Target, tuple[int, int]]


class DetectionDataset(Dataset):
    """Images and targets of annotated data, read and transformed one by one; items are asked for
    with a seed.

    Raises ValueError when there are no images.
    """

    def __init__(self, annotations: Annotations, transform: Transform) -> None:
        if len(annotations) == 0:
            raise ValueError(f"{annotations.source} has no images")
        self.annotations, self.transform = annotations, transform

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """Return (image (h, w, 3) uint8 RGB, target, (H, W) px of the file as read) for key (index,
        seed).

        Raises ImageReadError or ValueError naming the file when it cannot be read or has another
        size than annotated.
        """
        index, seed = key
        image = self._read(index)
        original_size = image.shape[:2]
        image, target = self.transform(image, self.annotations.target(index), seed)
        return image, target, original_size

    def _read(self, index: int) -> np.ndarray:
        stated = self.annotations.image_sizes[index]
        return read_image(self.annotations.image_files[index], (int(stated[0]), int(stated[1])))

    def aspect_ratios(self) -> np.ndarray:
        """Return width / height (N,) float64 as annotated; 1 where the annotation does not state
        the size.
        """
        height, width = self.annotations.image_sizes.astype(np.float64).T
        known = (height > 0) & (width > 0)
        return np.divide(width, height, out=np.ones_like(height), where=known)


def collate(items: Sequence[Item]) -> tuple[ImageBatch, list[Target]]:
    """Return one padded batch and the targets; raises ValueError for no items."""
    targets = [target for _, target, _ in items]
    images = pad_images(
        [image for image, _, _ in items],
        original_sizes=[size for _, _, size in items],
        ids=[target.image_id for target in targets],
    )
    return images, targets


class PyramidDataset(DetectionDataset):
    """Images of annotated data, each at several scales, for a detector that looks at all of them.

    scales: (short_side, max_side) px, the first where the batch's boxes are. Items are asked for as
    a DetectionDataset's; raises as it does.
    """

    def __init__(self, annotations: Annotations, scales: Sequence[Scale]) -> None:
        self.scales = tuple(scales)
        self.transforms = [
            EvalTransform(short_side=short_side, max_side=max_side)
            for short_side, max_side in self.scales
        ]
        super().__init__(annotations, self.transforms[0])

    def __getitem__(self, key: tuple[int, int]) -> list[Item]:
        """Return the Item at every scale; the file is read once."""
        index, seed = key
        image, target = self._read(index), self.annotations.target(index)
        return [(*transform(image, target, seed), image.shape[:2]) for transform in self.transforms]

    def collate(self, items: Sequence[list[Item]]) -> tuple[ImageBatch, list[Target]]:
        """Return one padded batch at the first scale with the others beside it, and the targets."""
        (images, targets), *others = (collate(of_scale) for of_scale in zip(*items, strict=True))
        beside = zip(self.scales[1:], (batch for batch, _ in others), strict=True)
        return replace(images, others=dict(beside)), targets

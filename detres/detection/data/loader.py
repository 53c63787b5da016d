"""Annotations -> images and targets, one by one, and their collation into batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch.utils.data import Dataset

from detres.detection.annotations import Annotations
from detres.detection.data.batch import pad_images
from detres.detection.structures import ImageBatch, Target
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
        stated = self.annotations.image_sizes[index]
        image = read_image(self.annotations.image_files[index], (int(stated[0]), int(stated[1])))
        original_size = image.shape[:2]
        image, target = self.transform(image, self.annotations.target(index), seed)
        return image, target, original_size

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

"""Annotations -> images and targets, one by one, and their collation into batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detres.detection.annotations import Annotations
from detres.detection.data.batch import pad_images
from detres.detection.structures import ImageBatch, Proposals, Target
from detres.images.decode import read_image


class Transform(Protocol):
    """What becomes of an image, with all boxes on it: a TrainTransform or an EvalTransform."""

    def with_proposals(
        self, image: np.ndarray, target: Target, proposals: Tensor | None, seed: int
    ) -> tuple[np.ndarray, Target, Tensor | None]:
        """Return the changed image (h, w, 3) uint8, target and proposals (P, 4) float32 px of it;
        image (H, W, 3) uint8, proposals (P, 4) float64 xyxy px or None.
        """


class Item(NamedTuple):
    """An image (h, w, 3) uint8 RGB as the model will see it, its target, the (H, W) px of the file
    as read, and the proposals (P, 4) float32 xyxy px, None where there are none.
    """

    image: np.ndarray
    target: Target
    original_size: tuple[int, int]
    proposals: Tensor | None = None


class DetectionDataset(Dataset):
    """Images and targets of annotated data, read and transformed one by one; items are asked for
    with a seed.

    proposals: of the same images in the same order, for Fast R-CNN; None: the RPN proposes. Raises
    ValueError when there are no images, or not one for each of `proposals`.
    """

    def __init__(
        self, annotations: Annotations, transform: Transform, proposals: Proposals | None = None
    ) -> None:
        if len(annotations) == 0:
            raise ValueError(f"{annotations.source} has no images")
        if proposals is not None and not np.array_equal(proposals.image_ids, annotations.image_ids):
            raise ValueError(f"{proposals.source} are not of the images of {annotations.source}")
        self.annotations, self.transform, self.proposals = annotations, transform, proposals

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """Return the item of key (index, seed).

        Raises ImageReadError or ValueError naming the file when it cannot be read or has another
        size than annotated.
        """
        index, seed = key
        stated = self.annotations.image_sizes[index]
        image = read_image(self.annotations.image_files[index], (int(stated[0]), int(stated[1])))
        original_size, proposals = image.shape[:2], None
        if self.proposals is not None:
            boxes = self.proposals.boxes[self.proposals.rows_of(index)]
            proposals = torch.from_numpy(np.ascontiguousarray(boxes, np.float64))
        target = self.annotations.target(index)
        image, target, proposals = self.transform.with_proposals(image, target, proposals, seed)
        return Item(image, target, original_size, proposals)

    def aspect_ratios(self) -> np.ndarray:
        """Return width / height (N,) float64 as annotated; 1 where the annotation does not state
        the size.
        """
        height, width = self.annotations.image_sizes.astype(np.float64).T
        known = (height > 0) & (width > 0)
        return np.divide(width, height, out=np.ones_like(height), where=known)


def collate(items: Sequence[Item]) -> tuple[ImageBatch, list[Target]]:
    """Return one padded batch and the targets; raises ValueError for no items."""
    targets = [item.target for item in items]
    proposals = [item.proposals for item in items if item.proposals is not None]
    images = pad_images(
        [item.image for item in items],
        original_sizes=[item.original_size for item in items],
        ids=[target.image_id for target in targets],
        proposals=proposals or None,
    )
    return images, targets

"""Annotations -> images and targets, one by one, and their collation into batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from detres.detection.annotations import Annotations
from detres.detection.data.batch import pad_images
from detres.detection.data.transforms import EvalTransform
from detres.detection.structures import ImageBatch, Proposals, Scale, Target
from detres.images.cache import ImageCache
from detres.images.decode import DecodedImage, Needed, read_image, read_reduced
from detres.images.resize import Resizing


class Transform(Protocol):
    """What becomes of an image, with all boxes on it; one that proposals go through, such as a
    TrainTransform or an EvalTransform, has `with_proposals` too.
    """

    def __call__(self, image: np.ndarray, target: Target, seed: int) -> tuple[np.ndarray, Target]:
        """Return the changed image (h, w, 3) uint8 and target; image (H, W, 3) uint8."""


class Item(NamedTuple):
    """An image (h, w, 3) uint8 RGB as the model will see it, its target, the (H, W) px of the file
    as read, and the proposals (P, 4) float32 xyxy px, None where there are none. seed: that the
    item was asked for with.
    """

    image: np.ndarray
    target: Target
    original_size: tuple[int, int]
    proposals: Tensor | None = None
    seed: int = 0


class DetectionDataset(Dataset):
    """Images and targets of annotated data, read and transformed one by one; items are asked for
    with a seed.

    proposals: of the same images in the same order, for Fast R-CNN; None: the RPN proposes.
    needed: what the transform makes of an image at most, so that JPEG files are decoded at a
    reduced scale where that is enough, see read_reduced; None: at full size. cache: where decoded
    images are kept; items are the same with and without. Raises ValueError when there are no
    images, or not one for each of `proposals`.
    """

    def __init__(
        self,
        annotations: Annotations,
        transform: Transform,
        proposals: Proposals | None = None,
        *,
        needed: Needed | None = None,
        cache: ImageCache | None = None,
    ) -> None:
        if len(annotations) == 0:
            raise ValueError(f"{annotations.source} has no images")
        if proposals is not None and not np.array_equal(proposals.image_ids, annotations.image_ids):
            raise ValueError(f"{proposals.source} are not of the images of {annotations.source}")
        self.annotations, self.transform, self.proposals = annotations, transform, proposals
        self.needed, self.cache = needed, cache

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """Return the item of key (index, seed).

        Raises ImageReadError or ValueError naming the file when it cannot be read, has another
        size than annotated, or a box that the transform leaves without finite corners.
        """
        index, seed = key
        return self._item(self._read(index), self.transform, index, seed, self._proposals(index))

    def _item(
        self,
        image: DecodedImage,
        transform: Transform,
        index: int,
        seed: int,
        proposals: Tensor | None,
    ) -> Item:
        target, pixels = self.annotations.target(index), image.pixels
        target = replace(target, boxes=image.carried(target.boxes))
        if proposals is None:
            changed, target = transform(pixels, target, seed)
        else:
            changed, target, proposals = transform.with_proposals(
                pixels, target, image.carried(proposals), seed
            )
        if not target.boxes.isfinite().all():  # no anchor matches it: it would pass unnoticed
            row = int((~target.boxes.isfinite()).any(dim=1).nonzero()[0])
            raise ValueError(
                f"{self.annotations.image_files[index]}: box {row} of {len(target)} (counted from "
                f"0) of image {target.image_id} is {target.boxes[row].tolist()} once transformed, "
                "which is not finite"
            )
        return Item(changed, target, image.size, proposals, seed)

    def _proposals(self, index: int) -> Tensor | None:
        if self.proposals is None:
            return None
        boxes = self.proposals.boxes[self.proposals.rows_of(index)]
        return torch.from_numpy(np.ascontiguousarray(boxes, np.float64))

    def _read(self, index: int) -> DecodedImage:
        kept = None if self.cache is None else self.cache.get(index)
        if kept is not None:
            return kept
        file = self.annotations.image_files[index]
        height, width = self.annotations.image_sizes[index].tolist()
        if self.needed is None:
            pixels = read_image(file, (height, width))
            image = DecodedImage(pixels, pixels.shape[:2])
        else:
            image = read_reduced(file, (height, width), self.needed)
        if self.cache is not None:
            self.cache.put(index, image)
        return image

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
    return replace(images, seeds=tuple(item.seed for item in items)), targets


class PyramidDataset(DetectionDataset):
    """Images of annotated data, each at several scales, for a detector that looks at all of them.

    scales: (short_side, max_side) px, the first where the batch's boxes are. Items are asked for as
    a DetectionDataset's; raises as it does.
    """

    def __init__(
        self,
        annotations: Annotations,
        scales: Sequence[Scale],
        proposals: Proposals | None = None,
        resizing: Resizing = "cv2",
    ) -> None:
        self.scales = tuple(scales)
        self.transforms = [
            EvalTransform(short_side=short_side, max_side=max_side, resizing=resizing)
            for short_side, max_side in self.scales
        ]
        super().__init__(annotations, self.transforms[0], proposals)

    def __getitem__(self, key: tuple[int, int]) -> list[Item]:
        """Return the Item at every scale, the proposals in the first; the file is read once."""
        index, seed = key
        image = self._read(index)
        first, *others = self.transforms
        return [
            self._item(image, first, index, seed, self._proposals(index)),
            *(self._item(image, transform, index, seed, None) for transform in others),
        ]

    def collate(self, items: Sequence[list[Item]]) -> tuple[ImageBatch, list[Target]]:
        """Return one padded batch at the first scale with the others beside it, and the targets."""
        (images, targets), *others = (collate(of_scale) for of_scale in zip(*items, strict=True))
        beside = zip(self.scales[1:], (batch for batch, _ in others), strict=True)
        return replace(images, others=dict(beside)), targets

"""What localisation learns from: square crops of an image, and regions warped to one size, each
with the objects in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detres.boxes import box_iou, clip_boxes, large_enough, scale_boxes
from detres.detection.structures import ImageId, Target
from detres.images.resize import resized_window, scaled_size, warped_region


class RandomCrop:
    """A square crop of a randomly scaled image or its mirror, as the paper trains classification
    (section 3.4), with what is in it of the objects.

    short_sides: (low, high) px, both included, between which the short side is drawn. crop_side:
    px. flip: probability. Raises ValueError when a scaled image could be smaller than the crop.
    """

    def __init__(self, *, short_sides: tuple[int, int], crop_side: int, flip: float) -> None:
        if not crop_side <= short_sides[0] <= short_sides[1]:
            raise ValueError(
                f"short sides {short_sides[0]}..{short_sides[1]} px do not hold a crop of "
                f"{crop_side} px"
            )
        self.short_sides, self.crop_side, self.flip = short_sides, crop_side, flip

    def __call__(self, image: np.ndarray, target: Target, seed: int) -> tuple[np.ndarray, Target]:
        """Return the crop (S, S, 3) uint8 and its target, a pure function of the arguments.

        image: (H, W, 3) uint8. Boxes are cut to the crop, and those without area dropped; none may
        be left.
        """
        rng, old, side = np.random.default_rng(seed), image.shape[:2], self.crop_side
        short_side = int(rng.integers(self.short_sides[0], self.short_sides[1] + 1))
        size = scaled_size(*old, short_side)
        top, left = (int(rng.integers(0, length - side + 1)) for length in size)
        crop = resized_window(image, size, (top, left), side)
        boxes = scale_boxes(target.boxes, from_size=old, to_size=size)
        boxes = boxes - boxes.new_tensor((left, top, left, top))
        if rng.random() < self.flip:
            crop, boxes = crop[:, ::-1], _mirrored(boxes, side)
        boxes = clip_boxes(boxes, (side, side))
        keep = large_enough(boxes, 0)
        return np.ascontiguousarray(crop), Target(
            target.image_id,
            boxes[keep],
            target.labels[keep],
            target.crowd[keep],
            target.difficult[keep],
        )


class ProposalsByImage:
    """The proposals of N images, looked up by image id, in flat arrays, which loader workers share.

    image_ids: (N,), unique. boxes: N arrays (P, 4) float32 xyxy px; P may be 0.
    """

    def __init__(self, image_ids: np.ndarray, boxes: Sequence[np.ndarray]) -> None:
        order = np.argsort(image_ids)
        self.image_ids = image_ids[order]
        self.offsets = np.cumsum([0, *(len(boxes[row]) for row in order)])
        none = np.zeros((0, 4), np.float32)
        self.boxes = np.concatenate([none, *(boxes[row] for row in order)])

    def __getitem__(self, image_id: ImageId) -> np.ndarray:
        """Return the boxes (P, 4) of an image; raises KeyError for another."""
        row = int(np.searchsorted(self.image_ids, image_id))
        if row == len(self.image_ids) or self.image_ids[row] != image_id:
            raise KeyError(f"no proposals of image {image_id}")
        return self.boxes[self.offsets[row] : self.offsets[row + 1]]


class WarpedProposal:
    """One of an image's proposals, or its mirror, warped to a square, with the image's objects in
    its pixels: what R-CNN learns from (Girshick et al. 2014).

    proposals: in the pixels of the files. side: px. flip: probability.
    positive_fraction: how often it is one of those that overlap an object by fg_iou_thresh, where
    there are both kinds. An image without proposals is taken whole.
    """

    def __init__(
        self,
        *,
        proposals: ProposalsByImage,
        side: int,
        flip: float,
        positive_fraction: float,
        fg_iou_thresh: float,
    ) -> None:
        self.proposals, self.side, self.flip = proposals, side, flip
        self.positive_fraction, self.fg_iou_thresh = positive_fraction, fg_iou_thresh

    def __call__(self, image: np.ndarray, target: Target, seed: int) -> tuple[np.ndarray, Target]:
        """Return the region (S, S, 3) uint8 and its target, whose boxes may reach beyond it; a pure
        function of the arguments.

        image: (H, W, 3) uint8. target: with an object at least.
        """
        rng = np.random.default_rng(seed)
        wants_positive, mirrors = rng.random() < self.positive_fraction, rng.random() < self.flip
        boxes = torch.from_numpy(self.proposals[target.image_id].copy())
        if len(boxes) == 0:
            height, width = image.shape[:2]
            boxes = torch.tensor([[0.0, 0.0, width, height]])
        positive = box_iou(boxes, target.boxes).max(dim=1).values >= self.fg_iou_thresh
        rows = torch.nonzero(positive == bool(wants_positive)).flatten()
        rows = rows if len(rows) else torch.arange(len(boxes))
        box = boxes[rows[rng.integers(len(rows))]].numpy()
        crop, (x1, y1, x2, y2) = warped_region(image, box, self.side)
        shifted = target.boxes - target.boxes.new_tensor((x1, y1, x1, y1))
        within = scale_boxes(shifted, from_size=(y2 - y1, x2 - x1), to_size=(self.side, self.side))
        if mirrors:
            crop, within = crop[:, ::-1], _mirrored(within, self.side)
        return np.ascontiguousarray(crop), Target(
            target.image_id, within, target.labels, target.crowd, target.difficult
        )


def _mirrored(boxes: Tensor, width: int) -> Tensor:
    """Boxes (N, 4) xyxy px of an image `width` px wide in its mirror."""
    return torch.stack((width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]), dim=1)

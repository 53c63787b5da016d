"""Boxes that are surely or probably not what was meant, told by their numbers alone.

M boxes (M, 4) float64 xyxy px as a file has them, in images of `sizes` (M, 2) (h, w) px, 0 where
that is not known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from detres.boxes import paired_iou
from detres.detection.data.box_policy import CLIP_TOLERANCE, without_area
from detres.images.resize import resized_size

NEARLY_THE_SAME = 0.9
"""IoU from which two boxes are taken for one object drawn twice."""

_THE_SAME = 0.01
"""Px by which two boxes may differ to be the same: what writing numbers in text rounds away."""

_FAR_OUT = 0.02
"""Of a side of the image: what a box must reach beyond it for x and y to be suspected."""


@dataclass(frozen=True)
class BoxFaults:
    """What is wrong with each of M boxes, (M,) bool each; a box has one fault at most.

    not_finite: some number is none. swapped_corners: x2 < x1 or y2 < y1. without_area: a side is 0,
    as the model's float32 have it. exchanged_axes: the box leaves its image, and fits into it with
    x and y exchanged. outside: wholly outside its image. leaving: beyond it by more than
    CLIP_TOLERANCE.
    """

    not_finite: np.ndarray
    swapped_corners: np.ndarray
    without_area: np.ndarray
    exchanged_axes: np.ndarray
    outside: np.ndarray
    leaving: np.ndarray

    @property
    def usable(self) -> np.ndarray:
        """Which boxes have an area in their image, (M,) bool."""
        return ~(
            self.not_finite
            | self.swapped_corners
            | self.without_area
            | self.exchanged_axes
            | self.outside
        )


def find_faults(boxes: np.ndarray, sizes: np.ndarray) -> BoxFaults:
    """Return what is wrong with each box; of images without a size, only what can be told."""
    with np.errstate(over="ignore"):  # too large for float32 is infinite there
        not_finite = ~np.isfinite(boxes.astype(np.float32)).all(axis=1)
    boxes = np.where(not_finite[:, None], 0.0, boxes)
    swapped = ~not_finite & (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    flat = ~not_finite & ~swapped & without_area(boxes)
    whole = ~(not_finite | swapped | flat)
    limit = np.where(sizes > 0, sizes, np.inf)[:, ::-1]  # (M, 2) (w, h)
    beyond = _beyond(boxes, limit)
    far = (beyond > np.maximum(2 * CLIP_TOLERANCE, _FAR_OUT * limit)).any(axis=1)
    fits = (_beyond(boxes[:, [1, 0, 3, 2]], limit) <= CLIP_TOLERANCE).all(axis=1)
    exchanged = whole & far & fits
    seen = np.minimum(boxes[:, 2:], limit) - np.maximum(boxes[:, :2], 0)
    outside = whole & ~exchanged & (seen <= 0).any(axis=1)
    leaving = whole & ~exchanged & ~outside & (beyond > CLIP_TOLERANCE).any(axis=1)
    return BoxFaults(not_finite, swapped, flat, exchanged, outside, leaving)


def _beyond(boxes: np.ndarray, limit: np.ndarray) -> np.ndarray:
    """Px (M, 2) that boxes reach beyond their images of `limit` (M, 2) (w, h), along x and y."""
    return np.maximum(np.maximum(-boxes[:, :2], boxes[:, 2:] - limit), 0)


def doubled_boxes(boxes: np.ndarray, images: np.ndarray, least_iou: float) -> np.ndarray:
    """Return (P, 2) int64, the rows a < b of every two boxes in one image whose IoU is at least
    `least_iou`, above 0, in rising order.

    images: (M,) int64, the image of each box. Boxes must have an area. No boxes: (0, 2).
    """
    order = np.lexsort((boxes[:, 0], images))
    sorted_boxes, sorted_images = boxes[order], images[order]
    # Of two boxes with that IoU, the right one begins within this of the left one's width.
    widths = sorted_boxes[:, 2] - sorted_boxes[:, 0]
    reach = sorted_boxes[:, 0] + (1 - least_iou) * widths
    left = np.arange(len(boxes))
    found = [np.zeros((0, 2), np.int64)]
    for shift in range(1, len(boxes)):
        left = left[left + shift < len(boxes)]
        right = left + shift
        near = (sorted_images[left] == sorted_images[right]) & (
            sorted_boxes[right, 0] <= reach[left]
        )
        left, right = left[near], right[near]
        if len(left) == 0:
            break
        same = paired_iou(sorted_boxes[left], sorted_boxes[right]) >= least_iou
        found.append(np.stack((order[left[same]], order[right[same]]), axis=1))
    pairs = np.sort(np.concatenate(found), axis=1)
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]


def are_equal(boxes: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return which pairs (P, 2) of rows are the same box but for rounding in text, (P,) bool."""
    return (np.abs(boxes[pairs[:, 0]] - boxes[pairs[:, 1]]) <= _THE_SAME).all(axis=1)


def training_scales(sizes: np.ndarray, short_side: int, max_side: int) -> np.ndarray:
    """Return by how much images of `sizes` (N, 2) (h, w) px are enlarged for training, (N,)
    float64, by the rule of images.resize.resized_size; NaN where the size is not known.
    """
    different, of_image = np.unique(sizes, axis=0, return_inverse=True)
    scales = [
        resized_size(height, width, short_side=short_side, max_side=max_side)[0] / height
        if height > 0 and width > 0
        else np.nan
        for height, width in different.tolist()
    ]
    return np.array(scales, np.float64)[of_image.reshape(-1)]

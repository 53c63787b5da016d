"""What becomes of boxes that cannot be objects: decided once, at load time, never in the middle of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

BoxPolicy = Literal["drop", "error", "keep"]

CLIP_TOLERANCE = 1.0
"""Px. Boxes reaching further than this beyond their image are counted as clipped; less is rounding."""


class AnnotationError(ValueError):
    """Annotations that cannot be used; the message names the file and the record."""


def apply_box_policy(
    boxes: np.ndarray, sizes: np.ndarray, policy: BoxPolicy, describe: Callable[[int], str]
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Return (boxes (M, 4) float32, keep (M,) bool, reason -> count) for xyxy boxes (M, 4) in images of `sizes` (M, 2) (h, w).

    "drop" cuts boxes to their image (a size of 0 means unknown: not cut) and leaves out those that are not finite, have no
    area (x2 <= x1 or y2 <= y1) or lie wholly outside. "error" raises AnnotationError at the first of these, with
    `describe(row)` saying which it is. "keep" touches nothing: ground truth for scoring is taken as it stands.
    """
    if policy == "keep" or len(boxes) == 0:
        return boxes.astype(np.float32), np.ones(len(boxes), bool), {}
    finite = np.isfinite(boxes).all(axis=1)
    boxes = np.where(finite[:, None], boxes, 0)
    no_area = finite & ((boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1]))
    limit = np.where(sizes > 0, sizes, np.inf)[:, [1, 0, 1, 0]]
    cut = np.clip(boxes, 0, limit)
    outside = finite & ~no_area & ((cut[:, 2] <= cut[:, 0]) | (cut[:, 3] <= cut[:, 1]))
    keep = finite & ~no_area & ~outside
    clipped = keep & (np.abs(cut - boxes).max(axis=1) > CLIP_TOLERANCE)
    reasons = {
        "box with a number that is not finite": ~finite,
        "box without area": no_area,
        "box outside its image": outside,
    }
    for reason, rows in reasons.items():
        if policy == "error" and rows.any():
            first = int(np.flatnonzero(rows)[0])
            raise AnnotationError(
                f"{describe(first)}: {reason} ({rows.sum()} of these in all). Correct it, or set data.boxes=drop to leave such boxes out"
            )
    counts = {reason: int(rows.sum()) for reason, rows in reasons.items() if rows.any()}
    if clipped.any():
        counts["box cut to its image"] = int(clipped.sum())
    return cut.astype(np.float32), keep, counts

"""What boxes look like when their numbers mean something else than the format says."""

from __future__ import annotations

import numpy as np

_MOST = 0.95
"""Of the boxes must fit another reading before it is told."""

_SOME = 0.1
"""Of the boxes must contradict the reading they have."""

_TOLERANCE = 1.0
"""Px by which a box may reach beyond its image by rounding."""


def doubts(xyxy: np.ndarray, sizes: np.ndarray, *, written_as_sides: bool) -> list[str]:
    """Return what is doubtful about boxes (M, 4) float64 xyxy px, as written, in images of `sizes`
    (M, 2) (h, w) px (0: unknown), a line each, with its cure; none for usual boxes and for no box.

    Told are: fractions of the image for pixels; boxes of at most one pixel; (x1, y1, x2, y2) where
    [x, y, width, height] is expected (written_as_sides: the file has the latter); pixels of images
    of another size. Boxes that are not finite have no say.
    """
    usable = np.isfinite(xyxy).all(axis=1)
    xyxy, sizes = xyxy[usable], sizes[usable]
    if not len(xyxy):
        return []
    num, largest = len(xyxy), int(sizes.max())
    fractions = (np.abs(xyxy - 0.5) <= 0.51).all(axis=1)
    if fractions.mean() >= _MOST and (largest > 10 or largest == 0):
        return [
            f"{_of(fractions)} boxes lie within 0..1 px"
            + (f" of images of up to {largest} px" if largest else "")
            + ": they look like fractions of the image, expected are pixels; multiply what runs "
            "along x by the width of the image, along y by its height"
        ]
    sides = xyxy[:, 2:] - xyxy[:, :2]
    if (sides <= 1).all() and (largest > 10 or largest == 0):
        return [
            f"none of {num} boxes is larger than 1 px: are width and height, or the far corner, "
            "written as they should be?"
        ]
    limit = np.where(sizes > 0, sizes, np.inf)[:, ::-1] + _TOLERANCE  # (M, 2) (w, h)
    leaving = (xyxy[:, 2:] > limit).any(axis=1)
    if leaving.mean() < _SOME:
        return []
    corners = (sides > xyxy[:, :2]).all(axis=1) & (sides <= limit).all(axis=1)
    if written_as_sides and corners.mean() >= _MOST:
        return [
            f"{leaving.sum()} of {num} boxes leave their image, and read as (x1, y1, x2, y2) "
            f"{corners.sum()} fit it: expected is [x, y, width, height]; subtract x1 and y1 from "
            "the third and fourth number"
        ]
    if leaving.mean() > 0.5:
        return [
            f"{leaving.sum()} of {num} boxes leave their image: are they in pixels of images of "
            "another size?"
        ]
    return []


def _of(rows: np.ndarray) -> str:
    """How many of `rows` (M,) bool are set, in words."""
    return f"all {len(rows)}" if rows.all() else f"{rows.sum()} of {len(rows)}"

"""Large pictures, tile by tile: where the tiles lie, and what was found in them put together.

Tiles overlap, so that most objects lie whole in one of them. An object that a tile's border cuts is
found in parts. Parts are one object where two views of the picture tell the same of what both of
them see; each side of its box then comes from a view that does not cut it there. V views, D
detections of all of them, (x1, y1, x2, y2) px of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from detres.boxes import nms, paired_iou
from detres.detection.choices import TILE_OVERLAP
from detres.detection.structures import Detections

Window = tuple[int, int, int, int]
"""A part of a picture: x1, y1, x2, y2 px."""

SMALLEST_TILE = 32
"""Px of a side."""

SAME_OBJECT = 0.5
"""From this IoU on, of what both views see of them, two detections of a class are one object."""

_NEAR = 0.01
"""Of a tile's side: a box that ends as near to its border is taken for cut by it, for models place
few edges to the pixel. It only says which view to ask for that edge; what is one object, it does
not decide.
"""


@dataclass(frozen=True)
class Tiling:
    """How a large picture is looked at: square tiles of `side` px at the picture's own resolution,
    which overlap by at least the fraction `overlap` of it, and, where `whole` is set, the whole
    picture too, resized as any other: it shows what is larger than a tile.

    Raises ValueError for a side below SMALLEST_TILE and an overlap not above 0 or above 0.9.
    """

    side: int
    overlap: float = TILE_OVERLAP
    whole: bool = True

    def __post_init__(self) -> None:
        if self.side < SMALLEST_TILE:
            raise ValueError(f"a tile of {self.side} px, expected {SMALLEST_TILE} or more")
        if not 0 < self.overlap <= 0.9:
            raise ValueError(
                f"tiles overlap by {self.overlap:g} of their side, expected above 0 (where they "
                "overlap, the parts of an object are told to be one) and at most 0.9"
            )

    def windows(self, size: tuple[int, int]) -> list[Window]:
        """Return the tiles of a picture of `size` (h, w) px, row by row; none where it is no larger
        than a tile, for then looking at it is enough.

        They cover it, lie in it and are of one size; all overlaps of an axis differ by a pixel at
        most.
        """
        if max(size) <= self.side:
            return []
        rows, columns = (self._spans(length) for length in size)
        return [(x1, y1, x2, y2) for y1, y2 in rows for x1, x2 in columns]

    def _spans(self, length: int) -> list[tuple[int, int]]:
        if length <= self.side:
            return [(0, length)]
        step = self.side - math.ceil(round(self.side * self.overlap, 6))
        gaps = math.ceil((length - self.side) / max(1, step))
        starts = [round(n * (length - self.side) / gaps) for n in range(gaps + 1)]
        return [(start, start + self.side) for start in starts]


@dataclass(frozen=True)
class View:
    """A window of a picture, and what was found in it: boxes in px of the window."""

    window: Window
    found: Detections


def merge_views(views: Sequence[View], size: tuple[int, int], nms_thresh: float) -> Detections:
    """Return what several views of one picture of `size` (h, w) px say together, best first, boxes
    in px of the picture.

    Detections of one object in several views become one, with the best of their scores; at most one
    of a view is of an object. Then NMS a class at the IoU `nms_thresh`. Memory is
    bounded by the views that overlap, not by all that was found. No views: none.
    """
    found = _Found.of(views, size)
    groups = _grouped(found)
    boxes = np.stack([found.whole_box(rows) for rows in groups]) if groups else np.zeros((0, 4))
    best = np.array([rows[0] for rows in groups], np.int64)
    order = np.argsort(-found.scores[best], kind="stable")
    best, merged = best[order], torch.from_numpy(boxes[order].astype(np.float32))
    scores, labels = torch.from_numpy(found.scores[best]), torch.from_numpy(found.labels[best])
    kept = [
        rows[nms(merged[rows], scores[rows], nms_thresh)]
        for label in labels.unique()
        for rows in [torch.nonzero(labels == label).flatten()]
    ]
    keep = torch.cat([torch.zeros(0, dtype=torch.int64), *kept]).sort().values
    return Detections(merged[keep], scores[keep], labels[keep])


@dataclass(frozen=True)
class _Found:
    """All detections of V views: boxes (D, 4) float64 px of the picture, cut (D, 4) bool, which
    sides the border of their view cuts; scores, labels, view (D,); offsets (V + 1,), the rows of
    each view.
    """

    windows: np.ndarray
    boxes: np.ndarray
    cut: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    view: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, views: Sequence[View], size: tuple[int, int]) -> _Found:
        height, width = size
        windows = np.array([view.window for view in views], np.float64).reshape(-1, 4)
        counts = [len(view.found) for view in views]
        row_of = np.repeat(np.arange(len(views)), counts)
        window = windows[row_of]  # (D, 4)
        boxes = np.concatenate(
            [np.zeros((0, 4)), *(view.found.boxes.double().numpy() for view in views)]
        )
        boxes = boxes + window[:, [0, 1, 0, 1]]
        near = _NEAR * (window[:, 2:] - window[:, :2]).max(axis=1, initial=0)[:, None]
        inside = window != np.array([0, 0, width, height])  # a border with picture beyond it
        return cls(
            windows=windows,
            boxes=boxes,
            cut=inside & (np.abs(boxes - window) <= near),
            scores=np.concatenate(
                [np.zeros(0, np.float32), *(view.found.scores.numpy() for view in views)]
            ),
            labels=np.concatenate(
                [np.zeros(0, np.int64), *(view.found.labels.numpy() for view in views)]
            ),
            view=row_of,
            offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        )

    def rows_of(self, view: int) -> np.ndarray:
        return np.arange(self.offsets[view], self.offsets[view + 1])

    def whole_box(self, rows: np.ndarray) -> np.ndarray:
        """The box (4,) of one object of which `rows`, best first, are views: each side by the best
        of those that do not cut it, else the outermost.
        """
        outermost = np.concatenate(
            (self.boxes[rows, :2].min(axis=0), self.boxes[rows, 2:].max(axis=0))
        )
        uncut = ~self.cut[rows]  # (R, 4)
        of_best = self.boxes[rows[uncut.argmax(axis=0)], range(4)]
        return np.where(uncut.any(axis=0), of_best, outermost)


def _grouped(found: _Found) -> list[np.ndarray]:
    """The rows of each object, best first: what agrees best is joined first, and never two of a
    view.
    """
    group_of = {row: [row] for row in range(len(found.scores))}
    views_of = {row: {int(view)} for row, view in enumerate(found.view)}
    parent = list(group_of)
    for row, other in _agreeing(found):
        mine, its = (_root(parent, each) for each in (row, other))
        if mine == its or views_of[mine] & views_of[its]:
            continue
        parent[its] = mine
        group_of[mine] += group_of.pop(its)
        views_of[mine] |= views_of.pop(its)
    return [
        np.array(sorted(rows, key=lambda row: (-found.scores[row], row)), np.int64)
        for rows in group_of.values()
    ]


def _root(parent: list[int], row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = parent[row]
    return row


def _agreeing(found: _Found) -> np.ndarray:
    """Pairs of rows (P, 2) of different views that tell the same of what both see, best first."""
    pairs, ious = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    for view, window in enumerate(found.windows):
        low = np.maximum(window[:2], found.windows[view + 1 :, :2])
        high = np.minimum(window[2:], found.windows[view + 1 :, 2:])
        for other in view + 1 + np.flatnonzero((low < high).all(axis=1)):
            both = np.concatenate((low[other - view - 1], high[other - view - 1]))
            rows, others = found.rows_of(view), found.rows_of(other)
            iou = paired_iou(
                _clipped(found.boxes[rows], both)[:, None], _clipped(found.boxes[others], both)
            )
            same = found.labels[rows][:, None] == found.labels[others]
            mine, its = np.nonzero(same & (iou >= SAME_OBJECT))
            pairs.append(np.stack((rows[mine], others[its]), axis=1))
            ious.append(iou[mine, its])
    return np.concatenate(pairs)[np.argsort(-np.concatenate(ious), kind="stable")]


def _clipped(boxes: np.ndarray, window: np.ndarray) -> np.ndarray:
    """Boxes (D, 4) cut to a window; those beyond it are left without area."""
    return np.clip(boxes, window[[0, 1, 0, 1]], window[[2, 3, 2, 3]])

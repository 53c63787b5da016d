"""A small picture of an image, with boxes that are seen whatever their size."""

from __future__ import annotations

import cv2
import numpy as np

_COLORS = ((230, 30, 40), (255, 205, 0))
"""RGB of the first box and of all others, whose thinner lines lie on it."""

_LINES = (3, 1)
_AROUND = 0.5
"""Of a side of the image that is shown beyond it, at most, where boxes leave it."""

_SMALL = 10
"""Px of a side on the thumbnail, below which a box is ringed."""

_GREY = 128


def thumbnail(image: np.ndarray, boxes: np.ndarray, side: int = 320) -> np.ndarray:
    """Return `image` (H, W, 3) uint8 RGB with boxes (B, 4) xyxy px on it, its longer side at most
    `side` px.

    Where boxes reach beyond the image, some grey around it is shown. A small box is ringed; of one
    whose numbers are not finite nothing is drawn. B may be 0.
    """
    boxes = boxes[np.isfinite(boxes).all(axis=1)]
    height, width = image.shape[:2]
    x, y = (_span(boxes[:, axis::2], extent) for axis, extent in ((0, width), (1, height)))
    scale = min(1.0, side / max(x[1] - x[0], y[1] - y[0]))
    canvas = np.full((*(_length(span, scale) for span in (y, x)), 3), _GREY, np.uint8)
    small = cv2.resize(
        image,
        (_length((0, width), scale), _length((0, height), scale)),
        interpolation=cv2.INTER_AREA,
    )
    top, left = round(-y[0] * scale), round(-x[0] * scale)
    shown = canvas[top : top + small.shape[0], left : left + small.shape[1]]
    shown[:] = small[: shown.shape[0], : shown.shape[1]]
    limits = 2.0 * max(canvas.shape)
    placed = (boxes - (x[0], y[0], x[0], y[0])) * scale
    for number, box in enumerate(np.clip(placed, -limits, limits).round().astype(int).tolist()):
        color, line = _COLORS[min(number, 1)], _LINES[min(number, 1)]
        cv2.rectangle(canvas, box[:2], box[2:], color, line)
        if max(abs(box[2] - box[0]), abs(box[3] - box[1])) < _SMALL:
            middle = ((box[0] + box[2]) // 2, (box[1] + box[3]) // 2)
            cv2.circle(canvas, middle, 2 * _SMALL - 4 * line, color, 2, cv2.LINE_AA)
    return canvas


def _span(ends: np.ndarray, extent: int) -> tuple[float, float]:
    """From where to where an axis of an image of `extent` px is shown, so that boxes with these
    ends (B, 2) are in it.
    """
    around = _AROUND * extent
    low = min(0.0, float(ends.min(initial=0)))
    high = max(float(extent), float(ends.max(initial=0)))
    return max(low, -around), min(high, extent + around)


def _length(span: tuple[float, float], scale: float) -> int:
    return max(1, round((span[1] - span[0]) * scale))

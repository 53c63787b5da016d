"""Pictures: boxes with names and scores drawn on images."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np


def class_color(label: int) -> tuple[int, int, int]:
    """Return the RGB colour 0..255 of a label; neighbouring labels get distant hues."""
    return tuple(
        round(255 * value) for value in colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.85, 1.0)
    )


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, labels: Sequence[int], captions: Sequence[str]
) -> np.ndarray:
    """Return a copy of `image` (H, W, 3) uint8 RGB with boxes (D, 4) xyxy px, coloured by label,
    and their captions.

    Given best first, the best is drawn last and stays on top. Lines and letters grow with the
    image; letters beyond ASCII, which OpenCV's font lacks, are shown as question marks.
    """
    image = image.copy()
    unit = max(1, round(min(image.shape[:2]) / 300))
    scale = 0.4 * unit
    for box, label, caption in reversed(list(zip(boxes, labels, captions, strict=True))):
        color = class_color(label)
        x1, y1, x2, y2 = (round(float(value)) for value in box)
        cv2.rectangle(image, (x1, y1), (x2, y2), color, unit)
        if not caption:
            continue
        caption = caption.encode("ascii", "replace").decode("ascii")
        (width, height), below = cv2.getTextSize(caption, cv2.FONT_HERSHEY_SIMPLEX, scale, unit)
        x = min(max(x1, 0), max(image.shape[1] - width, 0))
        y = y1 if y1 >= height + below else min(y1 + height + below, image.shape[0])
        cv2.rectangle(image, (x, y - height - below), (x + width, y), color, -1)
        dark = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2] > 140
        text_color = (0, 0, 0) if dark else (255, 255, 255)
        cv2.putText(
            image,
            caption,
            (x, y - below),
            cv2.FONT_HERSHEY_SIMPLEX,
            scale,
            text_color,
            unit,
            cv2.LINE_AA,
        )
    return image


def contact_sheet(images: Sequence[np.ndarray], *, columns: int, cell: int) -> np.ndarray:
    """Return images (H, W, 3) uint8 laid out in rows of `columns`, each fitted into a square of
    `cell` px on black.
    """
    rows = -(-len(images) // columns)
    sheet = np.zeros((rows * cell, columns * cell, 3), np.uint8)
    for number, image in enumerate(images):
        scale = cell / max(image.shape[:2])
        size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
        y, x = number // columns * cell, number % columns * cell
        sheet[y : y + size[1], x : x + size[0]] = cv2.resize(
            image, size, interpolation=cv2.INTER_AREA
        )
    return sheet

"""Pictures for the tests, and how far two of them are apart."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

# warpAffine up to OpenCV 4 places each source coordinate to 1/32 px, so at most 1/64 px off, after
# rounding the two terms of its sum to 1/1024 px. A value then moves by that times the step to the
# next pixel, along each axis.
SHIFT = 1 / 64 + 1 / 1024


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Noise that was blurred and stretched to 0..255: neighbours differ little."""
    blurred = cv2.GaussianBlur(noise(height, width, seed), (0, 0), 4).astype(np.float64)
    return np.rint((blurred - blurred.min()) / np.ptp(blurred) * 255).astype(np.uint8)


def steps_of(image: np.ndarray) -> float:
    """The largest step between neighbours in a row plus that in a column."""
    levels = image.astype(np.int64)
    return float(np.abs(np.diff(levels, axis=0)).max() + np.abs(np.diff(levels, axis=1)).max())


def off_by(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max())


def write_image(
    path: Path, color: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (3, 4)
) -> Path:
    """Write an image of (h, w) in one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size[1], size[0]), color).save(path)
    return path

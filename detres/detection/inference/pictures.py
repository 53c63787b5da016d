"""What was found, drawn into images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from detres.class_map import ClassMap
from detres.detection.structures import names_of
from detres.files import replacing

_LONGEST_JPEG = 65_500
"""Px of a side that libjpeg writes."""


class PictureError(ValueError):
    """A picture that cannot be drawn or written; the message names it."""


def captions_of(class_map: ClassMap, labels: np.ndarray, scores: np.ndarray) -> list[str]:
    """Return "NAME SCORE" for detections with labels (D,) int64 1..K and scores (D,)."""
    names = names_of(class_map, labels)
    return [f"{name} {score:.2f}" for name, score in zip(names, scores.tolist(), strict=True)]


def write_picture(path: Path, image: np.ndarray, source: Path | None = None) -> None:
    """Write `image` (H, W, 3) uint8 RGB as a JPEG or PNG file, by the suffix of its name, in one
    step.

    source: a file that must stay as it is. Raises PictureError for another suffix, for `source`
    itself, and as `write_jpeg` does.
    """
    if source is not None and path.exists() and source.exists() and path.samefile(source):
        raise PictureError(f"{path} is the image itself, which is left as it is: give another name")
    suffix = path.suffix.lower()
    if suffix in (".jpg", ".jpeg"):
        write_jpeg(path, image)
    elif suffix == ".png":
        with replacing(path) as temporary:
            temporary.write_bytes(cv2.imencode(".png", image[:, :, ::-1])[1].tobytes())
    else:
        raise PictureError(f"{path}: pictures are written as .jpg or .png")


def write_jpeg(path: Path, image: np.ndarray) -> None:
    """Write `image` (H, W, 3) uint8 RGB as a JPEG file, in one step; raises PictureError for one
    with a side beyond what JPEG holds.
    """
    height, width = image.shape[:2]
    if max(height, width) > _LONGEST_JPEG:
        raise PictureError(
            f"{path}: {width}x{height} px, and a JPEG file holds sides of {_LONGEST_JPEG} px at "
            "most"
        )
    with replacing(path) as temporary:
        temporary.write_bytes(cv2.imencode(".jpg", image[:, :, ::-1])[1].tobytes())

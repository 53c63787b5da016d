"""What was found, drawn into images."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from detres.class_map import ClassMap
from detres.detection.annotations import Annotations
from detres.detection.structures import Predictions, names_of
from detres.files import replacing
from detres.images.decode import read_image
from detres.images.draw import contact_sheet, draw_boxes

_LONGEST_JPEG = 65_500
"""Px of a side that libjpeg writes."""

SHEET_IMAGES = 12
SHEET_SCORE = 0.5
"""Of the lowest detection on a sheet."""


class PictureError(ValueError):
    """A picture that cannot be drawn or written; the message names it."""


def captions_of(class_map: ClassMap, labels: np.ndarray, scores: np.ndarray) -> list[str]:
    """Return "NAME SCORE" for detections with labels (D,) int64 1..K and scores (D,)."""
    names = names_of(class_map, labels)
    return [f"{name} {score:.2f}" for name, score in zip(names, scores.tolist(), strict=True)]


def write_sheet(path: Path, truth: Annotations, predictions: Predictions) -> None:
    """Draw what was found in the first images of `truth` into one JPEG file.

    Raises ImageReadError naming an image that cannot be read.
    """
    images = []
    for index in range(min(SHEET_IMAGES, len(truth))):
        height, width = truth.image_sizes[index].tolist()
        image = read_image(str(truth.image_files[index]), stated_size=(height, width))
        own = predictions.image_ids == truth.image_ids[index]
        rows = np.flatnonzero(own & (predictions.scores >= SHEET_SCORE))
        rows = rows[np.argsort(-predictions.scores[rows])]
        labels = predictions.labels[rows]
        captions = captions_of(truth.class_map, labels, predictions.scores[rows])
        images.append(draw_boxes(image, predictions.boxes[rows], labels.tolist(), captions))
    write_jpeg(path, contact_sheet(images, columns=4, cell=384))


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

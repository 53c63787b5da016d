"""Annotated objects as images of their own: a classification set out of any detection set."""

from __future__ import annotations

import numpy as np

from detres.detection.annotations import Annotations
from detres.images.decode import read_image
from detres.images.resize import resize_image
from detres.images.source import ImageArrays
from detres.waiting import counted

MARGIN = 0.1
"""Of the larger side of a box, kept around the object."""


def crop_objects(annotations: Annotations, crop_side: int) -> ImageArrays:
    """Cut out every object that is neither crowd nor difficult: a square about its box with a
    margin, as `crop_side` x `crop_side` px.

    The square is shifted into the image where it sticks out, and shrunk where it does not fit.
    Raises ValueError when no object is left, ImageReadError naming a damaged file.
    """
    keep = ~(annotations.crowd | annotations.difficult)
    crops, labels = [], []
    for index in counted(range(len(annotations)), "cutting out objects", "images"):
        rows = np.arange(annotations.offsets[index], annotations.offsets[index + 1])
        rows = rows[keep[rows]]
        if not len(rows):
            continue
        height, width = annotations.image_sizes[index].tolist()
        image = read_image(str(annotations.image_files[index]), (height, width))
        for row in rows:
            square = _square(image, annotations.boxes[row])
            crops.append(resize_image(square, (crop_side, crop_side)))
            labels.append(annotations.class_indices[row])
    if not crops:
        raise ValueError(f"{annotations.source}: no object to cut out")
    return ImageArrays(
        f"objects of {annotations.source}",
        annotations.class_map,
        np.stack(crops),
        np.array(labels, dtype=np.int64),
    )


def _square(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """The part of `image` (H, W, 3) in the square about a box xyxy px."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = box.astype(np.float64)
    side = round(max(x2 - x1, y2 - y1) * (1 + 2 * MARGIN))
    side = max(1, min(side, height, width))
    left = int(np.clip(round((x1 + x2 - side) / 2), 0, width - side))
    top = int(np.clip(round((y1 + y2 - side) / 2), 0, height - side))
    return image[top : top + side, left : left + side]

"""Annotated images that exist on no disk: boxes, and the sizes of the images they are in."""

from __future__ import annotations

import numpy as np

from detres.class_map import ClassMap
from detres.detection.annotations import Annotations, offsets_of


def annotated(
    sizes: list[tuple[int, int]],
    boxes: list[tuple[int, float, float, float, float]],
    *,
    names: tuple[str, ...] = ("thing",),
) -> Annotations:
    """Return images of (h, w) px with boxes (image, x1, y1, x2, y2), in rising order of images, all
    of the first class.
    """
    rows = np.array([box[0] for box in boxes], np.int64)
    corners = np.array([box[1:] for box in boxes], np.float64).reshape(-1, 4)
    number = len(boxes)
    return Annotations(
        source="nowhere",
        class_map=ClassMap.of_names(names),
        image_ids=np.arange(1, len(sizes) + 1),
        image_files=np.array([f"/nowhere/{row}.jpg" for row in range(len(sizes))]),
        image_sizes=np.array(sizes, np.int32).reshape(-1, 2),
        offsets=offsets_of(rows, len(sizes)),
        boxes=corners,
        labels=np.ones(number, np.int64),
        areas=(corners[:, 2:] - corners[:, :2]).prod(axis=1),
        crowd=np.zeros(number, bool),
        difficult=np.zeros(number, bool),
        ids=np.arange(1, number + 1),
        dropped={},
    )


def many(
    number: int,
    side: float,
    image: tuple[int, int] = (480, 640),
    *,
    per_image: int = 4,
    seed: int = 0,
) -> Annotations:
    """Return about `number` boxes of about `side` px, at random places of images of one size."""
    rng = np.random.default_rng(seed)
    num_images = -(-number // per_image)
    boxes = []
    for row in range(num_images):
        for _ in range(per_image):
            w, h = side * rng.uniform(0.8, 1.25, 2)
            x, y = rng.uniform(0, image[1] - w), rng.uniform(0, image[0] - h)
            boxes.append((row, x, y, x + w, y + h))
    return annotated([image] * num_images, boxes)

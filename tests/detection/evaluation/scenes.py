"""Small data sets and predictions written as lists, for the tests of evaluation."""

from __future__ import annotations

import numpy as np

from detres.class_map import ClassMap
from detres.detection.annotations import Annotations
from detres.detection.structures import Predictions

TWO = ClassMap(names=("cat", "dog"), source_ids=(5, 17))


def truth_of(
    objects: list[tuple],
    image_ids: list,
    class_map: ClassMap = TWO,
    *,
    size: tuple[int, int] = (200, 200),
) -> Annotations:
    """objects: (image id, label, (x1, y1, x2, y2)) and, where set, "crowd" or "difficult"."""
    rows = sorted(objects, key=lambda item: image_ids.index(item[0]))
    boxes = np.array([row[2] for row in rows], np.float64).reshape(-1, 4)
    counts = [sum(row[0] == image_id for row in rows) for image_id in image_ids]
    return Annotations(
        source="truth",
        class_map=class_map,
        image_ids=np.array(image_ids),
        image_files=np.array([f"{image_id}.jpg" for image_id in image_ids], dtype=str),
        image_sizes=np.array([size] * len(image_ids), np.int32).reshape(-1, 2),
        offsets=np.cumsum([0, *counts]).astype(np.int64),
        boxes=boxes,
        labels=np.array([row[1] for row in rows], np.int64),
        areas=(boxes[:, 2:] - boxes[:, :2]).prod(axis=1),
        crowd=np.array(["crowd" in row[3:] for row in rows], bool),
        difficult=np.array(["difficult" in row[3:] for row in rows], bool),
        ids=np.arange(1, len(rows) + 1),
        dropped={},
    )


def predictions_of(rows: list[tuple], class_map: ClassMap = TWO) -> Predictions:
    """rows: (image id, label, score, (x1, y1, x2, y2))."""
    return Predictions(
        class_map=class_map,
        image_ids=np.array([row[0] for row in rows]),
        boxes=np.array([row[3] for row in rows], np.float32).reshape(-1, 4),
        scores=np.array([row[2] for row in rows], np.float32),
        labels=np.array([row[1] for row in rows], np.int64),
    )


def random_scene(
    seed: int, *, num_images: int = 12, num_objects: int = 40, num_found: int = 150
) -> tuple[Annotations, Predictions]:
    """Return truth with crowd and difficult objects and jittered, repeated, misnamed and stray
    predictions; coarse scores, so ties.
    """
    rng = np.random.default_rng(seed)
    images = rng.permutation(np.arange(100, 100 + num_images)).tolist()
    corners = rng.integers(0, 150, (num_objects, 2))
    boxes = np.concatenate(
        (corners, corners + rng.integers(5, 120, (num_objects, 2))), axis=1
    ).astype(float)
    owners, labels = rng.choice(images, num_objects), rng.integers(1, 3, num_objects)
    flags = rng.choice(["", "crowd", "difficult"], num_objects, p=[0.8, 0.1, 0.1])
    objects = [
        (int(owners[m]), int(labels[m]), tuple(boxes[m]), flags[m]) for m in range(num_objects)
    ]
    found = []
    for _ in range(num_found):
        m = rng.integers(num_objects)
        box = boxes[m] + rng.integers(-8, 9, 4)
        box[2:] = np.maximum(box[2:], box[:2] + 1)
        image = owners[m] if rng.random() < 0.8 else rng.choice(images)
        label = labels[m] if rng.random() < 0.8 else 3 - labels[m]
        found.append((int(image), int(label), round(rng.random(), 1), tuple(box)))
    return truth_of(objects, images), predictions_of(found)

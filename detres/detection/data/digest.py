"""What is learned from, in 16 characters: the same for the same data in whatever format."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from detres.detection.annotations import Annotations
from detres.images.decode import read_size

_STEP = 0.1
"""Px to which coordinates are rounded."""

_EDGE = 0.055
"""Px, modulo _STEP: where rounding goes up. It lies between the hundredths and halves of a pixel
that files have, 0.005 from the nearest, so that the last of YOLO's six decimals (0.0005 px in an
image of 640 px) and the like do not matter.
"""


def training_digest(annotations: Annotations) -> str:
    """Return 16 hexadecimal digits that tell data to learn from apart: the names and sizes of the
    images, in any order, and the class and box of every object that is learned from (neither crowd
    nor difficult), in any order, boxes to 0.1 px.

    Folders, ids and areas do not count, nor classes without object. A size that the annotations do
    not give is read from the image. No images: the digest of none.
    """
    files = annotations.image_files.tolist()
    names = [Path(file).name for file in files]
    by_name = sorted(range(len(files)), key=lambda row: (names[row], files[row]))
    place = np.empty(len(files), np.int64)
    place[by_name] = np.arange(len(files))
    sizes = annotations.image_sizes.astype(np.int64)
    for row in np.flatnonzero((sizes <= 0).any(axis=1)):
        sizes[row] = read_size(files[row])

    learned = ~(annotations.crowd | annotations.difficult)
    owners = np.repeat(np.arange(len(files)), np.diff(annotations.offsets))[learned]
    classes = [annotations.class_map.names[index] for index in annotations.class_indices[learned]]
    used = sorted(set(classes))
    number = {name: index for index, name in enumerate(used)}
    rounded = np.floor((annotations.boxes[learned] - _EDGE) / _STEP).astype(np.int64)
    objects = np.column_stack(
        (place[owners], np.array([number[name] for name in classes], np.int64), rounded)
    )
    objects = objects[np.lexsort(objects.T[::-1])]

    digest = hashlib.blake2b(digest_size=8)
    for part in (
        "\n".join(names[row] for row in by_name).encode("utf-8", "surrogatepass"),
        sizes[by_name].astype("<i8").tobytes(),
        "\n".join(used).encode("utf-8", "surrogatepass"),
        objects.astype("<i8").tobytes(),
    ):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()

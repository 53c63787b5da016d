"""Boxes that are wrong or doubtful, one by one: a Finding a kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from detres.detection.data.box_checks import (
    NEARLY_THE_SAME,
    are_equal,
    doubled_boxes,
    training_scales,
)
from detres.detection.data.findings import Example, Finding, Kind, Part, Shown, numbers
from detres.detection.structures import Scale

TINY = 8.0
"""Px at the training scale, half a cell of the map that a detector sees: a box with a shorter side
is tiny.
"""

DOUBTFUL = Kind(
    "doubtful_boxes",
    "error",
    "splits whose boxes seem to mean something else",
    "Correct the annotations: as they are, training learns nothing from them.",
)
_BY_NUMBERS = (
    Kind(
        "not_finite",
        "error",
        "boxes with a number that is not finite",
        "Correct or delete them; training leaves them out.",
    ),
    Kind(
        "swapped_corners",
        "error",
        "boxes whose corners are swapped (x2 < x1 or y2 < y1)",
        "Put the smaller number first: training leaves them out as they are.",
    ),
    Kind(
        "without_area",
        "error",
        "boxes without area",
        "Draw them anew or delete them; training leaves them out.",
    ),
    Kind(
        "exchanged_axes",
        "error",
        "boxes that leave their image, and fit into it with x and y exchanged",
        "Look whether x and y, or width and height, were exchanged when they were written.",
    ),
    Kind(
        "outside",
        "error",
        "boxes wholly outside their image",
        "Correct or delete them; training leaves them out. Boxes of another picture, or of one of "
        "another size?",
    ),
    Kind(
        "leaving",
        "warning",
        "boxes that reach beyond their image by more than 1 px",
        "Training clips them to the image. Many of them: are the boxes those of these images?",
    ),
)
"""A kind for each fault of BoxFaults, of the same name."""

_EXPLAINED = ("exchanged_axes", "outside", "leaving")
"""Faults that follow where all boxes mean something else."""

DUPLICATES = Kind(
    "duplicate_boxes",
    "error",
    "boxes that are there twice, with the same class",
    "Delete one of the two: a detector that finds the object once is counted wrong for the other.",
)
NEAR_DUPLICATES = Kind(
    "near_duplicate_boxes",
    "warning",
    f"boxes of the same class that are nearly the same (IoU of {NEARLY_THE_SAME} and more)",
    "Look whether one object was drawn twice, and delete one of the two.",
)
TWO_CLASSES = Kind(
    "two_classes",
    "warning",
    "boxes with two classes",
    "Decide on one class, unless an object of both is meant.",
)
TINY_BOXES = Kind(
    "tiny_boxes",
    "note",
    f"boxes with a side under {TINY:g} px at the training scale",
    "Such objects are hardly learnt: train at a larger short side, or on crops of the images.",
)


def faulty_boxes(parts: Sequence[Part]) -> list[Finding]:
    """Return what is wrong with boxes by their own numbers and the size of their image."""
    found = []
    for kind in _BY_NUMBERS:
        rows = [
            np.flatnonzero(getattr(part.faults, kind.name))
            if not (part.doubts and kind.name in _EXPLAINED)
            else np.zeros(0, np.int64)
            for part in parts
        ]
        found += kind.in_parts(parts, rows, _box_example)
    return found


def doubtful_boxes(parts: Sequence[Part]) -> list[Finding]:
    """Return what all boxes of a split together seem to mean instead."""
    examples = [
        Example(part.name, doubt, (_first_picture(part),))
        for part in parts
        for doubt in part.doubts
    ]
    return DOUBTFUL.of(len(examples), examples)


def _first_picture(part: Part) -> Shown:
    image = int(part.images[0])
    return part.shown(image, np.flatnonzero(part.images == image).tolist())


def doubled(parts: Sequence[Part]) -> list[Finding]:
    """Return the boxes that are in an image twice, exactly or nearly; crowds are not looked at."""
    equal, near, two_classes = [], [], []
    for part in parts:
        rows = np.flatnonzero(part.faults.usable & ~part.annotations.crowd)
        boxes = part.annotations.boxes
        pairs = rows[doubled_boxes(boxes[rows], part.images[rows], NEARLY_THE_SAME)]
        labels = part.annotations.labels
        same_class = labels[pairs[:, 0]] == labels[pairs[:, 1]]
        same_box = are_equal(boxes, pairs)
        equal.append(_once(pairs[same_class & same_box]))
        near.append(_once(pairs[same_class & ~same_box]))
        two_classes.append(_once(pairs[~same_class & same_box]))
    return [
        *DUPLICATES.in_parts(parts, equal, _pair_example),
        *NEAR_DUPLICATES.in_parts(parts, near, _pair_example),
        *TWO_CLASSES.in_parts(parts, two_classes, _pair_example),
    ]


def _once(pairs: np.ndarray) -> np.ndarray:
    """The first of the pairs (P, 2) of every box that is the later one of some."""
    _, first = np.unique(pairs[:, 1], return_index=True)
    return pairs[np.sort(first)]


def tiny_boxes(parts: Sequence[Part], scale: Scale) -> list[Finding]:
    """Return the boxes that are too small to be learnt at the training `scale`."""
    scales = [training_scales(part.sizes, *scale)[part.images] for part in parts]
    rows = []
    for part, of_boxes in zip(parts, scales, strict=True):
        sides = part.annotations.boxes[:, 2:] - part.annotations.boxes[:, :2]
        with np.errstate(invalid="ignore"):  # NaN where a size is not known
            tiny = (sides.min(axis=1) * of_boxes < TINY) & part.faults.usable & part.learnt
        rows.append(np.flatnonzero(tiny) if not part.doubts else np.zeros(0, np.int64))

    def example(part: Part, row: int) -> Example:
        width, height = (part.annotations.boxes[row, 2:] - part.annotations.boxes[row, :2]).tolist()
        by = training_scales(part.sizes[part.images[row]][None], *scale)[0]
        what = (
            f"{width:.3g}x{height:.3g} px, {width * by:.3g}x{height * by:.3g} at the training scale"
        )
        return replace(_box_example(part, row), what=what)

    learnt = max(sum(int(part.learnt.sum()) for part in parts), 1)
    share = sum(map(len, rows)) / learnt
    title = f"{TINY_BOXES.title} (short side {scale[0]} px), {share:.1%} of those to learn from"
    return TINY_BOXES.in_parts(parts, rows, example, title)


def _box_example(part: Part, row: int) -> Example:
    box = numbers(part.annotations.boxes[row])
    image = int(part.images[row])
    height, width = part.sizes[image].tolist()
    size = f" in {width}x{height} px" if height else ""
    return Example(part.record(row), f"box {box}{size}", (part.shown(image, [int(row)]),))


def _pair_example(part: Part, pair: np.ndarray) -> Example:
    first, second = pair.tolist()
    boxes, image = part.annotations.boxes, int(part.images[second])
    what = f"box {numbers(boxes[second])}; {numbers(boxes[first])} is {part.name_of(first)}"
    return Example(part.record(second), what, (part.shown(image, [first, second]),))

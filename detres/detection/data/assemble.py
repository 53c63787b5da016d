"""Images and the objects labelled in them, as the readers of files an image, and of CSV, have them
-> Annotations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from detres.class_map import ClassMap
from detres.detection.annotations import Annotations, offsets_of
from detres.detection.data.box_policy import OTHER_CLASS, BoxPolicy, apply_box_policy
from detres.detection.data.doubts import doubts
from detres.detection.structures import label_of


@dataclass(frozen=True)
class Labelled:
    """N images and the M objects labelled in them.

    source: where they were read from, for messages. ids: (N,) str. files: N image files. sizes: (N,
    2) int32 (h, w) px, 0 where they are not known. rows: (M,) int64, the image of each object,
    rising. names: M class names. boxes: (M, 4) float64 xyxy px, continuous. written: the same as
    the files have them, in px. describe_row: what a message says of an object. difficult: (M,)
    bool. notes: what is to be said. told_apart: as Annotations have it.
    """

    source: str
    ids: np.ndarray
    files: Sequence[str]
    sizes: np.ndarray
    rows: np.ndarray
    names: Sequence[str]
    boxes: np.ndarray
    written: np.ndarray
    describe_row: Callable[[int], str]
    difficult: np.ndarray
    notes: Sequence[str] = ()
    told_apart: bool = False


def assembled(
    labelled: Labelled, class_map: ClassMap, index_of_name: dict[str, int], box_policy: BoxPolicy
) -> Annotations:
    """Return the data set; objects whose name is not in `index_of_name` are left out and counted.

    index_of_name: the name in the files -> index in `class_map`. box_policy: see apply_box_policy,
    whose error is raised.
    """
    known = np.array([name in index_of_name for name in labelled.names], bool)
    wanted = np.flatnonzero(known)
    rows = labelled.rows[wanted]
    sizes = labelled.sizes[rows]
    doubtful = doubts(labelled.written[wanted], sizes, written_as_sides=False)
    boxes, keep, dropped, said = apply_box_policy(
        labelled.boxes[wanted],
        sizes,
        box_policy,
        lambda row: labelled.describe_row(int(wanted[row])),
    )
    indices = np.array([index_of_name[labelled.names[row]] for row in wanted], np.int64)[keep]
    boxes = boxes[keep]
    others = len(known) - len(wanted)
    return Annotations(
        source=labelled.source,
        class_map=class_map,
        image_ids=labelled.ids,
        image_files=np.array(labelled.files, dtype=str),
        image_sizes=labelled.sizes,
        offsets=offsets_of(rows[keep], len(labelled.ids)),
        boxes=boxes,
        labels=label_of(indices),
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        crowd=np.zeros(len(boxes), bool),
        difficult=labelled.difficult[wanted][keep],
        ids=np.arange(1, len(boxes) + 1),
        dropped=({OTHER_CLASS: others} if others else {}) | dropped,
        notes=(*labelled.notes, *(f"{labelled.source}: {doubt}" for doubt in doubtful), *said),
        told_apart=labelled.told_apart,
    )

"""Which detections found which objects: what every protocol's numbers are counted from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from detres.detection.annotations import Annotations
from detres.detection.structures import Predictions, index_of

Match = Callable[..., tuple[np.ndarray, np.ndarray]]
"""(gt_boxes, gt_owners, ignored, boxes, owners) -> (objects, counted), as `match_voc` has them."""

NONE = -1
"""In place of the row of an object: none was found."""


@dataclass(frozen=True)
class Matches:
    """Which of M objects each of D detections found, every class by itself, by a protocol's rule.

    order: (D,) int64, the detections in falling score, ties as the protocol breaks them. objects:
    (D,) int64, the row in the annotations of the object that each found, NONE where it found none.
    counted: (D,) bool; one that is not counted, on an ignored object or beyond those that the
    protocol looks at, is neither right nor wrong, and one that is counted and found none is wrong.
    ignored: (M,) bool, objects that need not be found. iou_threshs: (M,) float64, the overlap from
    which each is found. Of a detection it only matters what stands before it in `order`, so that
    those from any score on have the same matches without the rest.
    """

    order: np.ndarray
    objects: np.ndarray
    counted: np.ndarray
    ignored: np.ndarray
    iou_threshs: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """(D,) bool: whether each detection is right."""
        return self.objects != NONE

    def by_class(self, predictions: Predictions) -> list[np.ndarray]:
        """Return of each of K classes the rows (D',) of its counted detections, in `order`."""
        rows = self.order[self.counted[self.order]]
        return divided_by_class(rows, predictions.labels, len(predictions.class_map))


def match_by_class(
    truth: Annotations,
    predictions: Predictions,
    match: Match,
    iou_threshs: np.ndarray,
    *,
    shrink: np.ndarray | float = 0.0,
) -> Matches:
    """Return the matches of a rule that breaks ties in score by the order given.

    match: says of the detections of one class, in falling score, which of its objects each found
    and which count. iou_threshs: (M,), those that it matches by. shrink: (4,) px, taken off all
    boxes. Raises what Annotations.rows_of raises.
    """
    owners = truth.rows_of(predictions)
    gt_owners = owners_of(truth)
    gt_boxes, boxes = truth.boxes - shrink, predictions.boxes.astype(np.float64) - shrink
    ignored = truth.crowd | truth.difficult
    objects = np.full(len(predictions), NONE)
    counted = np.ones(len(predictions), bool)
    order = np.argsort(-predictions.scores, kind="stable")
    num_classes = len(truth.class_map)
    gt_of = divided_by_class(np.arange(truth.num_objects), truth.labels, num_classes)
    rows_of = divided_by_class(order, predictions.labels, num_classes)
    for gt, rows in zip(gt_of, rows_of, strict=True):
        own, counted[rows] = match(
            gt_boxes[gt], gt_owners[gt], ignored[gt], boxes[rows], owners[rows]
        )
        found = own != NONE
        objects[rows[found]] = gt[own[found]]
    return Matches(order, objects, counted, ignored, iou_threshs)


def divided_by_class(rows: np.ndarray, labels: np.ndarray, num_classes: int) -> list[np.ndarray]:
    """Return of `rows` (R,) those of each of K classes, in the order given.

    labels: (D,) int64 1..K, of what the rows are of. R and K may be 0.
    """
    indices = index_of(labels[rows])
    by_class = np.argsort(indices, kind="stable")
    ends = np.cumsum(np.bincount(indices, minlength=num_classes))
    return np.split(rows[by_class], ends)[:num_classes]


def owners_of(truth: Annotations) -> np.ndarray:
    """Return (M,) int64, the row of the image that each object is in."""
    return np.repeat(np.arange(len(truth)), np.diff(truth.offsets))


def pairs_of(gt_owners: np.ndarray, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return every pair of a detection and a ground-truth box of its image: rows of detections (P,)
    in rising order, rows of boxes (P,).

    gt_owners (M,), owners (D,): the image of each. P may be 0.
    """
    by_image = np.argsort(gt_owners, kind="stable")
    first = np.searchsorted(gt_owners[by_image], owners, side="left")
    counts = np.searchsorted(gt_owners[by_image], owners, side="right") - first
    detection = np.repeat(np.arange(len(owners)), counts)
    starts = np.cumsum(counts) - counts
    return detection, by_image[np.arange(len(detection)) - np.repeat(starts - first, counts)]


def recall_and_precision(found: np.ndarray, num_objects: int) -> tuple[np.ndarray, np.ndarray]:
    """Return recall (D,) and precision (D,) after each of D counted detections in falling score,
    of which `found` (D,) bool are right; recall 0 where there is no object.
    """
    hits = np.cumsum(found)
    return hits / max(num_objects, 1), hits / np.arange(1, len(hits) + 1)

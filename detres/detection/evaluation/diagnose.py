"""Why is the AP zero, or not a number at all: likely causes, told from the data."""

from __future__ import annotations

import numpy as np

from detres.boxes import paired_iou
from detres.detection.annotations import Annotations
from detres.detection.structures import Predictions, names_of

LOW = 0.05
"""Below this, causes with evidence in the data are told: boxes read the wrong way still reach 0.01
by those at the image corner.
"""

NOTHING = 1e-3
"""Below this there is always an explanation, if only that nothing fits."""

_SAMPLE = 2000
"""Detections looked at, best first: enough to tell a pattern, quick on millions."""


def explain(truth: Annotations, predictions: Predictions, metric: float | None) -> list[str]:
    """Return likely causes of a low `metric` (AP or mAP), most certain first.

    Below 0.001, or None, there is always one; below 0.05 only what the data show; for a higher one
    nothing.
    """
    if metric is not None and metric >= LOW:
        return []
    if cause := _nothing_to_match(truth, predictions):
        return [cause]
    rows = np.argsort(-predictions.scores, kind="stable")[:_SAMPLE]
    boxes, labels = predictions.boxes[rows].astype(np.float64), predictions.labels[rows]
    owners = predictions.image_ids[rows]
    best, matched = _best_overlap(truth, owners, boxes)
    here = (best >= 0.5).mean()
    causes = []
    if boxes.max() <= 1.5:
        causes.append(
            "all box coordinates are at most 1.5: they look like fractions of the image, expected "
            "are pixels"
        )
    for reading, other in _readings(boxes).items():
        there = (_best_overlap(truth, owners, other)[0] >= 0.5).mean()
        if there > max(2 * here, 0.1):
            causes.append(
                f"perhaps {reading}: read that way, {there:.0%} of the detections overlap an "
                f"object by half, now {here:.0%}"
            )
    if here > 0.3:
        causes += _wrong_classes(truth, truth.labels[matched[best >= 0.5]], labels[best >= 0.5])
    outside = _outside(truth, owners, boxes)
    if outside > 0.5:
        causes.append(
            f"{outside:.0%} of the boxes lie outside their images: are they in the pixels of "
            "resized images?"
        )
    if not causes and (metric is None or metric < NOTHING):
        causes.append(
            f"only {here:.1%} of the best {len(rows)} detections overlap an object by half: an "
            "untrained model, or one trained on something else"
        )
    return causes


def _nothing_to_match(truth: Annotations, predictions: Predictions) -> str | None:
    """Why no detection can be right, whatever its box; None where some can."""
    counted = ~(truth.crowd | truth.difficult)
    if truth.num_objects == 0:
        return (
            f"{truth.source} has no objects in its {len(truth)} images, so there is nothing to "
            "measure"
        )
    if not counted.any():
        return (
            f"all {truth.num_objects} objects of {truth.source} are crowd or difficult, so there "
            "is nothing to measure"
        )
    if len(predictions) == 0:
        return (
            "there are no detections at all: the model finds nothing above its score threshold, or "
            "the file is empty"
        )
    if not set(truth.image_ids.tolist()) & set(predictions.image_ids.tolist()):
        return (
            f"no detection is for an image of {truth.source}: its ids are like "
            f"{truth.image_ids[:3].tolist()}, theirs {predictions.image_ids[:3].tolist()}"
        )
    if not set(truth.labels.tolist()) & set(predictions.labels.tolist()):
        return (
            "no class has both objects and detections: objects are of "
            f"{_names(truth, truth.labels)}, detections of {_names(truth, predictions.labels)}"
        )
    return None


def _readings(boxes: np.ndarray) -> dict[str, np.ndarray]:
    """What boxes (D, 4) may have been meant as -> the boxes (D, 4) that they then are."""
    corners, sides = boxes[:, :2], boxes[:, 2:]
    return {
        "the boxes were written as (x1, y1, x2, y2) where [x, y, width, height] is "
        "expected": np.concatenate((corners, sides - corners), axis=1),
        "the boxes were written as [x, y, width, height] where (x1, y1, x2, y2) is "
        "expected": np.concatenate((corners, corners + sides), axis=1),
        "x and y are exchanged": boxes[:, [1, 0, 3, 2]],
    }


def _wrong_classes(truth: Annotations, actual: np.ndarray, called: np.ndarray) -> list[str]:
    """What is wrong with the labels `called` (D,) of objects whose labels are `actual` (D,)."""
    shift = actual - called
    values, counts = np.unique(shift, return_counts=True)
    common = int(values[counts.argmax()])
    if common != 0 and counts.max() > 0.5 * len(shift):
        return [
            f"the boxes are right but the classes are not: most labels are off by {common:+d}, as "
            "when background is counted"
        ]
    if (shift != 0).mean() <= 0.5:
        return []
    pairs = np.stack((actual, called), axis=1)[shift != 0]  # (D', 2)
    pairs, counts = np.unique(pairs, axis=0, return_counts=True)
    own, other = names_of(truth.class_map, pairs[counts.argmax()])
    return [
        f"the boxes are right but most classes are wrong (often '{own}' is called '{other}'): are "
        "the class ids those of this data set?"
    ]


def _best_overlap(
    truth: Annotations, owners: np.ndarray, boxes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the IoU (D,) of each detection with the object it overlaps most, whatever its class,
    and that object's row.
    """
    index_of = {image_id: index for index, image_id in enumerate(truth.image_ids.tolist())}
    best, matched = np.zeros(len(boxes)), np.zeros(len(boxes), np.int64)
    for d, (owner, box) in enumerate(zip(owners.tolist(), boxes, strict=True)):
        if owner not in index_of:
            continue
        start, end = truth.offsets[index_of[owner]], truth.offsets[index_of[owner] + 1]
        if start == end:
            continue
        others = truth.boxes[start:end].astype(np.float64)
        iou = paired_iou(box, others)
        best[d], matched[d] = iou.max(), start + iou.argmax()
    return best, matched


def _outside(truth: Annotations, owners: np.ndarray, boxes: np.ndarray) -> float:
    """Return the share of detections that lie, by more than a pixel, beyond their image (of those
    whose size is known).
    """
    size_of = dict(zip(truth.image_ids.tolist(), truth.image_sizes.tolist(), strict=True))
    sizes = np.array([size_of.get(owner, (0, 0)) for owner in owners.tolist()])
    known = (sizes > 0).all(axis=1)
    beyond = (boxes[:, 0] > sizes[:, 1] + 1) | (boxes[:, 1] > sizes[:, 0] + 1)
    return float(beyond[known].mean()) if known.any() else 0.0


def _names(truth: Annotations, labels: np.ndarray) -> str:
    names = names_of(truth.class_map, np.unique(labels))
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")

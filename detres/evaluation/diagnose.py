"""Why is the AP zero, or not a number at all: likely causes, told from the data."""

from __future__ import annotations

import numpy as np

from detres.structures import Annotations, Predictions

LOW = 0.05
"""Below this, causes with evidence in the data are told: boxes read the wrong way still score 0.01
by those at the image corner.
"""

NOTHING = 1e-3
"""Below this there is always an explanation, if only that nothing fits."""

_SAMPLE = 2000
"""Detections looked at, best first: enough to tell a pattern, quick on millions."""


def explain(truth: Annotations, predictions: Predictions, score: float | None) -> list[str]:
    """Return likely causes of a low `score` (AP or mAP), most certain first.

    Below 0.001, or None, there is always one; below 0.05 only what the data show; for a higher
    score nothing.
    """
    if score is not None and score >= LOW:
        return []
    counted = ~(truth.crowd | truth.difficult)
    if truth.num_objects == 0:
        return [
            f"{truth.source} has no objects in its {len(truth)} images, so there is nothing to "
            "measure"
        ]
    if not counted.any():
        return [
            f"all {truth.num_objects} objects of {truth.source} are crowd or difficult, so there "
            "is nothing to measure"
        ]
    if len(predictions) == 0:
        return [
            "there are no detections at all: the model finds nothing above its score threshold, "
            "or the file is empty"
        ]
    causes = []
    images = set(truth.image_ids.tolist()) & set(predictions.image_ids.tolist())
    if not images:
        return [
            f"no detection is for an image of {truth.source}: its ids are like "
            f"{truth.image_ids[:3].tolist()}, "
            f"theirs {predictions.image_ids[:3].tolist()}"
        ]
    labels = set(truth.labels.tolist()) & set(predictions.labels.tolist())
    if not labels:
        return [
            "no class has both objects and detections: objects are of "
            f"{_names(truth, truth.labels)}, "
            f"detections of {_names(truth, predictions.labels)}"
        ]
    rows = np.argsort(-predictions.scores, kind="stable")[:_SAMPLE]
    boxes = predictions.boxes[rows].astype(np.float64)
    owners = predictions.image_ids[rows]
    if boxes.max() <= 1.5:
        causes.append(
            "all box coordinates are at most 1.5: they look like fractions of the image, expected "
            "are pixels"
        )
    best, matched = _best_overlap(truth, owners, boxes)
    readings = {
        "the boxes were written as (x1, y1, x2, y2) where [x, y, width, height] is "
        "expected": np.concatenate((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), axis=1),
        "the boxes were written as [x, y, width, height] where (x1, y1, x2, y2) is "
        "expected": np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1),
        "x and y are exchanged": boxes[:, [1, 0, 3, 2]],
    }
    here = (best >= 0.5).mean()
    for reading, other in readings.items():
        there = (_best_overlap(truth, owners, other)[0] >= 0.5).mean()
        if there > max(2 * here, 0.1):
            causes.append(
                f"perhaps {reading}: read that way, {there:.0%} of the detections overlap an "
                f"object by half, now {here:.0%}"
            )
    on_object = best >= 0.5
    if on_object.mean() > 0.3:
        shift = truth.labels[matched[on_object]] - predictions.labels[rows][on_object]
        values, counts = np.unique(shift, return_counts=True)
        common = int(values[counts.argmax()])
        if common != 0 and counts.max() > 0.5 * len(shift):
            causes.append(
                "the boxes are right but the classes are not: most labels are off by "
                f"{common:+d}, as when background is counted"
            )
        elif (shift != 0).mean() > 0.5:
            pairs = np.stack(
                (truth.labels[matched[on_object]], predictions.labels[rows][on_object]), axis=1
            )[shift != 0]
            pairs, counts = np.unique(pairs, axis=0, return_counts=True)
            actual, called = (
                truth.class_map.name_of(label) for label in pairs[counts.argmax()].tolist()
            )
            causes.append(
                f"the boxes are right but most classes are wrong (often '{actual}' is called "
                f"'{called}'): "
                "are the class ids those of this data set?"
            )
    outside = _outside(truth, owners, boxes)
    if outside > 0.5:
        causes.append(
            f"{outside:.0%} of the boxes lie outside their images: are they in the pixels of "
            "resized images?"
        )
    if not causes and (score is None or score < NOTHING):
        causes.append(
            f"only {here:.1%} of the best {len(rows)} detections overlap an object by half: an "
            "untrained model, or one trained on "
            "something else"
        )
    return causes


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
        sides = (np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])).clip(
            min=0
        )
        inter = sides.prod(axis=1)
        union = (
            np.maximum((box[2:] - box[:2]).prod(), 0)
            + (others[:, 2:] - others[:, :2]).prod(axis=1)
            - inter
        )
        iou = inter / np.maximum(union, 1e-9)
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
    names = [truth.class_map.name_of(label) for label in np.unique(labels).tolist()]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")

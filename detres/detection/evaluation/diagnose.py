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

LEAVING = 0.1
"""Of the boxes: from this share on, boxes that leave their images are a sign of another form."""

_CORNERS = "the boxes were written as (x1, y1, x2, y2) where [x, y, width, height] is expected"

_SAMPLE = 2000
"""Detections looked at, best first: enough to tell a pattern, quick on millions."""


def explain(truth: Annotations, predictions: Predictions, metric: float | None) -> list[str]:
    """Return likely causes of a low `metric` (AP or mAP), most certain first.

    Below 0.001, or None, there is always one; below 0.05 only what the data show; for a higher one
    only that boxes seem to be written as corners, of which those at the image corner score.
    """
    low = metric is None or metric < LOW
    if low and (cause := _nothing_to_match(truth, predictions)):
        return [cause]
    rows = np.argsort(-predictions.scores, kind="stable")[:_SAMPLE]
    boxes, labels = predictions.boxes[rows].astype(np.float64), predictions.labels[rows]
    owners = predictions.image_ids[rows]
    corners = _written_as_corners(truth, owners, boxes)
    if not low:
        return corners
    best, matched = _best_overlap(truth, owners, boxes)
    here = (best >= 0.5).mean()
    causes = corners
    if boxes.max() <= 1.5:
        causes.append(
            "all box coordinates are at most 1.5: they look like fractions of the image, expected "
            "are pixels"
        )
    for reading, other in _readings(boxes).items():
        if corners and reading == _CORNERS:
            continue
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
            "there are no detections at all of these classes: the model finds nothing above its "
            "score threshold, or the file has none"
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
        _CORNERS: np.concatenate((corners, sides - corners), axis=1),
        "the boxes were written as [x, y, width, height] where (x1, y1, x2, y2) is "
        "expected": np.concatenate((corners, corners + sides), axis=1),
        "x and y are exchanged": boxes[:, [1, 0, 3, 2]],
    }


def _written_as_corners(truth: Annotations, owners: np.ndarray, boxes: np.ndarray) -> list[str]:
    """A line when boxes (D, 4) seem to be corners that were read as [x, y, width, height].

    Corners never have x2 < x1 or y2 < y1, while true sides are often smaller than x or y. Where all
    would do as corners, it is told by boxes that leave their images, or fit the objects worse, only
    as they are read; not when most of them fit an object better as they are read.
    """
    own = (boxes[:, :2] > 1).any(axis=1)  # at the image's corner both readings are the same box
    boxes, owners = boxes[own], owners[own]
    as_corners = _readings(boxes)[_CORNERS]
    if not len(boxes) or (as_corners[:, 2:] >= as_corners[:, :2]).all(axis=1).mean() < 0.99:
        return []
    sizes = _sizes_of(truth, owners)
    out_now, out_then = _leaving(boxes, sizes), _leaving(as_corners, sizes)
    now, then = (_best_overlap(truth, owners, each)[0] for each in (boxes, as_corners))
    fit_now, fit_then = (now >= 0.5).mean(), (then >= 0.5).mean()
    leaves = out_now.mean() >= LEAVING and out_then.sum() <= out_now.sum() / 2
    fits = now.mean() > then.mean() and fit_now > 0.5
    if not (leaves and not fits) and then.mean() <= now.mean() + 0.1:
        return []
    return [
        f"perhaps {_CORNERS}: read that way, {out_then.sum()} of {len(boxes)} leave their images, "
        f"now {out_now.sum()}, and {fit_then:.0%} of the detections overlap an object by half, now "
        f"{fit_now:.0%}"
    ]


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
        others = truth.boxes[start:end]
        iou = paired_iou(box, others)
        best[d], matched[d] = iou.max(), start + iou.argmax()
    return best, matched


def _outside(truth: Annotations, owners: np.ndarray, boxes: np.ndarray) -> float:
    """Return the share of detections that lie, by more than a pixel, beyond their image (of those
    whose size is known).
    """
    sizes = _sizes_of(truth, owners)
    known = (sizes > 0).all(axis=1)
    beyond = (boxes[:, 0] > sizes[:, 1] + 1) | (boxes[:, 1] > sizes[:, 0] + 1)
    return float(beyond[known].mean()) if known.any() else 0.0


def _leaving(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which of boxes (D, 4) reach beyond images of sizes (D, 2), 0 unknown, by more than a pixel
    and 2% of the side: less is what detectors that do not clip leave.
    """
    limits = np.where(sizes > 0, sizes * 1.02 + 1, np.inf)[:, ::-1]
    return (boxes[:, 2:] > limits).any(axis=1)


def _sizes_of(truth: Annotations, owners: np.ndarray) -> np.ndarray:
    """The (h, w) px of the images of detections, (D, 2), 0 where they are not known."""
    size_of = dict(zip(truth.image_ids.tolist(), truth.image_sizes.tolist(), strict=True))
    return np.array([size_of.get(owner, (0, 0)) for owner in owners.tolist()]).reshape(-1, 2)


def _names(truth: Annotations, labels: np.ndarray) -> str:
    names = names_of(truth.class_map, np.unique(labels))
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")

"""What becomes of records that cannot be trained on: decided once, at load time, never in the
middle of training.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from detres.class_map import LISTED_CLASSES
from detres.detection.annotations import Annotations

BoxPolicy = Literal["drop", "error", "keep", "as_written"]

CLIP_TOLERANCE = 1.0
"""Px. Boxes reaching further than this beyond their image are counted as clipped; less is rounding.
"""

LARGEST_SIDE = 1_000_000
"""Px of an image; beyond it a size is a slip."""

NOT_FINITE = "box with a number that is not finite"
OTHER_CLASS = "other class"
RENUMBERED = "renumbered annotation id"
REPLACED_AREA = "area that is none, replaced by the box's"
CLIPPED = "clipped to the image"
_NOT_LEFT_OUT = (RENUMBERED, REPLACED_AREA, CLIPPED)


class AnnotationError(ValueError):
    """Annotations that cannot be used; the message names the file and the record."""


class FaultyFilesError(AnnotationError):
    """Several files or records that cannot be used; faults: what is wrong with each."""

    def __init__(self, message: str, faults: Sequence[str]) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


def apply_box_policy(
    boxes: np.ndarray, sizes: np.ndarray, policy: BoxPolicy, describe_row: Callable[[int], str]
) -> tuple[np.ndarray, np.ndarray, dict[str, int], list[str]]:
    """Return (boxes (M, 4) float64, keep (M,) bool, reason -> count, what is to be said) for xyxy
    boxes (M, 4) px in images of `sizes` (M, 2) (h, w) px.

    "drop" clips boxes to their image (a size of 0 means unknown: not clipped) and leaves out those
    that are not finite, have no area (x2 <= x1 or y2 <= y1, in float32) or lie wholly outside.
    "error" raises AnnotationError at the first of these, with `describe_row(row)` saying which it
    is. "keep" touches nothing: ground truth for evaluation is taken as it stands; a box that is not
    finite, which no protocol can score, raises likewise. "as_written" touches nothing and raises
    nothing, for who looks for such boxes. Clipping is counted where it moved a side by more than
    CLIP_TOLERANCE. Said is the first box that is not finite: no file has one without a fault
    elsewhere. No boxes: (0, 4) and no counts.
    """
    if len(boxes) == 0:
        return boxes.astype(np.float64), np.ones(0, bool), {}, []
    if policy == "as_written":
        return boxes.astype(np.float64), np.ones(len(boxes), bool), {}, []
    with np.errstate(over="ignore"):  # too large for the model's float32 is infinite there
        finite = np.isfinite(boxes.astype(np.float32)).all(axis=1)
    if policy == "keep":
        if not finite.all():
            first = int(np.flatnonzero(~finite)[0])
            raise AnnotationError(
                f"{describe_row(first)}: {NOT_FINITE} ({(~finite).sum()} such). Correct it: "
                "ground truth is scored as it stands"
            )
        return boxes.astype(np.float64), finite, {}, []
    boxes = np.where(finite[:, None], boxes, 0.0)
    no_area = finite & without_area(boxes)
    limit = np.where(sizes > 0, sizes, np.inf)[:, [1, 0, 1, 0]]
    clipped = np.clip(boxes, 0, limit)
    outside = finite & ~no_area & without_area(clipped)
    reasons = {
        NOT_FINITE: ~finite,
        "box without area": no_area,
        "box outside its image": outside,
    }
    for reason, rows in reasons.items():
        if policy == "error" and rows.any():
            first = int(np.flatnonzero(rows)[0])
            raise AnnotationError(
                f"{describe_row(first)}: {reason} ({rows.sum()} such). Correct it, or leave such "
                "boxes out: box_policy drop"
            )
    keep = finite & ~no_area & ~outside
    reasons[CLIPPED] = keep & (np.abs(clipped - boxes).max(axis=1) > CLIP_TOLERANCE)
    counts = {reason: int(rows.sum()) for reason, rows in reasons.items() if rows.any()}
    first = int(np.argmin(finite))
    notes = [] if finite.all() else [f"{describe_row(first)}: left out, a {NOT_FINITE}"]
    return clipped, keep, counts, notes


def without_area(boxes: np.ndarray) -> np.ndarray:
    """Return which of boxes (M, 4) have no area as the model meets them, in float32, (M,) bool."""
    single = boxes.astype(np.float32)
    return (single[:, 2:] <= single[:, :2]).any(axis=1)


def known_classes(classes: Sequence[str], names: Sequence[str], source: str) -> tuple[str, ...]:
    """Return `classes`; raises AnnotationError when there is none, one is given twice, or one is
    not in `names` (with the nearest).
    """
    if not classes:
        raise AnnotationError(
            f"classes is an empty list; leave it out to use all classes of {source}"
        )
    known, seen = set(names), set()
    for name in classes:
        if name not in known:
            near = difflib.get_close_matches(name, names, n=1)
            more = ", ..." if len(names) > LISTED_CLASSES else ""
            listed = ", ".join(names[:LISTED_CLASSES]) + more
            hint = f"did you mean '{near[0]}'?" if near else f"it has: {listed}"
            raise AnnotationError(f"classes: {source} has no class '{name}'; {hint}")
        if name in seen:
            raise AnnotationError(f"classes: '{name}' is given twice")
        seen.add(name)
    return tuple(classes)


def require_objects(annotations: Annotations, purpose: str) -> None:
    """Raise AnnotationError, saying what was left out and why, when there is no object that is
    neither crowd nor difficult: those are neither trained on nor counted.

    purpose: what an object is needed for, such as "to learn from".
    """
    flagged = int((annotations.crowd | annotations.difficult).sum())
    if annotations.num_objects > flagged:
        return
    reasons = [
        f"{count} {reason}"
        for reason, count in annotations.dropped.items()
        if reason not in _NOT_LEFT_OUT
    ]
    reasons += [f"{flagged} crowd or difficult"] if flagged else []
    raise AnnotationError(
        f"{annotations.source}: {len(annotations)} images but no object {purpose}; "
        f"{'left out: ' + ', '.join(reasons) if reasons else 'the files list no object'} (classes: "
        f"{', '.join(annotations.class_map.names[:LISTED_CLASSES])}). Check classes, box_policy "
        "and the crowd or difficult flags" + "".join(f"\nnote: {n}" for n in annotations.notes[:2])
    )

"""Recall of proposals: how many objects a detector's RPN gives its RoI head a chance to find.

COCO's average recall without regard to classes. Shapes: G objects of an image, P proposals of it, T
IoU thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from detres.boxes import paired_iou
from detres.detection.annotations import Annotations
from detres.detection.choices import COUNTS
from detres.detection.structures import Proposals

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""As pycocotools has them, in its arithmetic."""

SIZES = {"all": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}
"""COCO's areas in px^2, both ends inclusive."""

_NEVER = np.iinfo(np.int64).max
"""The rank of a proposal that finds an object which none finds."""


@dataclass(frozen=True)
class RecallResult:
    """Average recall by number of proposals and size of object, and recall by IoU, as fractions;
    None where there is no object to measure.

    metrics: "AR100", "ARs100" (small), "ARm100", "ARl100", and so on for every count. recall: count
    -> recall at each of IOU_THRESHOLDS. protocol says how they were made; notes what else is to be
    known of them, a line each.
    """

    metrics: dict[str, float | None]
    recall: dict[int, list[float] | None]
    protocol: str
    best_metric: str
    notes: tuple[str, ...] = ()

    def table(self) -> str:
        """Return the protocol, average recall by count and size, recall by IoU, and the notes."""
        lines = [self.protocol, " average recall      all  small medium  large"]
        for count in self.recall:
            cells = [self.metrics[_name(size, count)] for size in SIZES]
            lines.append(
                f" {f'AR@{count}':<16}" + "".join(f"{_shown(value):>7}" for value in cells)
            )
        lines.append(f" {'recall at IoU':<16}" + "".join(f"{t:>7.2f}" for t in IOU_THRESHOLDS))
        for count, values in self.recall.items():
            shown = [None] * len(IOU_THRESHOLDS) if values is None else values
            lines.append(f" {f'  of {count}':<16}" + "".join(f"{_shown(v):>7}" for v in shown))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_dict(self) -> dict:
        """Return metrics, recall by count and IoU, and protocol as plain values for JSON."""
        recall = {
            str(count): None
            if values is None
            else {f"{t:.2f}": v for t, v in zip(IOU_THRESHOLDS, values, strict=True)}
            for count, values in self.recall.items()
        }
        return {**self.metrics, "recall": recall, "protocol": self.protocol}


def proposal_recall(
    truth: Annotations, proposals: Proposals, counts: Sequence[int] = COUNTS
) -> RecallResult:
    """Return the recall of `proposals` for the images of `truth`, in their order, equal to
    pycocotools with useCats=0.

    counts: numbers of the best proposals of an image to judge, rising. Of every image the proposals
    in falling score each take the object, of those not taken yet, that they overlap most, if by the
    threshold or more; recall is the share of all objects that are taken, average recall its mean
    over IOU_THRESHOLDS. Crowd and difficult objects, and those of another size, are neither missed
    nor, when overlapped, anything else. No proposals: 0. No object: None. Raises ValueError for
    counts that do not rise or are below 1, and proposals of other images.
    """
    if list(counts) != sorted(set(counts)) or not counts or counts[0] < 1:
        raise ValueError(f"counts {list(counts)}: expected numbers from 1 on that rise")
    if not np.array_equal(proposals.image_ids, truth.image_ids):
        raise ValueError(f"{proposals.source} are not of the images of {truth.source}")
    counted = ~(truth.crowd | truth.difficult)
    metrics: dict[str, float | None] = {}
    recall: dict[int, list[float] | None] = {}
    for size, (smallest, largest) in SIZES.items():
        judged = counted & (truth.areas >= smallest) & (truth.areas <= largest)
        ranks = _ranks(truth, judged, proposals, counts[-1])  # (T, G of all images)
        for count in counts:
            shares = (ranks < count).mean(axis=1) if judged.any() else None
            metrics[_name(size, count)] = None if shares is None else float(shares.mean())
            if size == "all":
                recall[count] = None if shares is None else shares.tolist()
    shown = "/".join(map(str, counts))
    best = 300 if 300 in counts else counts[-1]
    return RecallResult(
        metrics=metrics,
        recall=recall,
        protocol=f"proposal recall, COCO's matching without classes, IoU .50:.05:.95, the best "
        f"{shown} of an image, crowd and difficult ignored",
        best_metric=_name("all", best),
        notes=_notes(proposals, counts),
    )


def _name(size: str, count: int) -> str:
    return f"AR{'' if size == 'all' else size}{count}"


def _shown(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"


def _notes(proposals: Proposals, counts: Sequence[int]) -> tuple[str, ...]:
    most = int(proposals.counts.max(initial=0))
    unreached = [str(count) for count in counts if count > most]
    if not unreached:
        return ()
    return (f"no image has more than {most} proposals: AR@{', AR@'.join(unreached)} are of those",)


def _ranks(truth: Annotations, judged: np.ndarray, proposals: Proposals, most: int) -> np.ndarray:
    """The rank, from 0, of the proposal of its image that takes each object of `judged` (M,) bool,
    (T, G) int64; _NEVER where none of the best `most` does.
    """
    xywh = truth.xywh()
    found = []
    for index in range(len(truth)):
        rows = np.flatnonzero(judged[truth.offsets[index] : truth.offsets[index + 1]])
        rows += truth.offsets[index]
        if len(rows):
            boxes = proposals.boxes[proposals.rows_of(index)][:most]
            # corners as pycocotools has them, x + w
            objects = np.concatenate((xywh[rows, :2], xywh[rows, :2] + xywh[rows, 2:]), axis=1)
            found.append(_ranks_of_image(paired_iou(boxes[:, None], objects[None])))
    return np.concatenate([np.zeros((len(IOU_THRESHOLDS), 0), np.int64), *found], axis=1)


def _ranks_of_image(iou: np.ndarray) -> np.ndarray:
    """The ranks (T, G) int64 for iou (P, G) of the proposals of an image, best first, with its
    objects.
    """
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    ranks = np.full((len(thresholds), iou.shape[1]), _NEVER)
    for rank in np.flatnonzero((iou >= thresholds[0]).any(axis=1)):
        free = (ranks == _NEVER) & (iou[rank] >= thresholds[:, None])  # (T, G)
        overlaps = np.where(free, iou[rank], -1.0)
        # of equal overlaps the last object, as in pycocotools
        best = overlaps.shape[1] - 1 - overlaps[:, ::-1].argmax(axis=1)  # (T,)
        takes = np.flatnonzero(free.any(axis=1))
        ranks[takes, best[takes]] = rank
    return ranks

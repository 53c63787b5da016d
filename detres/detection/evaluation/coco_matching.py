"""COCO's greedy matching of detections with objects, of all images and classes at once.

The rule is pycocotools' to the last bit: see `match_coco`. N images, M objects, D detections of
which D' are looked at, A areas, T thresholds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from detres.detection.evaluation.matches import NONE, pairs_of

_PAIRS = 1 << 21
"""Of a detection and an object of its image and class, this many at a time: some 100 MiB."""


@dataclass(frozen=True)
class CocoBoxes:
    """Objects or detections as COCO's protocol takes them.

    images: (M,) int64, their places 0..N-1 in the order in which the protocol goes through images.
    classes: (M,) int64, 0..K-1. xywh: (M, 4) float64 px. areas: (M,) float64 px^2.
    """

    images: np.ndarray
    classes: np.ndarray
    xywh: np.ndarray
    areas: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def cells(self, num_images: int) -> np.ndarray:
        """Return (M,) int64: a number of each one's class and image, classes first."""
        return self.classes * num_images + self.images


@dataclass(frozen=True)
class CocoMatches:
    """What the matching found.

    rows: (D',) int64, the detections that are looked at, by class, image and falling score. ranks:
    (D',) int64, the place 0.. of each among those of its image and class. objects: (A, T, D')
    int32, the object that each found, NONE where it found none. ignored: (A, T, D') bool, neither
    right nor wrong. objects_ignored: (A, M) bool, objects that need not be found.
    """

    rows: np.ndarray
    ranks: np.ndarray
    objects: np.ndarray
    ignored: np.ndarray
    objects_ignored: np.ndarray


def match_coco(
    truth: CocoBoxes,
    ignored: np.ndarray,
    found: CocoBoxes,
    scores: np.ndarray,
    *,
    num_images: int,
    iou_threshs: np.ndarray,
    area_ranges: np.ndarray,
    max_detections: int,
) -> CocoMatches:
    """Return which objects COCO's rule gives to the detections.

    Of every image and class the `max_detections` of highest score are looked at, in falling score,
    ties in the order given. Each takes, of the objects that are left, the one it overlaps most (of
    equals the last), if by a threshold at least; ignored objects only where there is no other, and
    those of `ignored` (crowds), on whose overlap the detection's own area alone counts, are taken
    any number of times. An object outside an area is ignored, and so is a detection outside it that
    found none, and one that found an ignored object.

    ignored: (M,) bool. scores: (D,) float64. iou_threshs: (T,) in (0, 1). area_ranges: (A, 2) px^2,
    both ends within. M, D and N may be 0. Source: COCOeval.computeIoU and evaluateImg.
    """
    cells = found.cells(num_images)
    rows = np.lexsort((-scores, cells))  # stable
    cells = cells[rows]
    starts = np.searchsorted(cells, cells, side="left")
    ranks = np.arange(len(rows)) - starts
    kept = ranks < max_detections
    rows, ranks, cells = rows[kept], ranks[kept], cells[kept]
    objects_ignored = ignored | _outside(truth.areas, area_ranges)
    shape = (len(area_ranges), len(iou_threshs), len(rows))
    objects, of_ignored = np.full(shape, NONE, np.int32), np.zeros(shape, bool)
    taken = np.zeros((len(area_ranges), len(truth), len(iou_threshs)), bool)
    for detections, candidates in _pairs(truth.cells(num_images), cells):
        iou = _paired_iou(
            found.xywh[rows[detections]], truth.xywh[candidates], crowd=ignored[candidates]
        )
        near = iou >= iou_threshs.min()
        pairs = detections[near], candidates[near], iou[near]
        turns = _turns(cells, pairs[0])
        for area in range(len(area_ranges)):
            _match(
                pairs,
                turns,
                objects[area],
                taken[area],
                objects_ignored[area],
                ignored,
                iou_threshs,
            )
    outside = _outside(found.areas[rows], area_ranges)
    for area in range(len(area_ranges)):
        hit = objects[area] != NONE
        of_ignored[area] = outside[area]
        of_ignored[area][hit] = objects_ignored[area][objects[area][hit]]
    return CocoMatches(rows, ranks, objects, of_ignored, objects_ignored)


def _outside(areas: np.ndarray, area_ranges: np.ndarray) -> np.ndarray:
    """(A, M) bool: which areas (M,) px^2 lie outside each range."""
    return (areas < area_ranges[:, :1]) | (areas > area_ranges[:, 1:])


def _pairs(gt_cells: np.ndarray, cells: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of a detection and an object of its cell, as `pairs_of` has them, about _PAIRS at a
    time, those of one cell together.

    gt_cells (M,); cells (D',), rising.
    """
    ordered = np.sort(gt_cells)
    counts = np.searchsorted(ordered, cells, "right") - np.searchsorted(ordered, cells, "left")
    parts = np.cumsum(counts) // _PAIRS
    # a cell belongs to the part of its first detection
    parts = parts[np.searchsorted(cells, cells, side="left")]
    with_objects = counts > 0
    for part in np.unique(parts[with_objects]):
        own = np.flatnonzero(with_objects & (parts == part))
        detections, candidates = pairs_of(gt_cells, cells[own])
        yield own[detections], candidates


def _paired_iou(boxes: np.ndarray, gt_boxes: np.ndarray, *, crowd: np.ndarray) -> np.ndarray:
    """IoU (P,) of pairs of boxes (P, 4) xywh px, over the first's own area where the other is
    `crowd` (P,); the operations and their order are those of pycocotools' mask API.
    """
    corner = np.maximum(boxes[:, :2], gt_boxes[:, :2])
    ends = np.minimum(boxes[:, 2:] + boxes[:, :2], gt_boxes[:, 2:] + gt_boxes[:, :2])
    width, height = (ends - corner).T
    overlap = width * height
    own, other = (each[:, 2] * each[:, 3] for each in (boxes, gt_boxes))
    iou = np.zeros(len(boxes))
    shared = (width > 0) & (height > 0)
    np.divide(overlap, np.where(crowd, own, own + other - overlap), out=iou, where=shared)
    return iou


def _turns(cells: np.ndarray, detections: np.ndarray) -> np.ndarray:
    """When each pair has its turn, (P,) int64 0..: that of its detection among those of its cell
    that have pairs. detections (P,), rising.
    """
    given, inverse = np.unique(detections, return_inverse=True)
    of_given = cells[given]
    return (np.arange(len(given)) - np.searchsorted(of_given, of_given, side="left"))[inverse]


def _match(
    pairs: tuple[np.ndarray, np.ndarray, np.ndarray],
    turns: np.ndarray,
    objects: np.ndarray,
    taken: np.ndarray,
    objects_ignored: np.ndarray,
    crowd: np.ndarray,
    iou_threshs: np.ndarray,
) -> None:
    """Fill `objects` (T, D') and `taken` (M, T) of one area from pairs: detections (P,), objects
    (P,) and their IoU (P,).

    At each turn there is one detection of a cell, so that none waits for another.
    """
    detections, candidates, iou = pairs
    # of a detection's pairs the first that is free is its match
    order = np.lexsort((-candidates, -iou, objects_ignored[candidates], detections, turns))
    detections, candidates, iou, turns = (
        each[order] for each in (detections, candidates, iou, turns)
    )
    ends = np.searchsorted(turns, np.arange(turns.max(initial=-1) + 1), side="right")
    start = 0
    for end in ends.tolist():
        own, gt = detections[start:end], candidates[start:end]
        free = ~taken[gt] | crowd[gt, None]
        free &= iou[start:end, None] >= iou_threshs  # (P', T)
        (firsts,) = np.nonzero(np.diff(own, prepend=-1))
        places = np.where(free, np.arange(len(own))[:, None], len(own))
        best = np.minimum.reduceat(places, firsts, axis=0)  # (detections of this turn, T)
        row, thresh = np.nonzero(best < len(own))
        best = best[row, thresh]
        objects[thresh, own[best]] = gt[best]
        taken[gt[best], thresh] = True
        start = end

"""ImageNet's localisation error: an image is right when one of its best guesses, a class and a box
each, has the right class and overlaps an object of it (ILSVRC devkit, eval_clsloc.m).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from detres.boxes import paired_iou
from detres.detection.annotations import Annotations
from detres.detection.evaluation.curves import Outcome, outcome_of
from detres.detection.evaluation.matches import match_by_class, owners_of
from detres.detection.evaluation.voc_ap import match_voc
from detres.detection.structures import Predictions, label_of

IOU_THRESH = 0.5
GUESSES = 5


@dataclass(frozen=True)
class Guesses:
    """What was guessed of N images, best first: labels (N, G) int64 1..K and boxes (N, G, 4)
    float64 xyxy px of the files, one for each class.
    """

    labels: np.ndarray
    boxes: np.ndarray

    def first(self, annotations: Annotations) -> Predictions:
        """Return the first guess of every image of `annotations`, N, as a detection of score 1."""
        num = len(self.labels)
        return Predictions(
            class_map=annotations.class_map,
            image_ids=annotations.image_ids,
            boxes=self.boxes[:, 0],
            scores=np.ones(num, np.float32),
            labels=self.labels[:, 0],
        )

    def all(self, annotations: Annotations) -> Predictions:
        """Return every guess of the images of `annotations`, N, as a detection; scores, which fall
        from 1, tell which guess of its image it is.
        """
        num, each = self.labels.shape
        return Predictions(
            class_map=annotations.class_map,
            image_ids=np.repeat(annotations.image_ids, each),
            boxes=self.boxes.reshape(-1, 4),
            scores=np.tile(np.linspace(1, 0, each, endpoint=False), num),
            labels=self.labels.reshape(-1),
            seen=annotations.image_ids,
        )


@dataclass(frozen=True)
class LocalisationResult:
    """Errors as fractions: name -> value, per class name -> error of the first of them (None for a
    class without images), the protocol they were measured by, and the guesses they are of.
    """

    errors: dict[str, float]
    per_class: dict[str, float | None]
    protocol: str
    guesses: Guesses

    best_metric = "localised"
    """Of `metrics`, the one that decides which weights are the best."""

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers for a log; `localised` grows as the first error falls."""
        return {**self.errors, "localised": 1 - next(iter(self.errors.values()))}

    def to_dict(self) -> dict:
        """Return everything as plain values for JSON."""
        return {
            "protocol": self.protocol,
            "num_images": len(self.guesses.labels),
            **self.errors,
            "per_class": self.per_class,
        }

    def table(self, per_class: bool = False) -> str:
        """Return the numbers as text; per_class: and each class's error."""
        named = {name.replace("_", " "): value for name, value in self.errors.items()}
        width = max(map(len, named))
        lines = [f"{len(self.guesses.labels)} images, {self.protocol}"]
        lines += [f" {name:<{width}} {100 * value:6.2f} %" for name, value in named.items()]
        if per_class:
            width = max(map(len, self.per_class))
            shown = {
                name: "n/a" if value is None else f"{100 * value:6.2f} %"
                for name, value in self.per_class.items()
            }
            lines += [" error of each class"]
            lines += [f"  {name:<{width}} {value}" for name, value in shown.items()]
        return "\n".join(lines)


def first_outcome(truth: Annotations, first: Predictions) -> Outcome:
    """Return what became of the first guess of every image and of its objects; where it is right,
    the other objects of its image are not missed: one is to be found.
    """
    nothing = np.zeros(truth.num_objects, bool)
    truth = replace(truth, crowd=nothing, difficult=nothing)  # flags do not matter
    threshs = np.full(truth.num_objects, IOU_THRESH)
    matches = match_by_class(truth, first, partial(match_voc, iou_thresh=IOU_THRESH), threshs)
    outcome = outcome_of(first, matches, np.zeros(len(truth.class_map)))
    right = np.zeros(len(truth), bool)
    right[truth.rows_of(first)[outcome.right]] = True
    return replace(outcome, missed=outcome.missed & ~right[owners_of(truth)])


def given_class_error(truth: Annotations, guesses: Guesses, how: str) -> LocalisationResult:
    """Return loc_error: the share of images whose first box does not find an object, guesses.labels
    being the true classes ("oracle" testing, paper, appendix C).

    how: in words, how boxes came about. Raises what `localised` raises.
    """
    right = localised(truth, guesses)[:, 0]
    protocol = f"localisation error given the class, IoU >= {IOU_THRESH:g}, {how}"
    return _result(truth, guesses, right, {"loc_error": 1 - float(right.mean())}, protocol)


def predicted_class_error(truth: Annotations, guesses: Guesses, how: str) -> LocalisationResult:
    """Return top5_loc_error and top1_loc_error, and beside them top5_error and top1_error, where
    the class alone counts; guesses.labels are a classifier's, best first.

    how: in words, how classes and boxes came about. Raises what `localised` raises.
    """
    right = localised(truth, guesses)[:, :GUESSES]
    named = (guesses.labels == _labels_of(truth)[:, None])[:, :GUESSES]
    errors = {
        "top5_loc_error": 1 - float(right.any(axis=1).mean()),
        "top1_loc_error": 1 - float(right[:, 0].mean()),
        "top5_error": 1 - float(named.any(axis=1).mean()),
        "top1_error": 1 - float(named[:, 0].mean()),
    }
    protocol = f"localisation error of predicted classes, IoU >= {IOU_THRESH:g}, {how}"
    return _result(truth, guesses, right.any(axis=1), errors, protocol)


def localised(truth: Annotations, guesses: Guesses) -> np.ndarray:
    """Return (N, G) bool: the guess has the image's class, and its box an IoU of at least 0.5 with
    one of the image's objects.

    truth: N images with objects of one class each; flags do not matter, as in the devkit. Raises
    ValueError for no images, an image without objects or with several classes, and guesses of
    another number of images or with a box that is not finite.
    """
    labels = _labels_of(truth)
    if guesses.boxes.shape != (*guesses.labels.shape, 4) or len(guesses.labels) != len(truth):
        raise ValueError(
            f"labels {guesses.labels.shape} and boxes {guesses.boxes.shape} are not guesses of "
            f"{len(truth)} images"
        )
    if not np.isfinite(guesses.boxes).all():
        raise ValueError("guesses have a box that is not finite")
    owners = np.repeat(np.arange(len(truth)), np.diff(truth.offsets))
    iou = paired_iou(guesses.boxes[owners], truth.boxes[:, None])  # (M, G)
    best = np.maximum.reduceat(iou, truth.offsets[:-1], axis=0)  # (N, G)
    return (guesses.labels == labels[:, None]) & (best >= IOU_THRESH)


def _labels_of(truth: Annotations) -> np.ndarray:
    """The class (N,) of every image."""
    counts = np.diff(truth.offsets)
    if len(truth) == 0 or (counts == 0).any():
        raise ValueError(f"{truth.source}: {int((counts == 0).sum())} images without objects")
    labels = truth.labels[truth.offsets[:-1]]
    if (truth.labels != np.repeat(labels, counts)).any():
        raise ValueError(f"{truth.source}: an image has objects of several classes")
    return labels


def _result(
    truth: Annotations,
    guesses: Guesses,
    right: np.ndarray,
    errors: dict[str, float],
    protocol: str,
) -> LocalisationResult:
    labels = _labels_of(truth)
    of_class = {
        name: right[labels == label_of(index)] for index, name in enumerate(truth.class_map.names)
    }
    per_class = {
        name: 1 - float(rows.mean()) if len(rows) else None for name, rows in of_class.items()
    }
    return LocalisationResult(errors, per_class, protocol, guesses)

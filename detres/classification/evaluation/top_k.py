"""Top-1 and top-5 error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClassProbabilities:
    """What a classifier says of a whole set: `probabilities` (M, K) float32, and the true `labels`
    (M,) int64.
    """

    probabilities: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class ClassResult:
    """Errors as fractions, with the protocol they were measured by.

    top1_error, top5_error: share of images whose class is not the best, not among the best five.
    per_class: class name -> accuracy, None for a class without images. loss: mean cross-entropy in
    nats.
    """

    protocol: str
    top1_error: float
    top5_error: float
    loss: float
    per_class: dict[str, float | None]
    num_images: int

    best_metric = "top1"
    """The metric that decides what was the best so far."""

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers for a log; `top1` is the accuracy, which grows as the error falls."""
        return {
            "top1_error": self.top1_error,
            "top5_error": self.top5_error,
            "loss": self.loss,
            "top1": 1 - self.top1_error,
        }

    @property
    def no_better_than_guessing(self) -> bool:
        """Whether guessing would get as many right, within three standard deviations of its luck;
        fewer than 100 images do not tell.
        """
        guess = 1 / len(self.per_class)
        return self.num_images >= 100 and 1 - self.top1_error < guess + 3 * math.sqrt(
            guess * (1 - guess) / self.num_images
        )

    def to_dict(self) -> dict:
        """Return everything as plain values for JSON."""
        return {
            "protocol": self.protocol,
            "num_images": self.num_images,
            "top1_error": self.top1_error,
            "top5_error": self.top5_error,
            "loss": self.loss,
            "per_class": self.per_class,
        }

    def table(self, per_class: bool = False) -> str:
        """Return the numbers as text, top-5 error where there are more classes; per_class: and each
        class's accuracy.
        """
        lines = [
            f"{self.num_images} images, {self.protocol}",
            f" top-1 error {100 * self.top1_error:6.2f} %",
            *([f" top-5 error {100 * self.top5_error:6.2f} %"] if len(self.per_class) > 5 else []),
        ]
        if per_class:
            width = max(map(len, self.per_class))
            shown = {
                name: "n/a" if value is None else f"{100 * value:6.2f} %"
                for name, value in self.per_class.items()
            }
            lines += [
                " accuracy of each class",
                *(f"  {name:<{width}} {value}" for name, value in shown.items()),
            ]
        return "\n".join(lines)


def top_k_errors(found: ClassProbabilities, names: Sequence[str], protocol: str) -> ClassResult:
    """Return the errors of probabilities; of equal ones the earlier class counts as better. With
    fewer than five classes top-5 error is 0.

    names: of the K classes. protocol: in words, how the probabilities came about.

    Raises ValueError for no images, labels out of range, or probabilities that are not finite or
    not for len(names) classes.
    """
    probabilities, labels = found.probabilities, found.labels
    if len(labels) == 0 or probabilities.shape != (len(labels), len(names)):
        raise ValueError(
            f"probabilities {probabilities.shape} and {len(labels)} labels for {len(names)} "
            "classes do not belong together"
        )
    if labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(
            f"labels {labels.min()}..{labels.max()} for {len(names)} classes, expected "
            f"0..{len(names) - 1}"
        )
    if not np.isfinite(probabilities).all():
        raise ValueError(
            f"image {int(np.flatnonzero(~np.isfinite(probabilities).all(axis=1))[0])}: its "
            "probabilities are NaN or infinite"
        )
    order = np.argsort(-probabilities, axis=1, kind="stable")
    right = order == labels[:, None]
    accuracy = [right[labels == label, 0] for label in range(len(names))]
    own = np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(np.float32).tiny)
    return ClassResult(
        protocol=protocol,
        top1_error=1 - float(right[:, :1].any(axis=1).mean()),
        top5_error=1 - float(right[:, :5].any(axis=1).mean()),
        loss=float(-np.log(own).mean()),
        per_class={
            name: float(of_class.mean()) if len(of_class) else None
            for name, of_class in zip(names, accuracy, strict=True)
        },
        num_images=len(labels),
    )


def ensemble(members: Sequence[ClassProbabilities]) -> ClassProbabilities:
    """Average the probabilities of several classifiers of the same images; raises ValueError when
    their labels differ.
    """
    first = members[0]
    if any(not np.array_equal(first.labels, other.labels) for other in members[1:]):
        raise ValueError("the classifiers of an ensemble were run on different images")
    mean = np.mean([member.probabilities for member in members], axis=0)
    return ClassProbabilities(mean, first.labels)

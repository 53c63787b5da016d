"""What a run is judged by: the numbers of an evaluation, and how they are compared and shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


class Evaluation(Protocol):
    """The numbers of one evaluation: metrics by name, None where there was nothing to measure."""

    metrics: dict[str, float | None]
    best_metric: str

    def table(self) -> str:
        """Return the numbers for people, with their protocol."""


@dataclass(frozen=True)
class Judgement:
    """One evaluation of a run, and what it can be compared by.

    comparable: the deciding metric on the images that all evaluations of the run look at, None
    where there was nothing to measure. images: of how many held-out images the evaluation is, and
    how many there are; None: it is of all. losses: name -> mean loss on the `loss_images` that all
    look at; empty where none is computed.
    """

    evaluation: Evaluation
    comparable: float | None
    images: tuple[int, int] | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    loss_images: int = 0

    @classmethod
    def of_all(cls, evaluation: Evaluation) -> Judgement:
        """Return that of a training which looks at all held-out images every time."""
        return cls(evaluation, evaluation.metrics[evaluation.best_metric])

    def record(self) -> dict[str, float | None]:
        """Return what metrics.jsonl holds of it, by name."""
        found = {**self.evaluation.metrics, **self.losses}
        if self.images is not None:
            found["images"] = self.images[0]
        own = self.evaluation.metrics[self.evaluation.best_metric]
        return found if self.comparable == own else {**found, "compared_by": self.comparable}

    def table(self) -> str:
        """Return the numbers for people; first, where that is so, of how few images they are."""
        lines = [self.evaluation.table()]
        if self.images is not None and self.images[0] < self.images[1]:
            lines.insert(
                0,
                f"on {self.images[0]} of {self.images[1]} held-out images, the same every time; on "
                "all of them at the end",
            )
        if self.losses:
            shown = "  ".join(f"{_short(name)} {each:.3f}" for name, each in self.losses.items())
            fewer = self.images is not None and self.loss_images < self.images[0]
            of = f"  (of the same {self.loss_images} images)" if fewer else ""
            lines.append(f"held-out {shown}{of}")
        return "\n".join(lines)


def _short(name: str) -> str:
    return name.removeprefix("val_").removeprefix("loss_")

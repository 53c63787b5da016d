"""How far a run is, and what it has shown so far: all that resuming needs beside weights and
optimizer.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields

_MEMORY = 100
"""Steps over which the running training error is averaged."""

_MOST_STEPS = 2**53
"""More than any run can take, and exact in every format that a step is written in."""


@dataclass
class Progress:
    """What a run has done; the loop and the run update it in place, last.pt holds it.

    step: steps done. evaluations: step -> deciding metric of the evaluation there, None where there
    was nothing to measure; all of the same held-out images, so that they can be compared.
    training_error: running mean, 1 before the first step, kept only while the warm-up waits for it.
    warmed_up: whether it has fallen below what the warm-up waits for. whole: the step of the last
    evaluation that ended the run and was of all held-out images; None: there was none.
    """

    step: int = 0
    evaluations: dict[int, float | None] = field(default_factory=dict)
    training_error: float = 1.0
    warmed_up: bool = False
    whole: int | None = None

    @property
    def best(self) -> float | None:
        """The best metric so far; None before the first that could be measured."""
        return max(filter(_is_number, self.evaluations.values()), default=None)

    @property
    def without_better(self) -> int:
        """How many of the last evaluations in a row were not better than the best before them;
        those that could not be measured do not count.
        """
        since, best = 0, -math.inf
        for _, metric in sorted(self.evaluations.items()):
            if _is_number(metric):
                best, since = (metric, 0) if metric > best else (best, since + 1)
        return since

    def is_over(self, steps: int, early_stopping: int = 0) -> bool:
        """Return whether all `steps` are done, or `early_stopping` evaluations in a row brought
        nothing better (0: those never end a run).
        """
        return self.step >= steps or 0 < early_stopping <= self.without_better

    def evaluation_is_due(self, every: int, steps: int, early_stopping: int = 0) -> bool:
        """Return whether one belongs at this step and there was none: every `every` steps (0: never
        on the way), and one of all held-out images where the run is over.
        """
        if self.is_over(steps, early_stopping):
            return self.whole != self.step
        return (
            0 < every <= self.step and self.step % every == 0 and self.step not in self.evaluations
        )

    def see_error(self, error: float, threshold: float) -> None:
        """Take in the training error of one step, a fraction; below `threshold` on the running mean
        the warm-up is over.
        """
        self.training_error += (error - self.training_error) / _MEMORY
        self.warmed_up = self.training_error < threshold

    def see_metric(self, metric: float | None) -> bool:
        """Take in the evaluation at this step; return whether it is better than all before. NaN and
        None never are.
        """
        self.evaluations.pop(self.step, None)
        improved = is_better(metric, self.best)
        self.evaluations[self.step] = metric
        return improved

    def to_dict(self) -> dict:
        """Return plain values for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict) -> Progress:
        """Rebuild from `to_dict`; the evaluations of earlier versions, `scores`, are read too, all
        of which were of the whole.

        Raises ValueError or TypeError for anything else.
        """
        value = dict(value)
        expected = {each.name for each in fields(cls)}
        if "scores" in value:  # the first versions had no warm-up that waits
            value.setdefault("training_error", 1.0)
            value.setdefault("warmed_up", False)
            value["evaluations"] = value.pop("scores")
        if "whole" not in value and type(value.get("evaluations")) is dict:
            value["whole"] = max(value["evaluations"], default=None)
        if value.keys() != expected or type(value["evaluations"]) is not dict:
            raise ValueError(f"it has {sorted(value)!r:.60}, expected {sorted(expected)}")
        progress = cls(**value)
        evaluations = progress.evaluations
        if type(progress.step) is not int or not 0 <= progress.step < _MOST_STEPS:
            raise ValueError(f"step {progress.step!r:.40} is no number of steps")
        if not all(type(step) is int and 0 <= step <= progress.step for step in evaluations):
            raise ValueError(
                f"evaluations at {list(evaluations)!r:.60}, after step {progress.step}"
            )
        if not all(metric is None or type(metric) is float for metric in evaluations.values()):
            raise ValueError(f"evaluations {list(evaluations.values())!r:.60} are no numbers")
        whole = progress.whole
        if whole is not None and (type(whole) is not int or whole not in evaluations):
            raise ValueError(f"the whole at {whole!r:.40}, where was no evaluation")
        if type(progress.training_error) is not float or type(progress.warmed_up) is not bool:
            raise ValueError("its warm-up is no number and no yes or no")
        if not 0 <= progress.training_error <= 1:
            raise ValueError(f"training_error {progress.training_error} is no fraction")
        return progress


def is_better(metric: float | None, than: float | None) -> bool:
    """Return whether a metric is higher `than` another one; NaN and None, which are of nothing
    measured, never are, and every number is better than them.
    """
    return _is_number(metric) and (not _is_number(than) or metric > than)


def _is_number(value: float | None) -> bool:
    return value is not None and not math.isnan(value)

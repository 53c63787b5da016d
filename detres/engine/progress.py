"""How far a run is, and what it has shown so far: all that resuming needs beside weights and optimizer."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

_MEMORY = 100
"""Steps over which the running training error is averaged."""


@dataclass
class Progress:
    """What a run has done; `fit` updates it in place, a checkpoint holds it.

    step: steps done. scores: step -> deciding metric of the evaluation there, None where there was nothing to measure.
    error_sum, error_weight: of the running mean of the training error, kept only while the warm-up waits for it. warmed_up:
    whether that mean has fallen below what the warm-up waits for.
    """

    step: int = 0
    scores: dict[int, float | None] = field(default_factory=dict)
    error_sum: float = 0.0
    error_weight: float = 0.0
    warmed_up: bool = False

    @property
    def best(self) -> float | None:
        """The best score so far; None before the first that could be measured."""
        return max(filter(_is_number, self.scores.values()), default=None)

    def see_error(self, error: float, threshold: float) -> None:
        """Take in the training error of one step, a fraction; below `threshold` on the running mean the warm-up is over."""
        keep = 1 - 1 / _MEMORY
        self.error_sum, self.error_weight = keep * self.error_sum + error, keep * self.error_weight + 1
        self.warmed_up = self.error_sum / self.error_weight < threshold

    def see_score(self, score: float | None) -> bool:
        """Take in the evaluation at this step; return whether it is better than all others. NaN and None never are."""
        others = [value for step, value in self.scores.items() if step != self.step and _is_number(value)]
        self.scores[self.step] = score
        return _is_number(score) and score > max(others, default=-math.inf)

    def to_dict(self) -> dict:
        """Return plain values for a checkpoint."""
        return asdict(self)


def _is_number(value: float | None) -> bool:
    return value is not None and not math.isnan(value)

"""The learning rate as a pure function of the step."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """Learning rate over `steps` steps, counted from 0.

    lr: the base rate, already scaled to the batch. Linear warm-up from `warmup_factor * lr` to lr over `warmup_steps`.
    "multistep": times `gamma` from each milestone on (py-faster-rcnn, the paper's 240k + 80k). "cosine": half a cosine from
    lr to 0, an option the paper does not have. Raises ValueError for milestones out of order.
    """

    lr: float
    steps: int
    shape: Literal["multistep", "cosine"] = "multistep"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    warmup_steps: int = 0
    warmup_factor: float = 1 / 3

    def __post_init__(self) -> None:
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"milestones {list(self.milestones)} are not in rising order")

    def at(self, step: int) -> float:
        """Return the rate used by step `step`, 0 <= step < steps."""
        rate = self.lr
        if step < self.warmup_steps:
            rate *= self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_steps
        if self.shape == "cosine":
            return rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return rate * self.gamma ** bisect.bisect_right(self.milestones, step)

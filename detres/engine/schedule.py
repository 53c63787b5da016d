"""The learning rate as a pure function of the step and, where a rule waits for it, of what the run
has shown so far.
"""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from detres.engine.progress import Progress


@dataclass(frozen=True)
class Schedule:
    """Learning rate over `steps` steps, counted from 0.

    lr: the base rate, already scaled to the batch. Linear warm-up from `warmup_factor * lr` to lr
    over `warmup_steps`; or, with `warmup_until_error`, `warmup_factor * lr` until the running
    training error is below that fraction (section 4.2: ResNet-110 at 0.01 until 80 %).
    "multistep": times `gamma` from each milestone on (py-faster-rcnn, the paper's 240k + 80k).
    "plateau": times `gamma` whenever `patience` evaluations in a row were not better than the best
    before (section 3.4: "when the error plateaus"; the paper does not say how it was judged).
    "cosine": half a cosine from lr to 0, an option the paper does not have. Raises ValueError for
    milestones out of order.
    """

    lr: float
    steps: int
    shape: Literal["multistep", "plateau", "cosine"] = "multistep"
    milestones: tuple[int, ...] = ()
    gamma: float = 0.1
    patience: int = 5
    warmup_steps: int = 0
    warmup_factor: float = 1 / 3
    warmup_until_error: float | None = None

    def __post_init__(self) -> None:
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError(f"milestones {list(self.milestones)} are not in rising order")

    def at(self, progress: Progress) -> float:
        """Return the rate of the step that comes after the `progress.step` that are done."""
        step, rate = progress.step, self.lr
        if self.waits_for_error(progress):
            rate *= self.warmup_factor
        elif step < self.warmup_steps:
            rate *= self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_steps
        if self.shape == "cosine":
            return rate * 0.5 * (1 + math.cos(math.pi * step / self.steps))
        drops = (
            self._plateaus(progress)
            if self.shape == "plateau"
            else bisect.bisect_right(self.milestones, step)
        )
        return rate * self.gamma**drops

    def advance(self, progress: Progress, terms: dict[str, Tensor]) -> None:
        """Count a step as done and, while the warm-up waits for it, take in its "top1_error".

        terms: name -> scalar tensor; raises KeyError where that one is waited for and missing.
        """
        if self.waits_for_error(progress):
            progress.see_error(terms["top1_error"].item(), self.warmup_until_error)
        progress.step += 1

    def waits_for_error(self, progress: Progress) -> bool:
        """Whether the warm-up goes on until the training error has fallen."""
        return self.warmup_until_error is not None and not progress.warmed_up

    def _plateaus(self, progress: Progress) -> int:
        """How often `patience` evaluations in a row brought nothing better."""
        plateaus, since, best = 0, 0, -math.inf
        for _, metric in sorted(progress.evaluations.items()):
            if metric is not None and metric > best:
                best, since = metric, 0
            else:
                since += 1
            if since == self.patience:
                plateaus, since = plateaus + 1, 0
        return plateaus

"""Averages of losses and times between two log records."""

from __future__ import annotations

import time

from torch import Tensor


class Meter:
    """Averages over the steps since the last record; reads the device only when flushed.

    data_s is the time spent waiting for batches, step_s the time of the steps; evaluation and
    saving are in neither.
    """

    def __init__(self) -> None:
        self._clear()
        self.wait_for_data()

    def wait_for_data(self) -> None:
        """The clock of `data_s` runs from here."""
        self.mark = time.monotonic()

    def data_ready(self) -> None:
        """A batch is there: the clock of `step_s` runs from here."""
        self.data_s += self._lap()

    def step_done(self, values: dict[str, Tensor], num_images: int) -> None:
        """Take in one step: name -> scalar tensor, and how many images it saw."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().float()
        self.steps += 1
        self.images += num_images
        self.step_s += self._lap()

    def mean(self, name: str) -> float:
        """Return the mean of a value since the last record; raises KeyError for an unknown name."""
        return (self.sums[name] / self.steps).item()

    def flush(self) -> dict[str, float]:
        """Return the means since the last record, and begin anew."""
        record = {name: self.mean(name) for name in self.sums}
        record |= {"step_s": self.step_s / self.steps, "data_s": self.data_s / self.steps}
        record["images_per_s"] = self.images / max(self.step_s + self.data_s, 1e-9)
        self._clear()
        return record

    def _clear(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = self.images = 0
        self.data_s = self.step_s = 0.0

    def _lap(self) -> float:
        before, self.mark = self.mark, time.monotonic()
        return self.mark - before

"""Averages of losses and times between two log records."""

from __future__ import annotations

import math
import time

import torch
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

    def data_ready(self) -> float:
        """A batch is there: the clock of `step_s` runs from here; returns the s of waiting."""
        waited = self._lap()
        self.data_s += waited
        return waited

    def step_done(self, values: dict[str, Tensor], num_images: int) -> float:
        """Take in one step: name -> scalar tensor, and how many images it saw; returns its s."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.detach().float()
        self.steps += 1
        self.images += num_images
        took = self._lap()
        self.step_s += took
        return took

    def mean(self, name: str) -> float:
        """Return the mean of a value since the last record; raises KeyError for an unknown name."""
        return (self.sums[name] / self.steps).item()

    def means(self) -> dict[str, float]:
        """Return the means of all values since the last record, by name."""
        return {name: self.mean(name) for name in self.sums}

    @property
    def images_per_s(self) -> float:
        """Images a second since the last record, waiting for batches included."""
        return self.images / max(self.step_s + self.data_s, 1e-9)

    def flush(self) -> dict[str, float]:
        """Return the means since the last record, and begin anew."""
        record = self.means()
        record |= {"step_s": self.step_s / self.steps, "data_s": self.data_s / self.steps}
        record["images_per_s"] = self.images_per_s
        self._clear()
        return record

    def state(self) -> dict:
        """Return what it holds, for a checkpoint: plain values and scalar tensors."""
        return {
            "sums": {name: value.cpu() for name, value in self.sums.items()},
            "steps": self.steps,
            "images": self.images,
            "step_s": self.step_s,
            "data_s": self.data_s,
        }

    def restore(self, saved: dict) -> None:
        """Go on from `state`; raises ValueError, TypeError or KeyError when it is none."""
        sums = saved["sums"]
        for name, value in sums.items():
            if not isinstance(value, Tensor) or value.shape != () or value.dtype != torch.float32:
                raise ValueError(f"the sum of {name!r:.40} is no float32 scalar")
        counts = [saved["steps"], saved["images"]]
        times = [saved["step_s"], saved["data_s"]]
        if not all(type(count) is int and 0 <= count < 2**53 for count in counts):
            raise ValueError(f"{counts!r:.60} are no numbers of steps and images")
        if not all(type(time) is float and 0 <= time < math.inf for time in times):
            raise ValueError(f"{times!r:.60} are no seconds")
        if bool(sums) != (counts[0] > 0):
            raise ValueError(f"sums over {counts[0]} steps: {len(sums)}")
        self.sums = dict(sums)
        (self.steps, self.images), (self.step_s, self.data_s) = counts, times

    def _clear(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = self.images = 0
        self.data_s = self.step_s = 0.0

    def _lap(self) -> float:
        before, self.mark = self.mark, time.monotonic()
        return self.mark - before

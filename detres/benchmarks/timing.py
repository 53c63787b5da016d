"""Timing one job done in two ways, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from detres.console import write_line


@dataclass(frozen=True)
class Timing:
    """How jobs are timed: where, and how often each; the median counts."""

    device: torch.device
    repeats: int

    def row(
        self,
        job: str,
        ours: Callable[[], object],
        theirs: Callable[[], object],
        names: tuple[str, str] = ("ours", "torchvision"),
    ) -> None:
        """Run both in turns, after one run each that is not counted, and print their median times
        under `names`.
        """
        times: tuple[list[float], list[float]] = ([], [])
        for repeat in range(self.repeats + 1):
            for call, found in zip((ours, theirs), times, strict=True):
                started = time.perf_counter()
                call()
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                if repeat:
                    found.append(time.perf_counter() - started)
        mine, other = map(statistics.median, times)
        write_line(
            f"{job:<58}  {names[0]} {mine:8.4f} s  {names[1]} {other:8.4f} s  "
            f"{other / mine:6.2f} times as fast"
        )

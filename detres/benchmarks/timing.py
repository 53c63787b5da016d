"""Timing one job done in several ways, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from detres.console import write_line

Row = dict[str, object]
"""One line of a benchmark as a record."""


@dataclass(frozen=True)
class Timing:
    """How jobs are timed: where, and how often each; the median counts. rows: what was found."""

    device: torch.device
    repeats: int
    rows: list[Row] = field(default_factory=list)

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
        self.contest(job, dict(zip(names, (ours, theirs), strict=True)))

    def contest(
        self,
        job: str,
        ways: Mapping[str, Callable[[], object]],
        *,
        flop: float | None = None,
        rates: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """Run all `ways` of a job in turns, after one run each that is not counted, print the
        median seconds of each and how many times as fast as the last it is, and return them.

        flop: floating-point operations of the job, of all ways but the last. rates: way ->
        operations a second that the machine does at best in its precision.
        """
        times: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(self.repeats + 1):
            for name, call in ways.items():
                started = time.perf_counter()
                call()
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                if repeat:
                    times[name].append(time.perf_counter() - started)
        found = {name: statistics.median(each) for name, each in times.items()}
        *mine, peer = found
        for name in mine:
            line = (
                f"{job:<58}  {name} {found[name]:8.4f} s  {peer} {found[peer]:8.4f} s  "
                f"{found[peer] / found[name]:6.2f} times as fast"
            )
            row: Row = {"job": job, "way": name, "s": found[name], "peer": peer}
            row |= {"peer_s": found[peer], "ratio": found[peer] / found[name]}
            if flop is not None and rates is not None and name in rates:
                rate = flop / found[name]
                share = rate / rates[name]
                line += f"  {rate / 1e9:.0f} GFLOP/s, {share:.0%} of the best"
                row |= {"gflop": flop / 1e9, "gflop_s": rate / 1e9, "share_of_best": share}
            self.add(row, line)
        return found

    def add(self, row: Row, line: str) -> None:
        """Keep a row, and print it as `line`."""
        self.rows.append(row)
        write_line(line)

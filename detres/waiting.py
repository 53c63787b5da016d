"""What a user sees while something takes long: a bar on a terminal, a line now and then elsewhere.

Both on standard error, and nothing at all where it is soon over.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from detres.console import clock, write_line

Item = TypeVar("Item")

PASS_S = 15.0
"""What is `soon` of a pass of a network over data."""

_SOON_S = 3.0
_EVERY_S = 30.0

_LARGE = 30_000_000
"""Bytes of JSON that take about a second to read."""


def counted(
    items: Iterable[Item], what: str, unit: str, *, soon: float = _SOON_S
) -> Iterator[Item]:
    """Pass `items` on and, where that takes longer than `soon` seconds, show how far it is: `what`
    is done, and to how many of a `unit` (in the plural).
    """
    total = len(items) if isinstance(items, Sized) else None
    if sys.stderr.isatty():
        delay = min(soon, _SOON_S)
        yield from tqdm(
            items, desc=what, unit=f" {unit}", total=total, leave=False, delay=delay, disable=None
        )
        return
    started = time.monotonic()
    due = started + soon
    for number, item in enumerate(items):
        now = time.monotonic()
        if now >= due and number:
            due = now + _EVERY_S
            of, left = "", ""
            if total is not None:
                of = f" of {total}"
                left = f", {clock((now - started) / number * (total - number))} left"
            write_line(f"{what}: {number}{of} {unit}{left}", sys.stderr)
        yield item


def say_reading(path: str | Path) -> None:
    """Say that a file is being read, where it is so large that this takes a while; one that is not
    there is left to who reads it.
    """
    try:
        size = os.stat(path).st_size
    except (OSError, ValueError):
        return
    if size >= _LARGE:
        write_line(f"reading {path}, {size / 1e6:.0f} MB", sys.stderr)


@contextlib.contextmanager
def counting_bytes(
    what: str, expected: int | None = None
) -> Iterator[Callable[[int, int | None], None]]:
    """Give what is called, while a file comes over a network, with its bytes that are there and
    those of all of it (None: nobody says); the first call says what is done and how large it is,
    and where it goes on.

    expected: the bytes of all of it, for where nobody says.
    """
    with contextlib.ExitStack() as stack:
        shown: list[_Bytes] = []

        def report(done: int, total: int | None) -> None:
            total = expected if total is None else total
            if not shown:
                size = "its size is not known" if total is None else f"{total / 1e6:.1f} MB"
                there = f", {done / 1e6:.1f} of them here already" if done else ""
                write_line(f"{what}: {size}{there}", sys.stderr)
                shown.append(_Bytes(what, done, total))
                stack.callback(shown[0].close)
            shown[0].show(done, total)

        yield report


class _Bytes:
    """How far a file is: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, what: str, first: int, total: int | None) -> None:
        self.name, self.first = what.rpartition("/")[2], first
        self.started = time.monotonic()
        self.due = self.started + _EVERY_S
        self.bar: tqdm | None = None
        if sys.stderr.isatty():
            how = {"unit": "B", "unit_scale": True, "leave": False}
            self.bar = tqdm(desc=self.name, total=total, initial=first, **how)

    def show(self, done: int, total: int | None) -> None:
        if self.bar is not None:
            self.bar.total = total
            self.bar.update(done - self.bar.n)
            return
        now = time.monotonic()
        if now < self.due:
            return
        self.due = now + _EVERY_S
        of, left = "", ""
        if total is not None:
            of = f" of {total / 1e6:.1f}"
            if done > self.first:
                pace = (now - self.started) / (done - self.first)
                left = f", {clock(pace * (total - done))} left"
        write_line(f"{self.name}: {done / 1e6:.1f}{of} MB{left}", sys.stderr)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

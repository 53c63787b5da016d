"""What a user sees while something takes long: a bar on a terminal, a line now and then elsewhere.

Both on standard error, and nothing at all where it is soon over.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
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

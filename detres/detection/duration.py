"""Times as people write them: 30m, 1h30m."""

from __future__ import annotations

import math
import re

LEAST_SECONDS = 30
"""Less does not hold measuring how long a step takes, and a run."""

LENGTHS = ("train.steps", "train.epochs")
"""Settings that say how long a run is, as a time does."""

_UNITS = {"h": 3600, "m": 60, "s": 1}


def seconds_of(text: str) -> int:
    """Return the seconds of a time such as 30m, 90s, 2h or 1h30m; raises ValueError for another
    text, and for less than LEAST_SECONDS.
    """
    match = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,5})m)?(?:(\d{1,6})s)?", text.strip().lower())
    if match is None or not any(match.groups()):
        raise ValueError(f"{text!r} is no time: write it as 30m, 90s, 2h or 1h30m")
    numbers = zip(match.groups(), _UNITS.values(), strict=True)
    seconds = sum(int(number or 0) * unit for number, unit in numbers)
    if seconds < LEAST_SECONDS:
        raise ValueError(
            f"{text} is too short: measuring how long a step takes, and a run, need at least "
            f"{LEAST_SECONDS}s"
        )
    return seconds


def in_units(seconds: float) -> str:
    """Return a time as `seconds_of` reads it, in whole minutes from two on, rounded up."""
    if seconds < 120:
        return f"{math.ceil(seconds)}s"
    hours, minutes = divmod(math.ceil(seconds / 60), 60)
    return "".join(f"{number}{unit}" for number, unit in ((hours, "h"), (minutes, "m")) if number)

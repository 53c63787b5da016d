"""Where runs are, by their names."""

from __future__ import annotations

import re
from pathlib import Path

RUNS = Path("runs")
"""Where run folders are made and looked for, below the working directory."""


CONFIG = "config.yaml"


def folders_called(name: str) -> list[Path]:
    """Return what is there of runs/NAME, and of runs/NAME-2, ..., in no order; of these not the
    ones whose configuration gives the run another name, such as NAME-2 itself.
    """
    named = re.compile(rf"{re.escape(name)}(-\d+)?")
    return [
        path
        for path in RUNS.glob("*")
        if path.name == name or (named.fullmatch(path.name) and _own_name(path) in (None, name))
    ]


def _own_name(folder: Path) -> str | None:
    """The name in the configuration of a run; None where that does not say it."""
    try:
        with (folder / CONFIG).open(encoding="utf-8", errors="replace") as file:
            first = file.readline()
    except OSError:
        return None
    key, colon, value = first.partition(":")
    return value.strip().strip("'\"") if colon and key == "name" else None

"""Where runs are, by their names."""

from __future__ import annotations

import re
from pathlib import Path

RUNS = Path("runs")
"""Where run folders are made and looked for, below the working directory."""


def folders_called(name: str) -> list[Path]:
    """Return what is there of runs/NAME, runs/NAME-2, ..., in no order."""
    named = re.compile(rf"{re.escape(name)}(-\d+)?")
    return [path for path in RUNS.glob("*") if named.fullmatch(path.name)]

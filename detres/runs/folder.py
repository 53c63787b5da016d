"""The run folder: its place, and every file name in it."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

RUNS = Path("runs")
"""Where run folders are made and looked for, below the working directory."""

CONFIG = "config.yaml"
CONFIG_UNTIL = "config-until-step-{step}.yaml"
ENVIRONMENT = "env.json"
RECORDS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
STATE = "last.pt"
NONFINITE = "nonfinite.json"
SKIPPED = "skipped.txt"
METRICS = "metrics.json"
DETECTOR_WEIGHTS = "best.safetensors"
CLASSIFIER_WEIGHTS = "weights.safetensors"
PREDICTIONS = "predictions.json"
PICTURE = "val.jpg"


class RunFolderError(ValueError):
    """A run folder that cannot be used as asked."""


class NoRunError(FileNotFoundError):
    """There is no run that could be resumed."""


def new_run_folder(name: str, out: str | Path | None = None) -> Path:
    """Create and return the folder of a new run: `out`, or runs/<name>, or the first free
    runs/<name>-2, -3, ...

    Raises RunFolderError when `out` is a file or already holds files; nothing in it is touched.
    """
    folder = Path(out) if out is not None else _next_free(RUNS / name)
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file")
    if folder.exists() and any(folder.iterdir()):
        raise RunFolderError(f"{folder} already holds files and is left as it is")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise RunFolderError(
            f"the run folder {folder} cannot be made: a part of its path is a file"
        ) from None
    return folder


def newest_run(name: str) -> Path:
    """Return runs/NAME or runs/NAME-2, ..., whichever has the newest last.pt.

    Raises NoRunError when none has one.
    """
    named = re.compile(rf"{re.escape(name)}(-\d+)?")
    states = [path for path in RUNS.glob(f"*/{STATE}") if named.fullmatch(path.parent.name)]
    if not states:
        raise NoRunError(f"no run to resume: no {STATE} in {RUNS / name}, {RUNS / name}-2, ...")
    return max(states, key=lambda path: path.stat().st_mtime).parent


def _next_free(folder: Path) -> Path:
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    candidates = itertools.chain([folder], numbered)
    return next(candidate for candidate in candidates if not candidate.exists())

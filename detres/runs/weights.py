"""The weights that a user names: a file, a run folder, or a run."""

from __future__ import annotations

from pathlib import Path

from detres.runs.folder import CLASSIFIER_WEIGHTS, DETECTOR_WEIGHTS, NoRunError, newest_run
from detres.user_files import expanded


def find_weights(file_or_name: str | Path) -> Path:
    """Return the weights file that is meant: the file itself, that of a run folder, or that of a
    run by its name (of runs/NAME, runs/NAME-2, ... the one saved last).

    What is none of these is returned as it is, for whoever reads it to say so.
    """
    path = Path(expanded(str(file_or_name)))
    if not path.exists() and path.name == str(path):
        try:
            path = newest_run(path.name)
        except NoRunError:
            return path
    for name in (DETECTOR_WEIGHTS, CLASSIFIER_WEIGHTS):
        if (path / name).is_file():
            return path / name
    return path

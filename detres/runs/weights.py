"""The weights that a user names: a file, a run folder, or a run."""

from __future__ import annotations

from pathlib import Path

from detres.runs.folder import NoRunError, newest_run, weights_in
from detres.user_files import expanded


def find_weights(file_or_name: str | Path) -> Path:
    """Return the file that is meant: the file itself, or what `weights_in` chooses of a run folder,
    or of a run by its name (of runs/NAME, runs/NAME-2, ... the one saved last).

    A file that is not there is returned as it is, for whoever reads it to say so. Raises
    CheckpointError for a folder without weights.
    """
    path = Path(expanded(str(file_or_name)))
    if not path.exists() and path.name == str(path):
        try:
            path = newest_run(path.name)
        except NoRunError:
            return path
    return weights_in(path)

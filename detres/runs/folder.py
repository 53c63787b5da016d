"""The run folder: its place, every file name in it, and who may have it."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from detres.files import CheckpointError
from detres.runs.lock import FolderLock, InUseError, is_lock
from detres.runs.place import CONFIG, RUNS, folders_called

CONFIG_UNTIL = "config-until-step-{step}.yaml"
ENVIRONMENT = "env.json"
RECORDS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
STATE = "last.pt"
PREVIOUS = "previous.pt"
DAMAGED = "damaged.pt"
LOCK = "lock.json"
SKIPPED = "skipped.txt"
METRICS = "metrics.json"
DETECTOR_WEIGHTS = "best.safetensors"
CLASSIFIER_WEIGHTS = "weights.safetensors"
PREDICTIONS = "predictions.json"
PICTURE = "val.jpg"
CURVES_PICTURE, CURVES_TABLE = "curves.png", "curves.csv"
PR_PICTURE, PR_TABLE, PR_JSON = "pr.png", "pr.csv", "pr.json"
CONFUSION_PICTURE, CONFUSION_TABLE = "confusion.png", "confusion.csv"
CONFUSION_JSON = "confusion.json"
CLASSES_TABLE = "classes.csv"
PHASE = "phase.json"
TRAIN_PROPOSALS = "train_proposals.safetensors"
VAL_PROPOSALS = "val_proposals.safetensors"
SPLIT = "split.json"

_BEFORE_A_STATE = {LOCK, CONFIG, ENVIRONMENT, RECORDS, TENSORBOARD, SPLIT}
"""What a run writes before its first state."""

_WRITTEN = (CONFIG, ENVIRONMENT, RECORDS, STATE, PREVIOUS, SKIPPED, METRICS)
_WRITTEN += (DETECTOR_WEIGHTS, CLASSIFIER_WEIGHTS, PREDICTIONS, PICTURE)
_WRITTEN += (CURVES_PICTURE, CURVES_TABLE, PR_PICTURE, PR_TABLE, PR_JSON, CLASSES_TABLE)
_WRITTEN += (CONFUSION_PICTURE, CONFUSION_TABLE, CONFUSION_JSON)
_WRITTEN += (PHASE, TRAIN_PROPOSALS, VAL_PROPOSALS, SPLIT)
_UNFINISHED = re.compile(
    rf"\.({'|'.join(map(re.escape, _WRITTEN))}|config-until-step-\d+\.yaml|bundle-step-[\w-]+)"
    r"\.\d+\.tmp"
)


class RunFolderError(ValueError):
    """A run folder that cannot be used as asked."""


class NoRunError(FileNotFoundError):
    """There is no run that could be resumed."""


class NothingSavedError(NoRunError):
    """A run that was stopped before its first state; folder: its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"nothing was saved yet in {folder}")
        self.folder = folder


def new_run_folder(name: str, out: str | Path | None = None) -> FolderLock:
    """Make the folder of a new run and return its lock: `out`, or runs/<name>, or the first free
    runs/<name>-2, -3, ...

    One that is empty, or of a run that was killed before its first state, is free too. Of two
    processes that ask at once each gets a folder of its own. Raises RunFolderError when `out` is a
    file, already holds files (nothing in it is touched) or cannot be made, InUseError when another
    process works in it.
    """
    if out is not None:
        return _claim(Path(out))
    for folder in _numbered(RUNS / name):
        if folder.exists() and not (folder.is_dir() and _is_free(folder)):
            continue
        with contextlib.suppress(_TakenError, InUseError):
            return _claim(folder)
    raise AssertionError("there is always another number")


def newest_run(name: str) -> Path:
    """Return runs/NAME or runs/NAME-2, ..., whichever was saved last.

    Raises NoRunError when none was, naming runs of other names, NothingSavedError where one was
    begun.
    """
    called, saved = folders_called(name), saved_runs()
    of_name = [folder for folder in saved if folder in called]
    if of_name:
        return of_name[0]
    begun = sorted(folder for folder in called if (folder / LOCK).is_file())
    if begun:
        raise NothingSavedError(begun[-1])
    there = f"; the newest of others is {saved[0]}" if saved else ""
    raise NoRunError(f"no run to resume: no {STATE} in {RUNS / name}, {RUNS / name}-2, ...{there}")


def is_saved(folder: Path) -> bool:
    """Return whether a run was saved in `folder`, so that it can be resumed."""
    return _last_saved(folder) is not None


def saved_runs() -> list[Path]:
    """Return the folders below runs/ in which a run was saved, the one saved last first."""
    saved = {path: time for path in RUNS.glob("*") if (time := _last_saved(path)) is not None}
    return sorted(saved, key=saved.__getitem__, reverse=True)


def weights_in(path: Path) -> Path:
    """Return the file to evaluate or predict with: of a run folder the weights it has kept, those
    of the state it was stopped in where it has kept none yet; any other path as it is.

    Raises CheckpointError for a folder in which there is neither.
    """
    if not path.is_dir():
        return path
    for name in (DETECTOR_WEIGHTS, CLASSIFIER_WEIGHTS, STATE, PREVIOUS):
        if (path / name).is_file():
            return path / name
    if (path / PHASE).is_file():
        steps = sorted(folder for folder in path.iterdir() if (folder / STATE).is_file())
        said = f"give the folder of one, {steps[-1]}" if steps else "resume it first"
        raise CheckpointError(f"{path} is a run of four steps that are not done: {said}")
    if (path / LOCK).is_file():
        raise CheckpointError(f"nothing was saved yet in {path}: resume its run first")
    raise CheckpointError(
        f"{path} is a folder without {DETECTOR_WEIGHTS}, {CLASSIFIER_WEIGHTS} or {STATE}; give a "
        "weights file or the folder of a run"
    )


def _last_saved(folder: Path) -> float | None:
    """When a run was saved last, in s; that of several steps in the one it is in. None: never."""
    states = [folder / file for file in (STATE, PREVIOUS, PHASE)]
    if (folder / PHASE).is_file():
        states += folder.glob(f"*/{STATE}")
    return max((path.stat().st_mtime for path in states if path.is_file()), default=None)


def remove_unfinished(folder: Path) -> None:
    """Remove the files that a process killed while it wrote them had not finished; for who has the
    lock of `folder`.
    """
    for path in folder.iterdir():
        if not _UNFINISHED.fullmatch(path.name):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


class _TakenError(RunFolderError):
    """The folder holds files."""


def _numbered(folder: Path) -> Iterator[Path]:
    yield folder
    for number in itertools.count(2):
        yield folder.with_name(f"{folder.name}-{number}")


def _claim(folder: Path) -> FolderLock:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if not folder.is_dir():
            raise RunFolderError(f"{folder} is a file") from None
        _require_free(folder)
    except NotADirectoryError:
        raise RunFolderError(
            f"the run folder {folder} cannot be made: a part of its path is a file"
        ) from None
    except OSError as error:
        raise RunFolderError(f"the run folder {folder} cannot be made: {error.strerror}") from None
    lock = FolderLock(folder / LOCK)
    try:
        _require_free(folder)  # now that no other process can fill it
        for path in folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
    except BaseException:
        lock.release()
        raise
    return lock


def _require_free(folder: Path) -> None:
    if not _is_free(folder):
        FolderLock.require_free(folder / LOCK)
        raise _TakenError(f"{folder} already holds files and is left as it is")


def _is_free(folder: Path) -> bool:
    """Whether a folder is empty, or what a run left that was killed before its first state."""
    files = {path.name: path for path in folder.iterdir()}
    if not files:
        return True
    unknown = {name for name in files if not _UNFINISHED.fullmatch(name)} - _BEFORE_A_STATE
    records = files.get(RECORDS)
    return (
        LOCK in files
        and is_lock(files[LOCK])
        and not unknown
        and (records is None or records.stat().st_size == 0)
    )

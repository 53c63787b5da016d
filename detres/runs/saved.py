"""A run that was stopped: what is read of it before it goes on."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from detres.config import ConfigError, Section, by_key, check, load_config, with_overrides
from detres.engine.progress import Progress
from detres.files import CheckpointError
from detres.runs import folder as names
from detres.runs.lock import FolderLock
from detres.runs.resumable import MAY_CHANGE
from detres.runs.settings import with_data_root
from detres.runs.state import (
    DamagedStateError,
    load_state,
    reading_field,
    require_keys,
    require_whole,
)

AnySection = TypeVar("AnySection", bound=Section)

STATE_KEYS = ("config", "classes", "num_images", "progress", "model", "optimizer")

_WINGS = ("localisation", "detection", "classification")

_KEYS_SINCE_2 = ("format", "wing", "data", "environment", "meter")
"""What states of format 2 hold beside; those of format 1 have none of them."""


class OtherWingError(ValueError):
    """A run of the other wing; folder: its own; wing: its own."""

    def __init__(self, folder: Path, wing: str, asked: str) -> None:
        super().__init__(f"{folder} is a run of {wing}, not of {asked}")
        self.folder, self.wing = folder, wing


@dataclass(frozen=True)
class SavedRun:
    """A run folder to be resumed: what its last.pt holds, and the configuration to go on with.

    path: of the state that was read, previous.pt where last.pt is damaged. notes: what is to be
    said, that and where config.yaml has other settings than the state. stamp: of the state's file,
    to tell whether it has been written since.
    """

    folder: Path
    path: Path
    state: dict
    config: Section
    earlier: Section
    notes: tuple[str, ...]
    stamp: tuple[int, int, int] | None

    @classmethod
    def read(
        cls,
        folder: Path,
        kind: type[Section],
        *,
        wing: str,
        keys: Sequence[str] = (),
        overrides: Sequence[str] = (),
        root: str | None = None,
    ) -> SavedRun:
        """Read the last.pt of `folder`.

        kind: of its configuration. wing: that its run must be of. keys: what it must hold beside
        STATE_KEYS. overrides: "key=value" settings that are to be otherwise. root: where the data
        are now.

        Raises CheckpointError naming the file when it is missing, or damaged and without an earlier
        one beside it, or of another kind; OtherWingError, NothingSavedError, InUseError,
        ConfigError for overrides that do not fit, and what with_data_root raises.
        """
        if folder.is_file():
            raise CheckpointError(
                f"{folder} is a file; a run is resumed by its folder, {folder.parent}"
            )
        if (folder / names.PHASE).is_file() and wing != "detection":
            raise OtherWingError(folder, "detection", wing)
        FolderLock.require_free(folder / names.LOCK)
        path, note = _state_to_read(folder)
        stamp = _stamp(path)
        state = read_state(path, wing, *keys)
        if any(key in state for key in _KEYS_SINCE_2):
            require_keys(path, state, _KEYS_SINCE_2)
        with reading_field(path, "num_images"):
            _require_count(state["num_images"])
        with reading_field(path, "model"):
            _require_tensors(state["model"])
        earlier = config_of_state(path, state, kind)
        notes = () if note is None else (note,)
        overridden = {setting.partition("=")[0] for setting in overrides}
        notes += _of_other_settings(folder / names.CONFIG, earlier, path, overridden)
        config = with_overrides(earlier, overrides, str(path)) if overrides else earlier
        if config.train != earlier.train:
            _require_not_over(path, state, config)
        if root:
            config = config.model_copy(update={"data": with_data_root(config.data, root)})
        return cls(folder, path, state, config, earlier, notes, stamp)

    @property
    def computes_alike(self) -> bool:
        """Whether it was deterministic: torch computed equal results from equal inputs."""
        with reading_field(self.path, "environment"):
            return self.state.get("environment", {}).get("deterministic") is True

    @property
    def is_of_format_1(self) -> bool:
        """Whether an earlier version wrote the state."""
        return "format" not in self.state

    def take_over(self) -> FolderLock:
        """Return the lock of the folder, what was left unfinished in it removed.

        Raises InUseError, and CheckpointError when the state was written since it was read.
        """
        lock = FolderLock(self.folder / names.LOCK)
        try:
            if _stamp(self.path) != self.stamp:
                raise CheckpointError(
                    f"{self.path} was written by another process while it was read: resume again"
                )
            names.remove_unfinished(self.folder)
        except BaseException:
            lock.release()
            raise
        return lock

    def put_in_place(self) -> None:
        """Where the state was read from previous.pt, make that last.pt; a damaged last.pt is kept
        as damaged.pt.
        """
        path = self.folder / names.STATE
        if self.path != path:
            if path.exists():
                os.replace(path, self.folder / names.DAMAGED)
            os.replace(self.path, path)


def read_state(path: Path, wing: str, *keys: str) -> dict:
    """Return what the training state at `path` holds, `keys` beside STATE_KEYS.

    wing: that its run must be of. Raises CheckpointError naming the file when it is missing,
    damaged or of another kind, OtherWingError.
    """
    state = load_state(path, STATE_KEYS)
    _require_wing(path, state, wing)
    require_keys(path, state, keys)
    return state


def config_of_state(path: Path, state: dict, kind: type[AnySection]) -> AnySection:
    """Return the configuration, of a `kind`, that the state read from `path` was trained by; raises
    CheckpointError where it holds none, ConfigError.
    """
    with reading_field(path, "config"):
        tree = json.loads(state["config"])
        if not isinstance(tree, dict):
            raise TypeError(f"a {type(tree).__name__}")
    return check(kind, tree, str(path))


def weights_of_state(path: Path, state: dict) -> dict[str, Tensor]:
    """Return the tensors, of any shape (...,), that the state read from `path` is evaluated by: the
    moving average of the weights where it has one, else the weights.
    """
    name = "average" if "average" in state else "model"
    with reading_field(path, name):
        _require_tensors(state[name])
    return state[name]


def step_of_state(path: Path, state: dict) -> int:
    """Return how many steps the state read from `path` has done."""
    with reading_field(path, "progress"):
        return Progress.from_dict(state["progress"]).step


def wing_of_state(path: Path) -> str | None:
    """Return of which wing the run is whose training state is at `path`, last.pt under any name;
    None where the file is something else.

    No code in it is run. Raises, for a file called as one that cannot be read, what load_state
    raises.
    """
    if path.name not in _CALLED and not _looks_like_a_state(path):
        return None
    return _wing(path, load_state(path, STATE_KEYS))


_CALLED = (names.STATE, names.PREVIOUS, names.DAMAGED)


def _looks_like_a_state(path: Path) -> bool:
    """Whether an archive of torch.save has the keys of a state, by its directory alone."""
    try:
        if not path.is_file() or not zipfile.is_zipfile(path):
            return False
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # what it raises depends on what the archive holds instead
        return False
    return isinstance(found, dict) and set(STATE_KEYS) <= found.keys()


def _of_other_settings(
    file: Path, config: Section, path: Path, overridden: set[str]
) -> tuple[str, ...]:
    """What is to be said where config.yaml, the `file`, has other settings than the state at
    `path`. Raises CheckpointError where the state is an earlier one, and so of another run.
    """
    try:
        written = by_key(load_config(file, type(config)).model_dump(mode="json"))
    except (ValueError, OSError):  # gone, or edited: the state has all that a run needs
        return ()
    found = by_key(config.model_dump(mode="json"))
    keys = {key for key in {*written, *found} if written.get(key) != found.get(key)}
    others = sorted(keys - {"data.root"} - overridden)
    if not others:
        return ()
    said = f"{others[0]} is {written.get(others[0])} in {file}, {found.get(others[0])} in {path}"
    if path.name != names.STATE and not keys <= {"data.root", *MAY_CHANGE}:
        raise CheckpointError(
            f"{path} is of another run than its folder: {said}. Move it away, or {file.name} where "
            "that was changed"
        )
    return (f"{said}{f', and {len(others) - 1} more' if others[1:] else ''}: goes on as before",)


def _state_to_read(folder: Path) -> tuple[Path, str | None]:
    """The newest whole state of a folder, and what is to be said where that is not last.pt."""
    path, previous = folder / names.STATE, folder / names.PREVIOUS
    if not path.exists() and not previous.exists() and (folder / names.LOCK).is_file():
        raise names.NothingSavedError(folder)
    if not previous.is_file():
        return path, None
    if not path.exists():
        return previous, f"there is no {path}: goes on from {previous}"
    try:
        require_whole(path)
    except DamagedStateError as error:
        return previous, f"{error}; goes on from {previous}, and keeps it as {names.DAMAGED}"
    return path, None


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written anew; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _require_wing(path: Path, state: dict, wing: str) -> None:
    found = _wing(path, state)
    if found != wing:
        raise OtherWingError(path.parent, found, wing)


def _wing(path: Path, state: dict) -> str:
    """States of format 1 do not say theirs: a classifier's holds the input of its network."""
    found = state.get("wing", "classification" if "input" in state else "detection")
    with reading_field(path, "wing"):
        if not isinstance(found, str) or found not in _WINGS:
            raise ValueError(f"{found!r:.40}, expected {', '.join(_WINGS[:-1])} or {_WINGS[-1]}")
    return found


def _require_not_over(path: Path, state: dict, config: Section) -> None:
    """Raise ConfigError where a run is to end before the step that it has reached."""
    steps, _ = config.train.in_steps(state["num_images"])
    step = step_of_state(path, state)
    if steps < step:
        key = "epochs" if config.train.steps is None else "steps"
        of = f", {steps} steps" if key == "epochs" else ""
        raise ConfigError(
            f"train.{key}={getattr(config.train, key):g}{of}: the run is at step {step} already, "
            "which it cannot end before"
        )


def _require_count(value: object) -> None:
    if type(value) is not int or not 0 < value < 2**53:
        raise ValueError(f"{value!r:.40}, expected a number of images")


def _require_tensors(value: object) -> None:
    if not isinstance(value, dict):
        raise TypeError(f"a {type(value).__name__}, expected tensors by name")
    other = [name for name, item in value.items() if not isinstance(item, Tensor)]
    if other or not all(isinstance(name, str) for name in value):
        raise TypeError(f"no tensor at {other[:1]!s:.60}")

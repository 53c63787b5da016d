"""last.pt: all that a resumed run needs, as plain containers and tensors."""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from detres.files import (
    CheckpointError,
    DamagedFileError,
    check_archive,
    first_line,
    replacing,
)

FORMAT = 2
"""Of the states that are written; those of format 1 did not say theirs."""


class DamagedStateError(CheckpointError):
    """A training state that is not as it was written."""


def save_state(path: Path, state: dict, *, previous: Path | None = None) -> None:
    """Write a training state: plain containers, numbers, strings and tensors only, else TypeError
    naming the key.

    previous: where the file that is at `path` goes; None: it is replaced. At every moment one of
    the two is whole. Raises OSError naming `path` when it cannot be written.
    """
    _require_plain(state, "state")
    with replacing(path) as temporary:
        _write(state, temporary)
        if previous is not None and path.exists():
            os.replace(path, previous)


def load_state(path: Path, keys: tuple[str, ...], *, finite: bool = True) -> dict:
    """Read a training state written by `save_state` onto the CPU; `keys` are those it must have.

    finite: whether all of its tensors must be.

    Every byte is checked against the checksums of the archive. Raises DamagedStateError when it is
    cut short or changed, CheckpointError when it is missing, holds code (which is never run) or a
    tensor that is not finite, is of a later format or something else.
    """
    path = Path(path)
    require_whole(path)
    state = _loaded(path)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is not a training state: it holds a {type(state).__name__}")
    _require_known_format(path, state.get("format", 1))
    require_keys(path, state, keys)
    if finite:
        _require_finite(path, state)
    return state


def require_whole(path: Path) -> None:
    """Raise DamagedStateError when the training state at `path` is cut short or changed,
    CheckpointError when there is none or it is a file of another kind; nothing is loaded.
    """
    if not path.exists():
        raise CheckpointError(
            f"no training state at {path}; a run can be resumed once it has saved a last.pt"
        )
    if not path.is_file():
        raise CheckpointError(f"{path} is not a training state: it is no regular file")
    try:
        if not zipfile.is_zipfile(path):
            raise _no_archive(path)
        check_archive(path)
    except (OSError, CheckpointError):
        raise
    except DamagedFileError as error:
        raise DamagedStateError(f"{path} is damaged: {error.damage}") from None
    except Exception as error:  # what zipfile raises depends on where the damage is
        raise DamagedStateError(f"{path} is damaged: {first_line(error)}") from None


def require_keys(path: Path, state: dict, keys: Sequence[str]) -> None:
    """Raise CheckpointError naming what the state read from `path` lacks of `keys`."""
    missing = [key for key in keys if key not in state]
    if missing:
        found = ", ".join(map(str, list(state)[:8])) or "nothing"
        raise CheckpointError(
            f"{path} is not a training state of detres: it lacks {', '.join(missing)}; it holds "
            f"{found}"
        )


@contextlib.contextmanager
def reading_field(path: Path, key: str) -> Iterator[None]:
    """Turn what the block raises for a value that is not what was written there into a
    CheckpointError naming `path` and `key`.
    """
    try:
        yield
    except CheckpointError:
        raise
    except _WRONG_VALUE as error:
        missing = isinstance(error, LookupError)
        said = f"without {error}" if missing else first_line(error)
        raise CheckpointError(
            f"{path} is not a training state of detres: its '{key}' is not what a run writes "
            f"({said})"
        ) from None


_WRONG_VALUE = (
    *(ValueError, TypeError, LookupError, AttributeError),
    *(ArithmeticError, RecursionError, RuntimeError),
)


def _write(state: dict, path: Path) -> None:
    try:
        with path.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except RuntimeError as error:  # PyTorch's writer has one of its own for what the file said
        if not isinstance(error.__context__, OSError):
            raise
        raise error.__context__ from None


def _loaded(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} holds objects other than tensors and plain containers, which may be code; it "
            "was not loaded. Only the last.pt of a run can be resumed"
        ) from None
    except Exception as error:  # what it raises depends on what the archive holds instead
        raise DamagedStateError(f"{path} is not a training state: {first_line(error)}") from None


def _require_known_format(path: Path, version: object) -> None:
    if type(version) is int and 1 <= version <= FORMAT:
        return
    newer = type(version) is int and version > FORMAT
    raise CheckpointError(
        f"{path} is of format {version!r:.40}, and this detres reads 1 to {FORMAT}"
        + (": it was written by a newer detres, which can resume it" if newer else "")
    )


def _require_finite(path: Path, state: dict) -> None:
    """Go through all containers, each once: a file may hold one inside itself."""
    waiting: list[tuple[str, object]] = [(str(key), value) for key, value in state.items()]
    seen = {id(state)}
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, Tensor):
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
                raise CheckpointError(f"{path}: {where} is no plain tensor")
            if not value.isfinite().all():
                raise CheckpointError(
                    f"{path}: {where} has values that are not finite; nothing could be learnt from "
                    "there on"
                )
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{where}.{key}", item) for key, item in items]


def _no_archive(path: Path) -> CheckpointError:
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(b"\x80"):
        what = "it is a bare pickle, which may hold code; it was not loaded"
    elif start[8:] == b"{":
        what = "it is a .safetensors file, weights only; a run is resumed from its last.pt"
    elif not start:
        return DamagedStateError(f"{path} is not a training state: it is empty")
    elif start.startswith(b"PK"):
        return DamagedStateError(f"{path} is not a training state: it is cut short or damaged")
    else:
        return DamagedStateError(f"{path} is not a training state: it is a file of another kind")
    return CheckpointError(f"{path} is not a training state: {what}")


def _require_plain(value: object, where: str) -> None:
    """Exact types, not subclasses: numpy's float64 is a float, but weights_only would refuse to
    read it back.
    """
    if isinstance(value, Tensor) or type(value) in (type(None), bool, int, float, str):
        return
    if type(value) in (dict, OrderedDict):
        for key, item in value.items():
            if type(key) not in (str, int):
                raise TypeError(
                    f"{where}: key {key!r} is a {type(key).__name__}, expected str or int"
                )
            _require_plain(item, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _require_plain(item, f"{where}[{index}]")
    else:
        raise TypeError(
            f"{where} is a {type(value).__name__}, expected plain containers, numbers, strings and "
            "tensors"
        )

"""last.pt: all that a resumed run needs, as plain containers and tensors."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from detres.files import CheckpointError, first_line, replacing


def save_state(path: Path, state: dict) -> None:
    """Write a training state: plain containers, numbers, strings and tensors only, else TypeError
    naming the key.
    """
    _require_plain(state, "state")
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load_state(path: Path, keys: tuple[str, ...]) -> dict:
    """Read a training state written by `save_state` onto the CPU; `keys` are those it must have.

    Raises CheckpointError when the file is missing, cut short, holds code (which is never run) or
    is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"no training state at {path}; a run can be resumed once it has saved a last.pt"
        )
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is not a training state: {_what_it_is(path)}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path} holds objects other than tensors and plain containers, which may be code; it "
            "was not loaded. Only the last.pt of a run can be resumed"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is damaged or not a training state: {first_line(error)}"
        ) from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} is not a training state: it holds a {type(state).__name__}")
    missing = [key for key in keys if key not in state]
    if missing:
        found = ", ".join(map(str, list(state)[:8])) or "nothing"
        raise CheckpointError(
            f"{path} is not a training state of detres: it lacks {', '.join(missing)}; it holds "
            f"{found}"
        )
    return state


def _what_it_is(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        return "it is empty"
    if start.startswith(b"PK"):
        return "it is cut short or damaged"
    if start.startswith(b"\x80"):
        return "it is a bare pickle, which may hold code; it was not loaded"
    if start[8:] == b"{":
        return "it is a .safetensors file, weights only; a run is resumed from its last.pt"
    return "it is a file of another kind"


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

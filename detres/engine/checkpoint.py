"""Files of weights and of training state: written to a temporary name and renamed, read without
unpickling code.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as safetensors_bytes
from torch import Tensor, nn


class CheckpointError(ValueError):
    """A checkpoint or weights file that cannot be used; the message names the file and says why."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; when the block succeeds, flush it to disk and rename it
    over `path`.

    A crash or an error inside the block leaves the old file as it was. The folder is made when it
    is not there.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 in one step: readers see the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
            "was not loaded. "
            "Only the last.pt of a run can be resumed"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is damaged or not a training state: {_first_line(error)}"
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


def save_weights(path: Path, tensors: dict[str, Tensor], *, metadata: dict[str, str]) -> None:
    """Write tensors and string metadata as .safetensors, all contiguous: the format knows no
    channels_last.
    """
    plain = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors_bytes(plain, metadata=metadata))


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a .safetensors file: its tensors and its metadata (empty when it has none).

    Raises CheckpointError when there is no such file or it is not one.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable .safetensors file ({_first_line(error)}); a detector's "
            "weights are best.safetensors of its run"
        ) from None


def has_metadata(path: Path, keys: tuple[str, ...]) -> bool:
    """Whether `path` is a .safetensors file whose metadata have all `keys`; a file that cannot be
    read has none.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return set(keys) <= (file.metadata() or {}).keys()
    except (SafetensorError, OSError):
        return False


def require_metadata(metadata: dict[str, str], keys: tuple[str, ...], path: Path) -> None:
    """Raise CheckpointError unless the metadata of `path` has all `keys`."""
    missing = [key for key in keys if key not in metadata]
    if missing:
        raise CheckpointError(
            f"{path} holds weights but not what a detres detector needs beside them: "
            f"{', '.join(missing)}"
        )


def load_model_state(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load all of `tensors` into all of `model`; raises CheckpointError listing what does not fit,
    model unchanged.
    """
    own = model.state_dict()
    problems = [f"missing: {name}" for name in own if name not in tensors]
    problems += [f"unexpected: {name}" for name in tensors if name not in own]
    problems += [
        f"shape of {name}: file {tuple(tensors[name].shape)}, model {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if problems:
        listing = "\n  ".join(
            problems[:8] + ([f"and {len(problems) - 8} more"] if len(problems) > 8 else [])
        )
        raise CheckpointError(f"{path} holds weights of another architecture:\n  {listing}")
    model.load_state_dict(tensors)


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
            f"{where} is a {type(value).__name__}, expected plain containers, numbers, strings "
            "and tensors"
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

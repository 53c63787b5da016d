"""Files of weights and text: written to a temporary name and renamed, read without unpickling
code; and the cache folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from backbones.files import (
    check_archive,
    read_safetensors,
    read_safetensors_metadata,
    replacing,
    write_safetensors,
)

__all__ = [
    "CheckpointError",
    "cache_folder",
    "check_archive",
    "first_line",
    "has_metadata",
    "load_model_state",
    "load_weights",
    "replacing",
    "require_metadata",
    "write_safetensors",
    "write_text",
]


class CheckpointError(ValueError):
    """A checkpoint or weights file that cannot be used; the message names the file and says why."""


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 in one step: readers see the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a .safetensors file: its tensors and its metadata (empty when it has none).

    Raises CheckpointError when there is no such file or it is not one.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no weights file at {path}")
    try:
        return read_safetensors(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable .safetensors file ({first_line(error)}); a detector's "
            "weights are best.safetensors of its run"
        ) from None


def has_metadata(path: Path, keys: tuple[str, ...]) -> bool:
    """Whether `path` is a .safetensors file whose metadata have all `keys`; a file that cannot be
    read has none.
    """
    try:
        return set(keys) <= read_safetensors_metadata(path).keys()
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
    """Load all of `tensors`, of any shape (...,), into all of `model`; raises CheckpointError
    listing what does not fit, model unchanged.
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


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, the name of its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def cache_folder() -> Path:
    """Return the environment variable DETRES_CACHE, else ~/.cache/detres; it need not exist."""
    return Path(os.environ.get("DETRES_CACHE") or Path.home() / ".cache" / "detres")

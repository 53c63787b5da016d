"""Files are written to a temporary name, flushed and renamed: a crash leaves the old one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary name beside `path`; when the block succeeds, flush it to disk and rename it
    over `path`.

    A crash or an error inside the block leaves the old file as it was. The folder is made when it
    is not there. Raises OSError when the file cannot be written.
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


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]
) -> None:
    """Write `tensors` of any shape (...,), device and memory format, and string metadata, in one
    step.

    All become contiguous: the format knows no channels_last.
    """
    plain = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    with replacing(path) as temporary:
        # safetensors' own save_file would make it unreadable for others
        temporary.write_bytes(save(plain, metadata=metadata))


def read_safetensors_metadata(path: str | Path) -> dict[str, str]:
    """Return the metadata of a .safetensors file, empty when it has none, without its tensors.

    Raises OSError or SafetensorError when it is missing or damaged.
    """
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a .safetensors file and its metadata, empty when it has none.

    Raises OSError or SafetensorError when it is missing or damaged.
    """
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        return {name: file.get_tensor(name) for name in names}, file.metadata() or {}

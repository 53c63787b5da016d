"""Files of weights and text: written to a temporary name and renamed, read without unpickling
code; and the cache folder.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from torch import Tensor, nn

from backbones import PUBLISHED
from backbones.file_kinds import NotWeightsError, weights_kind
from backbones.files import (
    DamagedFileError,
    check_archive,
    read_safetensors,
    read_safetensors_metadata,
    replacing,
    require_digest,
    write_safetensors,
)
from backbones.weights import first_fault
from detres.user_files import expanded

__all__ = [
    "CheckpointError",
    "DamagedFileError",
    "TakenFolderError",
    "cache_folder",
    "check_archive",
    "first_line",
    "has_metadata",
    "load_model_state",
    "load_weights",
    "mapping",
    "metadata_field",
    "read_safetensors",
    "replacing",
    "require_digest",
    "require_free_folder",
    "require_metadata",
    "write_safetensors",
    "write_text",
    "writing_folder",
]

Made = TypeVar("Made")

WHAT_FILES_HOLD = {
    "a detector": ("format", "model", "classes", "data", "eval", "step"),
    "a localiser": ("localiser", "proposer", "classes", "step"),
    "a classifier": ("config", "classes", "step"),
    "a network alone": ("format", "traits", "input_spec"),
}
"""What a run's weights file is of -> the metadata it has; the first that fits."""

WHERE_WEIGHTS_ARE = (
    "a detector's weights are best.safetensors of its run, a classifier's weights.safetensors"
)


class CheckpointError(ValueError):
    """A checkpoint or weights file that cannot be used; the message names the file and says why."""


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 in one step: readers see the old file or the new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class TakenFolderError(ValueError):
    """A folder that was to be made and holds files."""


def require_free_folder(folder: Path) -> None:
    """Make `folder` as an empty one, which shows that files can be written in its place.

    Raises TakenFolderError for one that holds files, which are left as they are, or a file of that
    name, OSError naming it where none can be made there.
    """
    with writing_folder(folder):
        pass


def _require_empty(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise TakenFolderError(f"{folder} already holds files and is left as it is")


@contextlib.contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """Give a temporary folder beside `folder`, which must be empty or not be there; when the block
    succeeds, flush what is in it to disk and rename it to `folder`.

    A crash or an error inside the block leaves `folder` as it was. The folders above are made when
    they are not there. Raises TakenFolderError when `folder` holds files or is one, OSError naming
    it when it cannot be made.
    """
    _require_empty(folder)
    folder = Path(os.path.realpath(folder))
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process killed that had the same number
    try:
        temporary.mkdir(parents=True)
        yield temporary
        for path in temporary.rglob("*"):
            if path.is_file() and not path.is_symlink():
                with path.open("r+b") as file:
                    os.fsync(file.fileno())
        os.replace(temporary, folder)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise TakenFolderError(f"{folder} already holds files and is left as it is") from None
        if error.errno == errno.ENOTDIR:
            raise TakenFolderError(f"{folder}, or a part of its path, is a file") from None
        raise OSError(error.errno, error.strerror, str(folder)) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a .safetensors file: its tensors and its metadata (empty when it has none).

    Raises CheckpointError when there is no such file, it is damaged or not one; the message says
    what it is, and where a run's weights are.
    """
    path = Path(path)
    if path.is_dir():
        inside = [
            name for name in ("best.safetensors", "weights.safetensors") if (path / name).is_file()
        ]
        advice = f"give {path / inside[0]}" if inside else WHERE_WEIGHTS_ARE
        raise CheckpointError(f"{path} is a folder; {advice}")
    try:
        kind = weights_kind(path)
        if kind != "safetensors":
            what = "a pickle" if kind == "pickle" else "a file of torch.save"
            raise CheckpointError(
                f"{path} is {what}, not a run's .safetensors or last.pt; {WHERE_WEIGHTS_ARE}; of "
                "a detector of torchvision, detectron2 or Detectron `convert` makes weights"
            )
        return read_safetensors(path)
    except FileNotFoundError:
        raise CheckpointError(f"no weights file at {path}{_what_else(path)}") from None
    except DamagedFileError as error:
        raise CheckpointError(str(error)) from None
    except (NotWeightsError, OSError) as error:
        raise CheckpointError(f"{error}; {WHERE_WEIGHTS_ARE}") from None


def _what_else(path: Path) -> str:
    if path.as_posix() not in PUBLISHED:
        return ""
    return (
        ": that is the name of published weights of a backbone, which neither detects nor knows "
        "your classes; a model starts from them (weights of its network)"
    )


def has_metadata(path: Path, keys: tuple[str, ...]) -> bool:
    """Whether `path` is a .safetensors file whose metadata have all `keys`; a file that cannot be
    read has none.
    """
    try:
        return set(keys) <= read_safetensors_metadata(path).keys()
    except (DamagedFileError, OSError):
        return False


def require_metadata(metadata: Mapping[str, str], wanted: str, path: Path) -> None:
    """Raise CheckpointError unless the metadata of `path` are those of `wanted`, one of
    WHAT_FILES_HOLD; the message says what it is instead.
    """
    missing = [key for key in WHAT_FILES_HOLD[wanted] if key not in metadata]
    if not missing:
        return
    for other, keys in WHAT_FILES_HOLD.items():
        if set(keys) <= metadata.keys():
            raise CheckpointError(
                f"{path} holds the weights of {other}, not of {wanted}; {WHERE_WEIGHTS_ARE}"
            )
    raise CheckpointError(
        f"{path} holds weights but not what {wanted} needs beside them: {', '.join(missing)}; "
        f"{WHERE_WEIGHTS_ARE}"
    )


def metadata_field(
    metadata: Mapping[str, str], key: str, path: Path, make: Callable[[object], Made]
) -> Made:
    """Return what `make` makes of the JSON that the metadata of `path` have under `key`; raises
    CheckpointError when it is none, or nothing to make that of.
    """
    try:
        return make(json.loads(metadata[key]))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged or was edited: its metadata '{key}' cannot be read "
            f"({first_line(error):.200}); use another copy"
        ) from None


def mapping(value: object) -> dict:
    """Return `value`, raising TypeError unless it is a dict: what `metadata_field` makes of JSON
    objects, where dict would take lists of pairs too.
    """
    if not isinstance(value, dict):
        raise TypeError(f"a {type(value).__name__}, expected an object")
    return value


def load_model_state(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load all of `tensors`, of any shape (...,), into all of `model`; raises CheckpointError
    saying what does not fit, model unchanged: names, shapes, kinds of number, and values that are
    not finite.
    """
    require_fitting(model, tensors, path)
    fault = first_fault(tensors, model.state_dict())
    if fault is not None:
        raise CheckpointError(f"{path}: {fault}")
    model.load_state_dict(tensors)


def require_fitting(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Raise CheckpointError unless `tensors`, of any shape (...,), have the names and shapes of
    those of `model`, which may be on the meta device.
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
        more = f"; and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(
            f"{path} holds weights of another architecture:\n  {'; '.join(problems[:4])}{more}"
        )


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, the name of its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def cache_folder() -> Path:
    """Return the environment variable DETRES_CACHE, else ~/.cache/detres; it need not exist."""
    given = os.environ.get("DETRES_CACHE")
    return Path(expanded(given)) if given else Path.home() / ".cache" / "detres"

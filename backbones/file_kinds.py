"""What a file is by its first bytes: one that may hold weights, or another, said in words."""

from __future__ import annotations

import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from backbones.files import require_regular_file
from backbones.torch_files import EARLIER_FORM

WeightsKind = Literal["safetensors", "torch archive", "earlier torch file", "pickle", "caffe model"]


class NotWeightsError(ValueError):
    """A file that holds no weights; the message names it, says what it is and what to do."""


def weights_kind(path: Path) -> WeightsKind:
    """Return how the weights in a file are written, by its content and not by its name; whether it
    is whole is for its reader to say.

    Raises NotWeightsError for a file of another kind, and what require_regular_file raises.
    """
    require_regular_file(path)
    with path.open("rb") as file:
        start = file.read(512)
    if start.startswith(b"PK"):
        return _kind_of_zip(path)
    if start.startswith(EARLIER_FORM):
        return "earlier torch file"
    # A header's length, below 2^40, then JSON; the length may begin as a pickle or a model does.
    if start[5:9] == b"\0\0\0{":
        return "safetensors"
    found = next((words for is_kind, words in _KINDS if is_kind(start)), None)
    if found is None and path.suffix == ".caffemodel":
        return "caffe model"
    found = found or _by_name(path)
    if found is not None:
        raise NotWeightsError(f"{path} is {found}")
    if start[:1] == b"\x80" or path.suffix in (".pkl", ".pickle"):
        return "pickle"
    if tarfile.is_tarfile(path):
        raise NotWeightsError(f"{path} is {_of_tar(path)}")
    line = _first_line(start)
    if line is not None:
        raise NotWeightsError(
            f"{path} is a text file that begins with {line!r}, not a weights file: fetch it again"
        )
    if path.suffix == ".safetensors":
        return "safetensors"
    raise NotWeightsError(
        f"{path} is damaged or not a weights file: no known kind begins with "
        f"{start[:8].hex(' ')}. Give a .safetensors file or one of torch.save"
    )


def _kind_of_zip(path: Path) -> WeightsKind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except OSError:
        raise
    except Exception:  # what damage makes zipfile raise has no bounds
        return "torch archive"  # whose reader says that it is damaged
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside:
        raise NotWeightsError(
            f"{path} is a TorchScript archive, a program with its weights: save these alone, "
            "torch.save(torch.jit.load(FILE).state_dict(), OTHER_FILE)"
        )
    if "data.pkl" in inside:
        return "torch archive"
    if names and all(name.endswith(".npy") for name in names):
        raise NotWeightsError(
            f"{path} is an archive of numpy arrays: save them with torch.save as a mapping of "
            "names to tensors"
        )
    listed = f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}" or "nothing"
    raise NotWeightsError(
        f"{path} is a zip archive that holds {listed:.200}, not one of torch.save: unpack it and "
        "give the weights file in it"
    )


def _starts(*beginnings: bytes) -> Callable[[bytes], bool]:
    return lambda start: start.startswith(beginnings)


def _text_starts(*beginnings: bytes) -> Callable[[bytes], bool]:
    return lambda start: start.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(beginnings)


def _is_onnx(start: bytes) -> bool:
    """Its first fields, in this order: the version of the format, and the name of the producer."""
    return start[:1] == b"\x08" and start[1:2] <= b"\x20" and start[2:3] in (b"\x12", b":")


_TENSORFLOW = (
    "of TensorFlow: convert its variables, e.g. with tf.train.load_checkpoint, and save them with "
    "torch.save as a mapping of names to tensors"
)

_KINDS = (
    (lambda start: not start, "damaged or not a weights file: it is empty. Fetch it again"),
    (
        _starts(b"version https://git-lfs"),
        "a Git LFS pointer, a few lines of text in the place of the weights: fetch the file itself "
        "with `git lfs pull` where it is from",
    ),
    (
        _text_starts(b"<!doctype html", b"<html", b"<head", b"<body"),
        "a web page (HTML), not weights, as a download that was refused leaves one: look into it, "
        "and fetch the file again",
    ),
    (
        _text_starts(b"<?xml", b"<error", b"<svg"),
        "an XML document, as a storage service answers a request that it refuses: look into it, "
        "and fetch the file again",
    ),
    (
        _starts(
            b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c", b"Rar!"
        ),
        "compressed: unpack it and give the weights file in it",
    ),
    (
        _starts(b"\x89HDF\r\n\x1a\n"),
        "an HDF5 file, as Keras writes them: save its arrays with torch.save as a mapping of names "
        "to tensors",
    ),
    (
        _starts(b"\x93NUMPY"),
        "a single numpy array: a network needs a mapping of names to tensors",
    ),
    (
        _is_onnx,
        "an ONNX model, a graph without the names of its layers: give the weights it was exported "
        "from",
    ),
    (_text_starts(b"model_checkpoint_path:"), f"the index of checkpoints {_TENSORFLOW}"),
    (lambda start: start[4:8] == b"TFL3", f"a TFLite model {_TENSORFLOW}"),
    (_starts(b"GGUF"), "a GGUF file, of language models: give a .safetensors file"),
    (
        _starts(b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM"),
        "a picture, not weights",
    ),
    (_starts(b"%PDF"), "a PDF document, not weights"),
    (_starts(b"\x7fELF", b"MZ"), "a program, not weights"),
)
"""(whether the first 512 bytes are of that kind, what it is)."""


def _by_name(path: Path) -> str | None:
    """What is told by name alone: the parts of a checkpoint of TensorFlow and Caffe's protobufs."""
    if path.suffix == ".index" or ".data-0000" in path.name or path.suffix in (".pb", ".meta"):
        return f"a part of a model {_TENSORFLOW}"
    if path.suffix == ".prototxt":
        return "the layers of a network of Caffe: give the .caffemodel beside it, its weights"
    return None


def _of_tar(path: Path) -> str:
    with tarfile.open(path) as archive:
        first = archive.next()
    if first is not None and first.name in ("storages", "tensors", "pickle", "sys_info"):
        return (
            "a tar archive of torch.save before version 0.1.10: load it with torch.load and save "
            "it anew"
        )
    return "a tar archive: unpack it and give the weights file in it"


def _first_line(start: bytes) -> str | None:
    """The first line of a file that begins as text does, else None."""
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # else a letter is cut by where reading ended
            return None
        text = start[: error.start].decode("utf-8")
    if not all(letter.isprintable() or letter in "\r\n\t" for letter in text):
        return None
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:60]

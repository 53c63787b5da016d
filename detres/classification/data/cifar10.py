"""CIFAR-10 in its official layouts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from torchvision.datasets import CIFAR10

from detres.class_map import ClassMap
from detres.held_out import held_out_rows
from detres.images.source import ImageArrays
from detres.user_files import fault_of, read_text

CIFAR10_FILES = {
    "train": tuple(f"data_batch_{n}.bin" for n in range(1, 6)),
    "test": ("test_batch.bin",),
}

_CIFAR_SIDE = 32

_CIFAR_ROW = 1 + 3 * _CIFAR_SIDE**2

_CIFAR_FOLDER = "cifar-10-batches-bin"

_CIFAR_PYTHON_FOLDER = "cifar-10-batches-py"


def read_cifar10(root: Path, split: Literal["train", "test"]) -> ImageArrays:
    """Read the 50,000 or 10,000 images of CIFAR-10's binary version: rows of a label and 3 x 32 x
    32 bytes.

    root: the folder cifar-10-batches-bin, or the one that holds it; or, likewise,
    cifar-10-batches-py, the Python version, which torchvision reads after checking that every file
    is the official one, for its files are pickles. Raises FileNotFoundError naming a file that is
    missing, ValueError naming file and row for a size that is no multiple of a row or a label
    beyond 9, and for a Python version with a wrong checksum.
    """
    root = Path(root)
    root = next(
        (root / name for name in (_CIFAR_FOLDER, _CIFAR_PYTHON_FOLDER) if (root / name).is_dir()),
        root,
    )
    if root.name == _CIFAR_PYTHON_FOLDER:
        return _read_python_cifar10(root, split)
    names = _cifar_names(root / "batches.meta.txt")
    pixels, labels = [], []
    for name in CIFAR10_FILES[split]:
        path = root / name
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: {root} is not CIFAR-10's binary version ({_CIFAR_FOLDER})"
            )
        data = np.fromfile(path, np.uint8)
        if len(data) == 0 or len(data) % _CIFAR_ROW:
            raise ValueError(
                f"{path} has {len(data)} bytes, expected a multiple of {_CIFAR_ROW}: it was cut "
                "off or is another file"
            )
        rows = data.reshape(-1, _CIFAR_ROW)
        bad = np.flatnonzero(rows[:, 0] >= len(names))
        if len(bad):
            raise ValueError(
                f"{path}, row {bad[0]}: label {rows[bad[0], 0]}, expected 0..{len(names) - 1}"
            )
        labels.append(rows[:, 0].astype(np.int64))
        pixels.append(rows[:, 1:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE).transpose(0, 2, 3, 1))
    class_map = ClassMap.of_names(names)
    return ImageArrays(
        f"{root} ({split})",
        class_map,
        np.ascontiguousarray(np.concatenate(pixels)),
        np.concatenate(labels),
    )


def _read_python_cifar10(root: Path, split: str) -> ImageArrays:
    try:
        data = CIFAR10(str(root.parent), train=split == "train", download=False)
    except RuntimeError:
        raise ValueError(
            f"{root}: a file is missing or is not the official one by its checksum, so it was not "
            "opened"
        ) from None
    class_map = ClassMap.of_names(data.classes)
    return ImageArrays(
        f"{root} ({split})",
        class_map,
        np.ascontiguousarray(data.data),
        np.array(data.targets, dtype=np.int64),
    )


def hold_out(images: ImageArrays, number: int) -> tuple[ImageArrays, ImageArrays]:
    """Return the set without `number` of its images, and those; see `held_out_rows`, which also
    raises ValueError unless 0 < number < the size of the set.
    """
    kept, held = held_out_rows(len(images), number, images.source)
    without, alone = (
        ImageArrays(
            f"{images.source} {name} {number}",
            images.class_map,
            images.pixels[rows],
            images.labels[rows],
        )
        for name, rows in (("without", kept), ("held out", held))
    )
    return without, alone


def _cifar_names(path: Path) -> tuple[str, ...]:
    if fault_of(path) == "does not exist":
        raise FileNotFoundError(
            f"{path} is missing: expected CIFAR-10's folder {_CIFAR_FOLDER}, or the one that holds "
            "it"
        )
    names = tuple(read_text(path, "class list").split())
    if len(names) != 10:
        raise ValueError(f"{path} names {len(names)} classes, expected CIFAR-10's ten")
    return names

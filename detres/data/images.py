"""Labelled images for classification: a folder a class, and CIFAR-10 in its official layouts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from torchvision.datasets import CIFAR10

from detres.data.encoded import ImageFiles, ImageShards
from detres.image_io import IMAGE_SUFFIXES, ImageReadError, decode_image
from detres.structures import ClassMap, ImageArrays

CIFAR10_FILES = {
    "train": tuple(f"data_batch_{n}.bin" for n in range(1, 6)),
    "test": ("test_batch.bin",),
}
_CIFAR_SIDE = 32
_CIFAR_ROW = 1 + 3 * _CIFAR_SIDE**2
_CIFAR_FOLDER = "cifar-10-batches-bin"
_CIFAR_PYTHON_FOLDER = "cifar-10-batches-py"


def read_image_folder(root: Path, *, classes: Sequence[str] | None = None) -> ImageFiles:
    """Read root/CLASS/**/IMAGE: the folder names, sorted, are the classes; files in order of their
    paths.

    classes: only these, in this order. Names that start with a dot are passed over; so are files
    that are no images by their ending, with a count in `source`.

    Raises FileNotFoundError when root is no folder, ValueError naming the folder when it has no
    class folders, a class folder has no image in it, or one of `classes` is missing.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"image folder {root} does not exist or is not a folder")
    names = sorted(
        entry.name
        for entry in os.scandir(root)
        if entry.is_dir() and not entry.name.startswith(".")
    )
    if not names:
        raise ValueError(f"{root} has no class folders; expected {root}/CLASS/IMAGE.jpg")
    missing = [name for name in classes or () if name not in names]
    if missing:
        raise ValueError(
            f"{root} has no folder for class {', '.join(missing)}; it has {_listing(names)}"
        )
    files, labels, other = [], [], 0
    names = list(classes) if classes is not None else names
    for label, name in enumerate(names):
        found = sorted(
            path
            for path in (root / name).rglob("*")
            if path.is_file() and not _hidden(path.relative_to(root))
        )
        images = [str(path) for path in found if path.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise ValueError(
                f"class folder {root / name} has no image ({', '.join(IMAGE_SUFFIXES)}); remove "
                "it, or list the others in data.classes"
            )
        other += len(found) - len(images)
        files += images
        labels += [label] * len(images)
    source = f"{root}" + (f" ({other} files that are no images passed over)" if other else "")
    class_map = ClassMap(tuple(names), tuple(range(1, len(names) + 1)))
    return ImageFiles(source, class_map, np.array(files), np.array(labels, dtype=np.int64))


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
    class_map = ClassMap(names, tuple(range(1, len(names) + 1)))
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
    class_map = ClassMap(tuple(data.classes), tuple(range(1, len(data.classes) + 1)))
    return ImageArrays(
        f"{root} ({split})",
        class_map,
        np.ascontiguousarray(data.data),
        np.array(data.targets, dtype=np.int64),
    )


def decode_in_memory(
    images: ImageFiles | ImageShards, *, damaged: Literal["error", "skip"] = "error"
) -> ImageArrays:
    """Return encoded images of one size as arrays, every one read once.

    damaged: whether an image that cannot be decoded is an error, or left out and listed; one that
    is gone is always an error. Raises ValueError naming the first image of another size than the
    one before, and for no images; ImageReadError naming a damaged one, and when none can be read.
    """
    if len(images) == 0:
        raise ValueError(f"{images.source} has no images")
    pixels: np.ndarray | None = None
    good, left_out = [], []
    for row in range(len(images)):
        file = images.name(row)
        data = images.read_bytes(row)
        try:
            image = decode_image(data, file)
        except ImageReadError:
            if damaged == "error":
                raise
            left_out.append(file)
            continue
        good.append(row)
        if pixels is None:
            pixels = np.empty((len(images), *image.shape), np.uint8)
        if image.shape != pixels.shape[1:]:
            expected = f"{pixels.shape[2]}x{pixels.shape[1]}"
            raise ValueError(
                f"{file} has {image.shape[1]}x{image.shape[0]} px, the files before it "
                f"{expected}: data.in_memory wants one size"
            )
        pixels[row] = image
    if pixels is None:
        raise ImageReadError(
            f"{images.source}: none of the {len(images)} images can be read, the first is "
            f"{images.name(0)}"
        )
    pixels, labels = (
        (pixels, images.labels) if len(good) == len(images) else (pixels[good], images.labels[good])
    )
    return ImageArrays(images.source, images.class_map, pixels, labels, tuple(left_out))


def hold_out(images: ImageArrays, number: int) -> tuple[ImageArrays, ImageArrays]:
    """Return the set without `number` of its images, and those, drawn by a permutation that is
    always the same.

    Raises ValueError unless 0 < number < the size of the set.
    """
    if not 0 < number < len(images):
        raise ValueError(f"{images.source}: cannot hold out {number} of {len(images)} images")
    order = np.random.default_rng(0).permutation(len(images))
    parts = []
    for name, rows in (("without", order[number:]), ("held out", order[:number])):
        rows = np.sort(rows)
        parts.append(
            ImageArrays(
                f"{images.source} {name} {number}",
                images.class_map,
                images.pixels[rows],
                images.labels[rows],
            )
        )
    return parts[0], parts[1]


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _cifar_names(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: expected CIFAR-10's folder {_CIFAR_FOLDER}, or the one that "
            "holds it"
        )
    names = tuple(path.read_text(encoding="utf-8").split())
    if len(names) != 10:
        raise ValueError(f"{path} names {len(names)} classes, expected CIFAR-10's ten")
    return names


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

"""Labelled images for classification: a folder a class, and CIFAR-10 in its official layouts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from detres.class_map import ClassMap
from detres.images.decode import IMAGE_SUFFIXES
from detres.images.source import ImageFiles


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
                "it, or list the others (classes)"
            )
        other += len(found) - len(images)
        files += images
        labels += [label] * len(images)
    source = f"{root}" + (f" ({other} files that are no images passed over)" if other else "")
    class_map = ClassMap.of_names(names)
    return ImageFiles(source, class_map, np.array(files), np.array(labels, dtype=np.int64))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

"""Labelled images for classification: a folder a class, and CIFAR-10 in its official layouts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from detres.class_map import ClassMap
from detres.console import one_line
from detres.images.decode import IMAGE_SUFFIXES
from detres.images.source import ImageFiles
from detres.user_files import fault_of, is_hidden


def read_image_folder(
    root: Path,
    *,
    classes: Sequence[str] | None = None,
    damaged: Literal["error", "skip"] = "error",
) -> ImageFiles:
    """Read root/CLASS/**/IMAGE: the folder names, sorted, are the classes; files in order of their
    paths, links to folders followed.

    classes: only these, in this order. damaged: whether an image that is a dangling link, or no
    regular file, is an error or left out and listed. Names that start with a dot are passed over;
    so are files that are no images by their ending, with a count in `source`.

    Raises FileNotFoundError when root is no folder, and naming an image or a class folder that is a
    dangling link; ValueError naming the folder when it has no class folders, a class folder has no
    image in it, or one of `classes` is missing.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"image folder {root} does not exist or is not a folder")
    found = _class_folders(root)
    if not found:
        raise ValueError(f"{root} has no class folders; expected {root}/CLASS/IMAGE.jpg")
    known = set(found)
    missing = [name for name in classes or () if name not in known]
    if missing:
        raise ValueError(
            f"{root} has no folder for class {_listing(missing)}; it has {_listing(found)}"
        )
    files, labels, other, left_out = [], [], 0, []
    names = list(classes) if classes is not None else found
    for label, name in enumerate(names):
        inside = _files_below(root / name)
        images = [path for path in inside if _is_image(path)]
        faults = {path: fault for path in images if (fault := fault_of(path))}
        if faults and damaged == "error":
            path, fault = next(iter(faults.items()))
            raise FileNotFoundError(
                f"class folder {root / name}: image {path} {fault} ({len(faults)} of "
                f"{len(images)} images cannot be used)"
            )
        good = [path for path in images if path not in faults]
        if not good:
            what = f"no image that can be used, of {len(images)}" if images else "no image"
            raise ValueError(
                f"class folder {root / name} has {what} ({', '.join(IMAGE_SUFFIXES)}); remove it, "
                "or list the others (classes)"
            )
        other += len(inside) - len(images)
        files += good
        labels += [label] * len(good)
        left_out += faults
    source = f"{root}" + (f" ({other} files that are no images passed over)" if other else "")
    return ImageFiles(
        source,
        ClassMap.of_names([one_line(name) for name in names]),
        np.array(files),
        np.array(labels, dtype=np.int64),
        tuple(left_out),
    )


def _class_folders(root: Path) -> list[str]:
    """The names of the folders in `root`, sorted, hidden ones left out."""
    names = []
    for entry in os.scandir(root):
        if is_hidden(entry.name):
            continue
        if entry.is_dir():
            names.append(entry.name)
        elif entry.is_symlink() and not os.path.exists(entry.path):
            raise FileNotFoundError(f"class folder {entry.path} {fault_of(entry.path)}")
    return sorted(names)


def _is_image(path: str) -> bool:
    """Whether a file is taken for an image: by its ending, and without one where it is a link that
    leads nowhere, as one to a folder of images may be.
    """
    ending = os.path.splitext(path)[1].lower()
    return ending in IMAGE_SUFFIXES or (not ending and not os.path.exists(path))


def _files_below(folder: Path) -> list[str]:
    """The paths of all files in a folder and below, sorted by their parts; hidden ones are left
    out, links to folders followed once.
    """
    found, seen = [], set()
    for path, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(path)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not is_hidden(name)]
        found += [Path(path, name) for name in files if not is_hidden(name)]
    return [str(path) for path in sorted(found)]


def _listing(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")

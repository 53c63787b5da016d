"""Images as a user gives them: one or several; files, folders of them, lists of files, arrays and
pictures of Pillow.
"""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from detres.console import shown
from detres.images.decode import IMAGE_SUFFIXES, OTHER_SUFFIXES, Picture
from detres.user_files import expanded, fault_of, is_hidden, read_text

Pictures = Picture | Iterable[Picture]
"""One image, or several: a list of images, a path of a folder or of a list (LIST_SUFFIX), or an
array (N, H, W, 3).
"""

LIST_SUFFIX = ".txt"
"""Of a text file with the path of an image a line."""


def is_one(images: Pictures) -> bool:
    """Return whether `images` is one image; a folder, a list of files, an array of more than three
    dimensions and any other iterable are several, be there one in them or none.
    """
    if isinstance(images, (str, Path)):
        return not _holds_several(images)
    if isinstance(images, np.ndarray):
        return images.ndim <= 3
    return isinstance(images, Image.Image) or not isinstance(images, Iterable)


def pictures_of(images: Pictures) -> list[Picture]:
    """Return one image as a list of it, several as a list, in it the images of folders and lists of
    files in place of these; raises what `find_images` raises for them.
    """
    pictures = []
    for item in [images] if is_one(images) or isinstance(images, (str, Path)) else images:
        if isinstance(item, (str, Path)) and _holds_several(item):
            pictures += find_images([Path(item)])
        else:
            pictures.append(item)
    return pictures


def find_images(items: Iterable[Path]) -> list[Path]:
    """Return the image files named, those in the folders named, sorted, and those that the lists
    named (LIST_SUFFIX) have, each once; in a folder, hidden files are passed over, and those of
    OTHER_SUFFIXES are left out.

    Raises FileNotFoundError for a path that is not there, naming list and line where it is in one,
    ValueError for a folder or a list without images.
    """
    files = []
    for item in items:
        if item.is_dir():
            inside = _inside(item, IMAGE_SUFFIXES)
            if not inside:
                raise ValueError(
                    f"no image ({', '.join(IMAGE_SUFFIXES)}) in folder {item}{_in_folders(item)}"
                )
            files += inside
        elif item.is_file():
            files += _listed(item) if item.suffix.lower() == LIST_SUFFIX else [item]
        else:
            fault = fault_of(item)
            named = f"image {item} {fault}"
            raise FileNotFoundError(
                f"no image or folder {item}" if fault == "does not exist" else named
            )
    return list(dict.fromkeys(files))


def left_out(items: Iterable[Path]) -> list[Path]:
    """Return the image files in the folders named that `find_images` leaves out, sorted: those of
    OTHER_SUFFIXES. No folders: none.
    """
    return [file for item in items if item.is_dir() for file in _inside(item, OTHER_SUFFIXES)]


def _holds_several(path: str | Path) -> bool:
    return os.path.isdir(path) or (
        Path(path).suffix.lower() == LIST_SUFFIX and os.path.isfile(path)
    )


def _inside(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not is_hidden(path.name) and not path.is_dir()
    )


def _in_folders(folder: Path) -> str:
    """A hint to the folders below one that have images, which is not searched for them."""
    below = _folders_below(folder)
    found = list(itertools.islice((place for place in below if _inside(place, IMAGE_SUFFIXES)), 4))
    if not found:
        return ""
    named = " ".join(shlex.quote(str(place)) for place in found[:3])
    return f"; folders in it are not searched, give them: {named}{' ...' if found[3:] else ''}"


def _folders_below(folder: Path) -> Iterator[Path]:
    """The folders in one at any depth, but hidden ones, in the order of their names."""
    for place, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        yield Path(place)


def _listed(file: Path) -> list[Path]:
    """The images that a text file has, a path a line: of its own folder, else of the working
    directory; blank lines are passed over.
    """
    names = [line.strip() for line in read_text(file, "list of images").splitlines()]
    found = []
    for number, name in enumerate(names, start=1):
        if not name:
            continue
        places = (file.parent / expanded(name), Path(expanded(name)))
        there = [place for place in places if fault_of(place) != "does not exist"]
        if not there or there[0].is_dir():
            raise FileNotFoundError(
                f"{file}: line {number}: no image {shown(name)} in {file.parent} or in the working "
                "directory; expected is the path of an image a line"
            )
        found.append(there[0])
    if not found:
        raise ValueError(f"the list of images {file} names none; expected is a path a line")
    return found

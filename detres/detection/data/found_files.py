"""What lies in a folder that a user hands over, and what names of files and folders tell."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from detres.images.decode import IMAGE_SUFFIXES
from detres.user_files import is_hidden

SPLIT_WORDS = {
    "train": ("train", "training", "trainval", "trainset", "minitrain"),
    "val": ("val", "valid", "validation", "dev", "valset", "minival"),
    "test": ("test", "testing", "testset"),
}
"""Split -> the words by which files and folders name it."""

_SPLIT_OF = {word: split for split, words in SPLIT_WORDS.items() for word in words}


@dataclass(frozen=True)
class FoundFiles:
    """All files below `root` but hidden ones, by their paths relative to it, with / between the
    names, sorted; links to folders are followed, each folder once.
    """

    root: Path
    paths: tuple[str, ...]

    @classmethod
    def below(cls, root: Path) -> FoundFiles:
        """Return what is found; raises NotADirectoryError where `root` is no folder."""
        os.scandir(root).close()
        paths, seen = [], set()
        for folder, folders, names in os.walk(root, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a link to a folder above it
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not is_hidden(name))
            below = Path(folder).relative_to(root)
            paths += [(below / name).as_posix() for name in names if not is_hidden(name)]
        return cls(root, tuple(sorted(paths)))

    def ending(self, *suffixes: str) -> list[str]:
        """Return the files with one of these suffixes, which are in small letters."""
        return [path for path in self.paths if PurePosixPath(path).suffix.lower() in suffixes]

    @cached_property
    def images(self) -> list[str]:
        """The image files."""
        return self.ending(*IMAGE_SUFFIXES)

    @cached_property
    def images_by_name(self) -> dict[str, list[str]]:
        """Last name in small letters -> the image files that have it."""
        by_name: dict[str, list[str]] = {}
        for path in self.images:
            by_name.setdefault(PurePosixPath(path).name.lower(), []).append(path)
        return by_name

    @cached_property
    def image_stems(self) -> dict[str, set[str]]:
        """Folder -> the stems of the image files that lie in it itself."""
        stems: dict[str, set[str]] = {}
        for path in self.images:
            stems.setdefault(parent_of(path), set()).add(PurePosixPath(path).stem)
        return stems

    def image_folder(self, names: Sequence[str], near: str) -> str | None:
        """Return the folder, relative to the root, in which most of the image files `names` lie
        that an annotation file at `near` lists; None where none of them is found.

        Of folders that have as many, that of the same split is taken, then the nearest.
        """
        counts: dict[str, int] = {}
        for name in names:
            wanted = PurePosixPath(os.path.normpath(name.replace("\\", "/")))
            for path in self.images_by_name.get(wanted.name.lower(), []):
                whole = f"/{path}".lower()
                if whole.endswith(f"/{wanted}".lower()):
                    folder = path[: len(path) - len(str(wanted))].rstrip("/") or "."
                    counts[folder] = counts.get(folder, 0) + 1
        return best_folder(counts, near)


def folder_with(root: Path, names: Sequence[str]) -> str | None:
    """Return the folder, relative to `root`, in which most of the image files `names` lie: the root
    itself, one of its folders, or of theirs; None where there is none.
    """
    inside = _folders_in(root)
    folders = [root, *inside, *(deeper for folder in inside for deeper in _folders_in(folder))]
    slashed = [name.replace("\\", "/") for name in names]
    counts = {
        folder.relative_to(root).as_posix(): sum((folder / name).is_file() for name in slashed)
        for folder in folders
    }
    return best_folder({folder: count for folder, count in counts.items() if count}, ".")


def _folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def best_folder(counts: dict[str, int], near: str) -> str | None:
    """Return the folder with the largest count, of equal ones that whose name tells the split that
    `near` is of, then that with most of the path in common, then the first; None for no folders.
    """
    split, parts = split_of(near), PurePosixPath(near).parts

    def fitness(folder: str) -> tuple[int, bool, int]:
        pairs = zip(parts, PurePosixPath(folder).parts, strict=False)
        common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        return counts[folder], split_of(folder) == split, common

    return max(sorted(counts), key=fitness, default=None)


def parent_of(path: str) -> str:
    """Return the folder of a relative path, "." for the root."""
    return PurePosixPath(path).parent.as_posix()


def split_of(path: str) -> str | None:
    """Return the split that a relative path of a file or folder tells by the words in its last
    name that tells one, such as instances_train2017.json and valid/labels; None: it tells none, or
    several in one name.
    """
    pure = PurePosixPath(path)
    for name in (pure.stem, *reversed(pure.parts[:-1])):
        words = re.findall(r"[a-z]+", name.lower())
        splits = {_SPLIT_OF[word] for word in words if word in _SPLIT_OF}
        if splits:
            return splits.pop() if len(splits) == 1 else None
    return None


def is_inside(path: str, folder: str) -> bool:
    """Return whether a relative path, without "." and ".." but at its beginning, is a folder or
    lies in it.
    """
    if path.startswith(("/", "..")):
        return False
    return folder == "." or path == folder or path.startswith(f"{folder}/")


def common_folder(folders: Iterable[str]) -> str:
    """Return the folder that all of some relative folders are, or are in."""
    return os.path.commonpath([f"./{folder}" for folder in folders]).removeprefix("./") or "."

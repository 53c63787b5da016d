"""File names as annotations write them -> the files that they mean."""

from __future__ import annotations

import difflib
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from detres.console import shown
from detres.user_files import fault_of, is_hidden, tidied

Outside = Literal["error", "allow"]

_SHOWN = 3
_COMPARED = 20_000
"""Names among which the nearest is looked for, in about a second."""


class OutsideFolderError(ValueError):
    """A file name that leads out of the folder it is to be looked for in."""


class Spellings:
    """Names, found under other spellings of them: a backslash for /, %20 and its like, another
    Unicode normal form, other case, a "./" before them.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.by_key: dict[str, list[str]] = {}
        for name in names:
            self.by_key.setdefault(spelling_key(name), []).append(name)

    def match(self, name: str) -> str | None:
        """Return the one name that `name` is another spelling of; None: there is none, or there
        are several.
        """
        found = self.by_key.get(spelling_key(name)) or self.by_key.get(
            spelling_key(unquote(name)), []
        )
        return found[0] if len(found) == 1 else None

    def nearest(self, name: str) -> str | None:
        """Return the name that is most like `name`, one of the same last part first; None when
        none is.
        """
        key = spelling_key(name)
        same = [k for k in self.by_key if k.rpartition("/")[2] == key.rpartition("/")[2]]
        keys = same or difflib.get_close_matches(key, list(self.by_key)[:_COMPARED], n=1)
        return self.by_key[keys[0]][0] if keys else None


def locate(
    folder: Path, names: Sequence[str], *, source: str, outside: Outside = "error"
) -> tuple[list[str], list[str]]:
    """Return the file in `folder` of every one of N names, and lines to say about them.

    A name that is not there as written is looked for in other spellings (see Spellings) and taken
    where exactly one file, which no other name means, has it; the folder is listed for that once,
    hidden files left out. source: what the names are of, for messages. outside: whether a name may
    lead out of the folder (an absolute path, ..). No names: no files.

    Raises FileNotFoundError for a folder that is not there, files that are not (count, first names
    and the nearest to the first), and for dangling links, folders, FIFOs, devices and files that
    may not be read in their place; OutsideFolderError.
    """
    if not folder.is_dir():
        what = fault_of(folder) or "is a file"
        what = what if "link" in what else "does not exist or is not a folder"
        raise FileNotFoundError(f"image folder {folder} of {source} {what}")
    leading_out = [name for name in names if _leads_out(name)]
    if leading_out and outside == "error":
        raise OutsideFolderError(
            f"{source}: file_name {shown(leading_out[0])} lies outside the image folder {folder} "
            f"({len(leading_out)} such)"
        )
    files = [_path(folder, name) for name in names]
    faults = {row: fault for row, file in enumerate(files) if (fault := fault_of(file))}
    missing = [row for row, fault in faults.items() if fault == "does not exist"]
    notes = _find_respelled(folder, names, files, missing, source) if missing else []
    for row in missing:
        faults[row] = fault_of(files[row])
    require_usable([(files[row], fault) for row, fault in faults.items()], len(names), source)
    return files, notes


def require_usable(faults: list[tuple[str, str | None]], number: int, source: str) -> None:
    """Raise FileNotFoundError naming the first of (file, fault) of `number` images; a fault of None
    is none.
    """
    faults = [(file, fault) for file, fault in faults if fault]
    if faults:
        file, fault = faults[0]
        raise FileNotFoundError(
            f"{source}: image {file} {fault} ({len(faults)} of {number} images cannot be used)"
        )


def respelled(pairs: list[tuple[str, str]], number: int, what: str) -> list[str]:
    """Return the line that says which of `number` files have another spelling than the (name,
    found) as written; none for no pairs.
    """
    if not pairs:
        return []
    name, found = pairs[0]
    return [
        f"{len(pairs)} of {number} {what} files are spelt otherwise than they are listed, such as "
        f"{shown(found)} for {shown(name)}"
    ]


def _find_respelled(
    folder: Path, names: Sequence[str], files: list[str], missing: list[int], source: str
) -> list[str]:
    """Put into `files`, in place, those `missing` rows that are there in another spelling."""
    listing = _listing(folder)
    spellings = Spellings(listing)
    taken, pairs, lost = set(files), [], []
    for row in missing:
        found = spellings.match(names[row])
        path = os.path.join(folder, found) if found else None
        if path is None or path in taken:
            lost.append(row)
            continue
        taken.add(path)
        files[row] = path
        pairs.append((names[row], found))
    if lost:
        listed = ", ".join(names[row] for row in lost[:_SHOWN])
        free = Spellings(name for name in listing if os.path.join(folder, name) not in taken)
        near = free.nearest(names[lost[0]])
        raise FileNotFoundError(
            f"{len(lost)} of {len(names)} images of {source} are not in {folder}: {listed}"
            + (", ..." if len(lost) > _SHOWN else "")
            + (f"; the nearest to the first is {near}" if near else "")
        )
    return respelled(pairs, len(names), "image")


def _listing(folder: Path) -> list[str]:
    """The files in a folder and its sub-folders, relative to it, hidden ones left out."""
    found = []
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        below = os.path.relpath(path, folder)
        found += [
            os.path.normpath(os.path.join(below, name)) for name in files if not is_hidden(name)
        ]
    return sorted(found)


def _path(folder: Path, name: str) -> str:
    if _leads_out(name):
        return str(tidied(folder / name))
    return os.path.join(folder, os.path.normpath(name))


def _leads_out(name: str) -> bool:
    slashed = name.replace("\\", "/")
    absolute = slashed.startswith("/") or re.match(r"[A-Za-z]:/", slashed)
    return bool(absolute) or os.path.normpath(slashed).split("/")[0] == ".."


def spelling_key(name: str) -> str:
    """Return what all spellings of a name (see Spellings), but %20 and its like, have in common."""
    name = os.path.normpath(name.replace("\\", "/"))
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())

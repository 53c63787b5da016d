"""Which images a run has learned from and which it held out, told by what is in their files: moved
or renamed they are the same, and others of the same names are not.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detres.files import mapping
from detres.waiting import counted

_PIECE = 16 * 1024
"""Bytes of each of the pieces, beginning, middle and end, by which larger files are told apart."""

_DIGITS = 16


@dataclass(frozen=True)
class LearntImages:
    """trained: a mark of the content of every image that was learned from. held_out: one of the
    content and the name of every image that was not: the same picture may be in both.
    """

    trained: frozenset[str]
    held_out: frozenset[str]

    @classmethod
    def of(cls, train: Sequence[str], val: Sequence[str]) -> LearntImages:
        """Return those of a run that learns from the image files `train` and holds out `val`."""
        marks = [_mark_of(file) for file in counted(train, "marking what is learned from", "files")]
        return cls(frozenset(marks), frozenset(_named(_mark_of(file), file) for file in val))

    def seen(self, files: Sequence[str]) -> np.ndarray:
        """Return which of N image files were learned from, (N,) bool; one that was held out under
        its name was not, whatever else had its content, nor one that is not there.
        """
        seen = np.zeros(len(files), bool)
        for row, file in enumerate(counted(files, "telling known images", "files")):
            mark = _mark_of(file)
            seen[row] = mark in self.trained and _named(mark, file) not in self.held_out
        return seen

    def to_dict(self) -> dict[str, list[str]]:
        """Return plain values that `from_dict` reads."""
        return {"trained": sorted(self.trained), "held_out": sorted(self.held_out)}

    @classmethod
    def from_dict(cls, tree: object) -> LearntImages:
        """Return what `to_dict` wrote; raises TypeError or ValueError for anything else."""
        parts = mapping(tree)
        found = [parts.get(name) for name in ("trained", "held_out")]
        for part in found:
            if not isinstance(part, list) or not all(isinstance(mark, str) for mark in part):
                raise ValueError("expected two lists of marks, trained and held_out")
        return cls(*map(frozenset, found))


def _mark_of(file: str) -> str:
    """Of a file's size and content, of a large one's three pieces; of one that is not there none
    that another has.
    """
    digest = hashlib.blake2b(digest_size=_DIGITS // 2)
    try:
        with Path(file).open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            digest.update(size.to_bytes(8, "little"))
            if size <= 3 * _PIECE:
                digest.update(opened.read())
            else:
                for start in (0, (size - _PIECE) // 2, size - _PIECE):
                    opened.seek(start)
                    digest.update(opened.read(_PIECE))
    except OSError:
        return f"missing {file}"
    return digest.hexdigest()


def _named(mark: str, file: str) -> str:
    named = f"{mark} {Path(file).name}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(named, digest_size=_DIGITS // 2).hexdigest()

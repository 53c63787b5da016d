"""Many image files looked at once, in several processes: which cannot be read, and what is kept of
the others to compare them by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from detres.images.decode import ImageReadError, decode_stored, read_bytes
from detres.images.look_alikes import Print, print_of
from detres.images.processes import made_by_processes

_BAR_AFTER = 3.0
"""Seconds after which a progress bar is shown, on a terminal."""

_NOTHING = Print(b"", np.zeros(16, np.uint8), np.zeros((16, 16), np.uint8))


class _Look(NamedTuple):
    """Of one file: why it cannot be read, or its size as stored and upright, EXIF orientation and
    print.
    """

    fault: str | None
    size: tuple[int, int] = (0, 0)
    upright_size: tuple[int, int] = (0, 0)
    orientation: int = 1
    print: Print = _NOTHING


@dataclass(frozen=True)
class Survey:
    """What N image files are, some 400 bytes of each.

    faults: N, why a file cannot be read; None: it can. sizes, upright_sizes: (N, 2) int64 (h, w) px
    as stored and once turned upright, 0 where it cannot be read. orientations: (N,) int64, EXIF, 1
    (upright) to 8. prints: N, of the pictures upright.
    """

    faults: tuple[str | None, ...]
    sizes: np.ndarray
    upright_sizes: np.ndarray
    orientations: np.ndarray
    prints: tuple[Print, ...]

    def __len__(self) -> int:
        return len(self.faults)

    def __getitem__(self, rows: slice) -> Survey:
        """Return what the files at `rows` are."""
        return Survey(*(getattr(self, each.name)[rows] for each in fields(self)))

    @property
    def readable(self) -> np.ndarray:
        """Which files can be read, (N,) bool."""
        return np.array([fault is None for fault in self.faults], bool)


def survey(files: Sequence[str], workers: int) -> Survey:
    """Return what every one of N image files is, each decoded whole once.

    workers: processes that decode; 0: this one. Shows a progress bar on a terminal when it takes
    longer than 3 s. Raises MemoryError when a process is ended from outside. No files: N is 0.
    """
    bar = tqdm(
        made_by_processes(_look, files, workers),
        total=len(files),
        desc="reading images",
        unit="image",
        leave=False,
        disable=None,  # shown on a terminal only
        delay=_BAR_AFTER,
    )
    looks = list(bar)
    return Survey(
        faults=tuple(look.fault for look in looks),
        sizes=np.array([look.size for look in looks], np.int64).reshape(-1, 2),
        upright_sizes=np.array([look.upright_size for look in looks], np.int64).reshape(-1, 2),
        orientations=np.array([look.orientation for look in looks], np.int64),
        prints=tuple(look.print for look in looks),
    )


def _look(file: str) -> _Look:
    try:
        stored = decode_stored(read_bytes(file), file)
    except ImageReadError as error:
        return _Look(str(error))
    size, upright = stored.pixels.shape[:2], stored.upright()
    return _Look(None, size, upright.shape[:2], stored.orientation, print_of(upright))

"""Decoded images in RAM, so that each file is read once."""

from __future__ import annotations

import mmap
import multiprocessing

import numpy as np

from detres.images.decode import DecodedImage

_INT = np.dtype(np.int64)
_FIELDS = 9
"""Of an image: 1 once it is kept, its first byte, its h and w, and what else a DecodedImage has."""


class ImageCache:
    """Decoded images of a set of `number`, each kept once, until `budget` bytes are full.

    The memory is taken as it fills. Processes that are forked of this one share it: what one has
    read the others have too. It cannot go to a process that is started anew. Raises ValueError for
    a budget below 1, OSError where the system has no room for it.
    """

    def __init__(self, number: int, budget: int) -> None:
        if budget < 1:
            raise ValueError(f"a cache of {budget} bytes, expected 1 or more")
        self.budget = budget
        self._pixels = np.frombuffer(mmap.mmap(-1, budget), np.uint8)
        memory = mmap.mmap(-1, (1 + number * _FIELDS) * _INT.itemsize)
        self._used, table = np.split(np.frombuffer(memory, _INT), [1])
        self._table = table.reshape(number, _FIELDS)
        self._lock = multiprocessing.Lock()

    def __len__(self) -> int:
        """How many images are kept."""
        return int(self._table[:, 0].sum())

    def get(self, index: int) -> DecodedImage | None:
        """Return an image, its pixels a copy; None where it is not kept."""
        with self._lock:
            kept, start, height, width, *size, scale, rows, columns = self._table[index].tolist()
        if not kept:
            return None
        pixels = self._pixels[start : start + height * width * 3].reshape(height, width, 3)
        return DecodedImage(pixels.copy(), tuple(size), scale, (rows, columns))

    def put(self, index: int, image: DecodedImage) -> None:
        """Keep an image where there is room for it and it is not kept yet."""
        with self._lock:
            start = int(self._used[0])
            end = start + image.pixels.size
            if self._table[index, 0] or end > len(self._pixels):
                return
            self._pixels[start:end] = image.pixels.reshape(-1)
            sides = image.pixels.shape[:2]
            self._table[index] = (1, start, *sides, *image.size, image.scale, *image.before)
            self._used[0] = end

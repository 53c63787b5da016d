"""The same picture twice: exactly, by its pixels, and nearly, such as re-encoded or resized.

N pictures. A print of a picture is what it is compared by, small enough to keep of every one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

_CELLS = 8
"""A side of the grid whose brightness steps the difference hash holds: 2 * 8 * 8 bits."""

_SMALL = 16
"""Px, a side of the small grey picture that confirms what the hash suspects."""

_MOST_BITS = 12
"""Of the 128 by which the hashes of pictures that look alike may differ: up to 3 were seen of
photographs re-encoded, halved, quartered or squashed, while those of different pictures are 64
apart on average.
"""

_LEAST_CORRELATION = 0.985
"""Of the small grey pictures of those that look alike."""

_COPY_CORRELATION = 0.995
"""Of the small grey pictures of copies; .998 and more was seen."""

_MOST_APART = 0.4
"""Of the spread (standard deviation) of a small grey picture, by which each px of a copy's may
differ: up to .3 was seen, while an object that moved in front of a camera that stands makes 2 to 3.
"""

_LEAST_CONTRAST = 2.0
"""Grey levels (standard deviation) of the small picture, below which a picture shows nothing to be
told by.
"""

_ROWS = 256
"""Pictures that are compared with all others at once: 10 MB of distances for 10,000 pictures."""


class Print(NamedTuple):
    """Of one picture: `digest`, SHA-256 of its shape and pixels; `hash` (16,) uint8, its difference
    hash; `small` (16, 16) uint8 grey.
    """

    digest: bytes
    hash: np.ndarray
    small: np.ndarray


def print_of(image: np.ndarray) -> Print:
    """Return the print of a picture (H, W, 3) uint8 RGB, upright."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image))
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_SMALL, _SMALL), interpolation=cv2.INTER_AREA)
    return Print(digest.digest(), difference_hash(grey), small)


def difference_hash(grey: np.ndarray) -> np.ndarray:
    """Return the difference hash (dHash) of a grey picture (H, W) uint8: of a grid of 9x9 mean
    brightnesses, a bit for each whether the next one to the right is brighter, and one whether the
    next one below is; (16,) uint8.
    """
    side = _CELLS + 1
    grid = cv2.resize(grey.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
    right = grid[:_CELLS, 1:] > grid[:_CELLS, :-1]
    below = grid[1:, :_CELLS] > grid[:-1, :_CELLS]
    return np.packbits(np.stack((right, below)))


def same_pictures(digests: Sequence[bytes]) -> np.ndarray:
    """Return (N,) int64: for every picture, the first row with equal pixels, its own where there is
    none before it.
    """
    first: dict[bytes, int] = {}
    rows = [first.setdefault(digest, row) for row, digest in enumerate(digests)]
    return np.array(rows, np.int64)


def similar_pictures(hashes: np.ndarray, smalls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (P, 2) int64, the rows a < b of every two pictures that look alike, and (P,) bool,
    which of them are copies: one re-encoded, resized or brightened. The others are such as frames
    of one scene.

    hashes: (N, 16) uint8. smalls: (N, 16, 16) uint8. Pictures without contrast, which any others
    like them would be copies of, are in no pair. Time grows with N^2: 0.5 s for 10,000.
    """
    signs = np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1  # (N, 16) -> (N, 128)
    flat = smalls.reshape(len(smalls), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(flat, axis=1)
    clear = lengths >= _LEAST_CONTRAST * _SMALL
    flat /= np.maximum(lengths, 1e-6)[:, None]
    least = signs.shape[1] - 2 * _MOST_BITS  # the product of signs that differ in _MOST_BITS bits
    found, copies = [np.zeros((0, 2), np.int64)], [np.zeros(0, bool)]
    for start in range(0, len(signs), _ROWS):
        near = signs[start : start + _ROWS] @ signs[start:].T >= least
        a, b = np.nonzero(np.triu(near, 1))
        pairs = np.stack((a, b), axis=1) + start
        pairs = pairs[clear[pairs].all(axis=1)]
        one, other = flat[pairs[:, 0]], flat[pairs[:, 1]]
        correlation = (one * other).sum(axis=1)
        apart = np.abs(one - other).max(axis=1, initial=0) * _SMALL
        alike = correlation >= _LEAST_CORRELATION
        found.append(pairs[alike])
        copies.append(((correlation >= _COPY_CORRELATION) & (apart <= _MOST_APART))[alike])
    return np.concatenate(found), np.concatenate(copies)

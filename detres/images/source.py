"""Labelled sets of images: files of their own, members of tar shards, or arrays in memory.

M images of a set, K classes. Labels are indices of the set's ClassMap, (M,) int64, 0..K-1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import fsspec
import numpy as np

from detres.class_map import ClassMap
from detres.images.decode import ImageReadError, read_bytes


class LabelledImages(Protocol):
    """What every labelled set of M images says of itself.

    source: where it is from, for messages. labels: (M,) int64. size: (h, w) px where all images
    are held in memory at that one size, None where they lie encoded, of whatever sizes. damaged:
    images that were left out because they could not be read.
    """

    source: str
    class_map: ClassMap
    labels: np.ndarray
    size: tuple[int, int] | None
    damaged: tuple[str, ...]

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return what a message calls an image."""


class EncodedImages(LabelledImages, Protocol):
    """A set whose images are read one by one."""

    def read_bytes(self, index: int) -> bytes:
        """Return an encoded image; raises ImageReadError when it is gone or cannot be had."""


@dataclass(frozen=True)
class ImageArrays:
    """A labelled set of small images of one size, in memory: `pixels` (M, H, W, 3) uint8 RGB."""

    source: str
    class_map: ClassMap
    pixels: np.ndarray
    labels: np.ndarray
    damaged: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def size(self) -> tuple[int, int]:
        """The (h, w) px of every image."""
        return self.pixels.shape[1:3]

    def name(self, index: int) -> str:
        """Return the set of an image, and its row."""
        return f"{self.source}, image {index}"


@dataclass(frozen=True)
class ImageFiles:
    """A labelled set of image files: `files` (M,) str, full paths, and `labels` (M,) int64, 0..K-1
    in the order of class_map.names.
    """

    source: str
    class_map: ClassMap
    files: np.ndarray
    labels: np.ndarray
    damaged: tuple[str, ...] = ()
    size = None

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        """Return the path of an image."""
        return str(self.files[index])

    def read_bytes(self, index: int) -> bytes:
        """Return an encoded image; raises ImageReadError when the file is gone or cannot be
        opened.
        """
        return read_bytes(self.files[index])


@dataclass(frozen=True)
class ImageShards:
    """A labelled set of M images in tar files, local or remote, and where each lies in them.

    urls: of the tar files. shards (M,) int32: which of them. offsets, sizes (M,) int64: bytes of
    the encoded image. keys (M,) str: names inside the tar file. labels (M,) int64, 0..K-1.
    """

    source: str
    class_map: ClassMap
    urls: tuple[str, ...]
    shards: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    keys: np.ndarray
    labels: np.ndarray
    size = None
    damaged = ()

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """Return the tar file of an image, and its name in it."""
        return f"{self.urls[self.shards[index]]}: {self.keys[index]}"

    def read_bytes(self, index: int) -> bytes:
        """Return an encoded image by one read of its byte range; raises ImageReadError when the tar
        file does not give it.
        """
        url, start, size = (
            self.urls[self.shards[index]],
            int(self.offsets[index]),
            int(self.sizes[index]),
        )
        try:
            files, path = fsspec.core.url_to_fs(url)
            # The generic way to read a range goes through a buffer, which may read 5 MB ahead.
            generic = fsspec.AbstractFileSystem.cat_file
            buffered = getattr(files.cat_file, "__func__", None) is generic
            unbuffered = {"cache_type": "none"} if buffered else {}
            data = files.cat_file(path, start=start, end=start + size, **unbuffered)
        except Exception as error:  # each file system of fsspec has errors of its own
            raise ImageReadError(f"{self.name(index)} cannot be read: {error}") from None
        if len(data) != size:
            raise ImageReadError(
                f"{self.name(index)} cannot be read: asked for {size} bytes, got {len(data)}; the "
                "tar file has changed, or its server gives no byte ranges"
            )
        return data

"""Labelled sets of encoded images: files of their own, or members of tar shards."""

from __future__ import annotations

from dataclasses import dataclass

import fsspec
import numpy as np

from detres.image_io import ImageReadError, read_bytes
from detres.structures import ClassMap


@dataclass(frozen=True)
class ImageFiles:
    """A labelled set of image files: `files` (M,) str, full paths, and `labels` (M,) int64, 0..K-1
    in the order of class_map.names.
    """

    source: str
    class_map: ClassMap
    files: np.ndarray
    labels: np.ndarray

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
            buffered = (
                getattr(files.cat_file, "__func__", None) is fsspec.AbstractFileSystem.cat_file
            )  # which may read 5 MB ahead
            data = files.cat_file(
                path, start=start, end=start + size, **({"cache_type": "none"} if buffered else {})
            )
        except Exception as error:  # each file system of fsspec has errors of its own
            raise ImageReadError(f"{self.name(index)} cannot be read: {error}") from None
        if len(data) != size:
            raise ImageReadError(
                f"{self.name(index)} cannot be read: asked for {size} bytes, got {len(data)}; "
                "the tar file has changed, or its server gives no byte ranges"
            )
        return data

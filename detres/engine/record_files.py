"""Files that grow by whole records."""

from __future__ import annotations

import os
from pathlib import Path


class RecordFile:
    """A file to whose end records are written, each at once, so that a crash loses none; with
    `new`, one that must not be there yet.

    Raises OSError naming the file when it cannot be written.
    """

    def __init__(self, path: Path, *, new: bool = False) -> None:
        self.path = path
        only = os.O_EXCL if new else 0
        binary = getattr(os, "O_BINARY", 0)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | only | binary
        self._file = os.open(path, flags, 0o644)

    def write(self, record: bytes) -> None:
        """Write one record."""
        try:
            while record:
                record = record[os.write(self._file, record) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None

    def flush(self) -> None:
        """Return when what was written is on the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file; nothing can be written afterwards."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

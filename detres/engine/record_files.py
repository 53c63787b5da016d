"""Files that grow by whole records: lines of text, and TensorBoard's events."""

from __future__ import annotations

import io
import itertools
import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar


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


class EventFile:
    """A new file of TensorBoard's events in `folder`, which is made where it is not there.

    PyTorch's writer has a thread of its own, whose errors (a full disk) reach nobody but the
    terminal; this one writes at once. purge_step: events of earlier files from this step on are
    void; None: all count.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _new_file(folder)
        self._write(Event(file_version="brain.Event:2"))
        if purge_step is not None:
            self._write(Event(step=purge_step, session_log=SessionLog(status=SessionLog.START)))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """Write the value that `name` has after `step` steps."""
        self._write(Event(step=step, summary=scalar(name, value)))

    def close(self) -> None:
        """Close the file; nothing can be written afterwards."""
        self._file.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        self._file.write(record.getvalue())


def _new_file(folder: Path) -> RecordFile:
    start = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
    for number in itertools.count():
        path = folder / f"{start}.{number}"
        if not path.exists():
            return RecordFile(path, new=True)
    raise AssertionError("there is always another number")

"""TensorBoard's curves of a run; needs the package tensorboard, an extra."""

from __future__ import annotations

import io
import itertools
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import scalar

from detres.engine.record_files import RecordFile


class TensorBoardWriter:
    """A Writer of TensorBoard's events, in new files of `events`, its folder; what a run that was
    killed has told is void from the step on that it goes on from.
    """

    def __init__(self, events: Path) -> None:
        self.events = events

    def started(self, config: Mapping[str, object], folder: Path, step: int) -> None:  # noqa: ARG002
        """Begin a file."""
        self._file = EventFile(self.events, purge_step=step + 1 if step else None)

    def numbers(self, kind: str, step: int, record: Mapping[str, float | None]) -> None:
        """Write every number."""
        for name, value in record.items():
            if isinstance(value, (int, float)):
                self._file.add_scalar(f"{kind}/{name}", value, step)

    def closed(self) -> None:
        """Close the file."""
        self._file.close()


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

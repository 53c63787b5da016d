"""Who may write in a folder: one process at a time, told by a file in it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import stat
import weakref
from dataclasses import dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None


class InUseError(ValueError):
    """A folder in which another process works; the message names the process and its host."""


class FolderMovedError(ValueError):
    """A folder that is not where it was when its lock was taken."""


def is_lock(path: Path) -> bool:
    """Whether the file at `path` is one that a lock leaves: it names its holder, or is empty where
    that could not be written.
    """
    try:
        file = _opened(path, create=False)
    except OSError:
        return False
    try:
        return os.fstat(file).st_size == 0 or {"pid", "host"} <= (_read(file) or {}).keys()
    finally:
        os.close(file)


class FolderLock:
    """The right to write in the folder of the file `path`, until `release` or the end of this
    process.

    The lock is the operating system's (flock), which ends with its process, so neither a crash nor
    a process id that is given out again can fool it; the file says who holds it, for messages.
    Where the file system knows no such locks, the process that the file names is looked for: one of
    another host counts as alive.

    taken_over: what is to be said of a process that ended without giving its lock back; None: there
    was none. Raises InUseError when another process, or another lock of this one, holds it; OSError
    naming the file when it cannot be written, or is none.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, path.parent
        self.taken_over: str | None = None
        self._file = -1
        while self._file < 0 or not _is_still_at(path, self._file):
            self.close()  # another process has removed the file since it was opened
            self._file = _opened(path)
            holder = _read(self._file)
            if not _take(self._file, holder):
                self.close()
                raise InUseError(_refusal(self.folder, holder, path))
        if holder:
            self.taken_over = (
                f"{self.folder} was left by process {holder.get('pid')} on {holder.get('host')}, "
                f"which {'has it no more' if _may_live(holder) else 'has ended'}: taken over"
            )
        try:
            _write(self._file)
        except OSError as error:
            self.release()
            raise OSError(error.errno, error.strerror, str(path)) from None
        _let_go_in_children(self)

    @classmethod
    def require_free(cls, path: Path) -> None:
        """Raise InUseError when another process holds the lock of `path`; changes nothing."""
        try:
            file = _opened(path, create=False)
        except OSError:  # none is there, or none that this process could take
            return
        try:
            holder = _read(file)
            if not _take(file, holder):
                raise InUseError(_refusal(path.parent, holder, path))
        finally:
            os.close(file)

    def require_held(self) -> None:
        """Raise FolderMovedError when the folder is no longer where it was: what is written there
        would be in another one.
        """
        if not _is_still_at(self.path, self._file):
            raise FolderMovedError(
                f"{self.folder} was moved or removed, or its {self.path.name} was, while it was "
                "used: nothing more is written; go on with the folder where it is now"
            )

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self, *, keep: bool = False) -> None:
        """Give the lock back and remove its file, or `keep` it as one that a crash had left."""
        if not keep and _is_still_at(self.path, self._file):
            self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Close the file and leave it there."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


@dataclass(frozen=True)
class FollowedFolder:
    """A folder whose lock another process of the same group holds, in which this one writes
    nothing.
    """

    folder: Path
    taken_over: None = None

    def require_held(self) -> None:
        """See to nothing: the process that writes does."""

    def release(self, *, keep: bool = False) -> None:
        """Give nothing back."""


def _opened(path: Path, *, create: bool = True) -> int:
    """The open file of a lock, never what a link leads to, nor a pipe."""
    flags = os.O_RDWR | (os.O_CREAT if create else 0)
    file = os.open(path, flags | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0), 0o644)
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    raise OSError(errno.EINVAL, "it is no regular file", str(path))


def _let_go_in_children(lock: FolderLock) -> None:
    """A child made by fork (a loader's worker) shares the lock, and would hold it for as long as it
    outlives this process.
    """
    if hasattr(os, "register_at_fork"):
        reference = weakref.ref(lock)

        def close() -> None:
            if (held := reference()) is not None:
                held.close()

        os.register_at_fork(after_in_child=close)


def _take(file: int, holder: dict | None) -> bool:
    """Whether the lock of an open file could be taken."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            pass
        else:
            return True
    return holder is None or not _may_live(holder)


def _may_live(holder: dict) -> bool:
    """Whether the process that a file names may be there: on another host, or one of this id that
    was started when the file says.
    """
    pid = holder.get("pid")
    if holder.get("host") != socket.gethostname() or type(pid) is not int or os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return holder.get("started") == _started(pid)


def _started(pid: int) -> str | None:
    """When a process was started, in the kernel's ticks; None where that is not said."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return fields.rpartition(")")[2].split()[19]  # the 22nd; the second may hold spaces


def _refusal(folder: Path, holder: dict | None, path: Path) -> str:
    who = f"process {holder.get('pid')} on {holder.get('host')}" if holder else "another process"
    sure = "" if fcntl is not None else f"; if that has ended, remove {path}"
    if holder and holder.get("host") != socket.gethostname():
        sure = f"; if that has ended, remove {path}"
    return f"{folder} is in use by {who}: wait until it ends, or stop it{sure}"


def _is_still_at(path: Path, file: int) -> bool:
    with contextlib.suppress(OSError):
        return file >= 0 and os.path.samestat(os.stat(path), os.fstat(file))
    return False


def _read(file: int) -> dict | None:
    """Who holds a lock, as its file says; None where it says nothing."""
    with contextlib.suppress(ValueError, RecursionError):
        holder = json.loads(
            os.pread(file, 4096, 0) if hasattr(os, "pread") else os.read(file, 4096)
        )
        return holder if isinstance(holder, dict) else None
    return None


def _write(file: int) -> None:
    own = {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}
    os.ftruncate(file, 0)
    os.lseek(file, 0, os.SEEK_SET)
    os.write(file, json.dumps(own).encode())

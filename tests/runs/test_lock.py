"""One process at a time in a folder: told by the system's locks, whatever the file says."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from detres.runs import lock as locks
from detres.runs.lock import FolderLock, InUseError, is_lock

HOLD = """
import os, sys, time
from pathlib import Path
from detres.runs.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
with_child = len(sys.argv) > 2
if with_child and os.fork():
    time.sleep(60)  # the child tells, so that it has run
print(os.getppid() if with_child else os.getpid(), flush=True)
time.sleep(60)
"""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="flock")


def held_by_another(path: Path, *more: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), *more],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert int(process.stdout.readline()) == process.pid
    return process


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_a_lock_is_held_once_and_leaves_nothing(tmp_path):
    path = tmp_path / "lock.json"
    with FolderLock(path) as lock:
        assert (lock.folder, lock.taken_over) == (tmp_path, None)
        assert json.loads(path.read_text())["pid"] == os.getpid()
        who = f"{tmp_path} is in use by process {os.getpid()} on {socket.gethostname()}: wait"
        for ask in (FolderLock, FolderLock.require_free):
            with pytest.raises(InUseError, match=f"^{re.escape(who)}"):
                ask(path)
    assert names(tmp_path) == []
    FolderLock.require_free(path)
    assert names(tmp_path) == []


@pytest.mark.parametrize("with_child", [False, True])
def test_a_living_process_is_named_and_a_killed_one_is_taken_over_from(tmp_path, with_child):
    """A child that outlives the process, as a loader's worker does for some seconds, holds
    nothing.
    """
    path = tmp_path / "lock.json"
    process = held_by_another(path, *["child"] * with_child)
    try:
        with pytest.raises(InUseError, match=f"in use by process {process.pid} on "):
            FolderLock(path)
        process.kill()
        process.wait()
        with FolderLock(path) as lock:
            assert lock.taken_over == (
                f"{tmp_path} was left by process {process.pid} on {socket.gethostname()}, which "
                "has ended: taken over"
            )
    finally:
        os.killpg(process.pid, 9) if with_child else process.kill()
        process.stdout.close()
        process.wait()


def test_the_id_of_a_living_process_in_a_file_that_was_left_fools_nobody(tmp_path):
    path = tmp_path / "lock.json"
    path.write_text(json.dumps({"pid": os.getppid(), "host": socket.gethostname()}))
    with FolderLock(path) as lock:
        assert f"process {os.getppid()} on" in lock.taken_over


@pytest.mark.parametrize("left", ["", "{", "[]", "\0\0\0", '{"pid": "x"}', "[" * 3000])
def test_a_damaged_file_is_taken_over(tmp_path, left):
    path = tmp_path / "lock.json"
    path.write_text(left)
    with FolderLock(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_what_is_no_file_is_named_and_stays(tmp_path, kind):
    path, other = tmp_path / "lock.json", tmp_path / "other"
    other.write_text("of the user")
    if kind == "link":
        path.symlink_to(other)
    else:
        path.mkdir() if kind == "folder" else os.mkfifo(path)
    with pytest.raises(OSError, match="") as error:
        FolderLock(path)
    assert error.value.filename in (path, str(path))
    assert not is_lock(path)
    assert other.read_text() == "of the user"
    assert names(tmp_path) == ["lock.json", "other"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def write(_: int, text: bytes) -> int:
        full = os.open("/dev/full", os.O_WRONLY)
        try:
            return real_write(full, text)
        finally:
            os.close(full)

    real_write = os.write
    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OSError, match="No space left") as error:
        FolderLock(tmp_path / "lock.json")
    assert error.value.filename == str(tmp_path / "lock.json")
    assert names(tmp_path) == []


def test_a_copy_of_a_lock_that_is_held_is_not_called_left_by_the_dead(tmp_path):
    for folder in ("run", "copy"):
        (tmp_path / folder).mkdir()
    with FolderLock(tmp_path / "run/lock.json"):
        shutil.copy(tmp_path / "run/lock.json", tmp_path / "copy/lock.json")
        with FolderLock(tmp_path / "copy/lock.json") as lock:
            assert lock.taken_over.endswith("which has it no more: taken over")


def test_a_lock_that_is_kept_looks_like_one_that_was_left(tmp_path):
    path = tmp_path / "lock.json"
    FolderLock(path).release(keep=True)
    assert names(tmp_path) == ["lock.json"]
    with FolderLock(path) as lock:
        assert lock.taken_over is not None


@pytest.fixture
def without_flock(monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)


def holder(**other: object) -> dict:
    own = {"pid": os.getpid(), "host": socket.gethostname(), "started": locks._started(os.getpid())}
    return own | other


@pytest.mark.usefixtures("without_flock")
@pytest.mark.parametrize(
    ("left", "alive"),
    [
        ({}, True),
        ({"started": "1"}, False),  # the id of another process that is there now
        ({"pid": 2**22 + 5}, False),  # beyond Linux's largest
        ({"host": "another"}, True),  # which cannot be asked from here
        ({"pid": None}, True),
    ],
)
def test_without_locks_of_the_system_the_process_is_looked_for(tmp_path, left, alive):
    path = tmp_path / "lock.json"
    path.write_text(json.dumps(holder(**left)))
    if not alive:
        FolderLock(path).release()
        return
    with pytest.raises(InUseError, match="is in use by process") as refused:
        FolderLock(path)
    assert (f"if that has ended, remove {path}" in str(refused.value)) == ("host" in left)

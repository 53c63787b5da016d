"""One process at a time in a folder: told by the system's locks, whatever the file says."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from detres.runs import lock as locks
from detres.runs.lock import FolderLock, InUseError

HOLD = """
import os, sys, time
from pathlib import Path
from detres.runs.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
holder = os.getpid()
if not sys.argv[2:] or not os.fork():  # the child has let go of the lock by now
    print(holder, flush=True)
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

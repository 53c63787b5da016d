"""The same done to many items by several processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from detres.images.processes import made_by_processes, usable_cores


def square(number: int) -> int:
    if number == 99:
        raise KeyError("no such number")
    return number * number


def own_process(_: int) -> int:
    return os.getpid()


def made_in_two(number: int) -> list[int]:
    return list(made_by_processes(own_process, range(number), 2))


def die_at_five(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("number", [0, 3, 8, 9, 50])
def test_all_is_made_in_order(workers: int, number: int) -> None:
    items = range(number)
    assert list(made_by_processes(square, items, workers)) == [n * n for n in items]


def test_many_are_made_by_other_processes_and_few_by_this_one() -> None:
    assert os.getpid() not in set(made_by_processes(own_process, range(40), 2))
    assert set(made_by_processes(own_process, range(8), 2)) == {os.getpid()}
    assert set(made_by_processes(own_process, range(40), 0)) == {os.getpid()}


def test_a_daemon_makes_them_by_itself() -> None:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert set(pool.apply(made_in_two, (40,))) == {pool.apply(os.getpid)}


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_that_of_what_is_done(workers: int) -> None:
    with pytest.raises(KeyError, match="no such number"):
        list(made_by_processes(square, range(90, 120), workers))


def test_a_process_that_is_killed_is_said() -> None:
    with pytest.raises(MemoryError, match="ended from outside"):
        list(made_by_processes(die_at_five, range(40), 2))


def test_the_cores_are_those_that_this_process_may_use() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_setaffinity"):
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(before)})
        try:
            assert usable_cores() == 1
        finally:
            os.sched_setaffinity(0, before)


def test_more_workers_than_there_is_work_for_are_not_begun() -> None:
    assert len(set(made_by_processes(own_process, range(9), 1000))) <= 2


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells it")
def test_workers_end_with_the_process_that_began_them() -> None:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        made = made_by_processes(own_process, range(400), 1)
        os.write(write, f"{next(made)}\n".encode())
        os._exit(0)  # as one that is killed: nobody is told
    os.waitpid(child, 0)
    worker = int(os.read(read, 20))
    for _ in range(50):
        stat = Path(f"/proc/{worker}/stat")
        if not stat.exists() or stat.read_text().split()[2] == "Z":  # nobody asks for its status
            return
        time.sleep(0.2)
    pytest.fail("it is still there")

"""The same done to many files, on all cores."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import cv2

Item, Made = TypeVar("Item"), TypeVar("Made")

_AT_ONCE = 8
"""Items that a process is given at a time; fewer in all are not worth a process."""

_MOST = 61
"""Processes that Windows can wait for."""


def usable_cores() -> int:
    """Return how many processor cores this process may use, at least 1."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def made_by_processes(
    make: Callable[[Item], Made], items: Sequence[Item], workers: int
) -> Iterator[Made]:
    """Yield `make(item)` of each of `items`, in their order.

    make: of a module's own level, as what it takes and returns goes from process to process.
    workers: processes; 0: this one, as it is for few items, and in a daemon, such as a loader's
    worker, which may have none. Raises MemoryError when a process is ended from outside, and what
    `make` raises. No items: nothing.
    """
    if workers == 0 or len(items) <= _AT_ONCE or multiprocessing.current_process().daemon:
        yield from map(make, items)
        return
    workers = min(workers, _MOST, -(-len(items) // _AT_ONCE))
    pool = ProcessPoolExecutor(workers, initializer=_begin, initargs=(os.getpid(),))
    try:
        yield from pool.map(make, items, chunksize=_AT_ONCE)
    except BrokenProcessPool:
        raise MemoryError("a process that worked on images was ended from outside") from None
    finally:
        pool.shutdown(cancel_futures=True)


def starts_by_fork() -> bool:
    """Return whether a new process begins where this one is, and does not run its script anew."""
    method = multiprocessing.get_start_method(allow_none=True)
    return (method or multiprocessing.get_all_start_methods()[0]) == "fork"


def _begin(parent: int) -> None:
    """One thread each; Ctrl-C is for the process that started them, and they end with it."""
    cv2.setNumThreads(0)  # 1 would wait for OpenCV's threads, which a forked process has none of
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)

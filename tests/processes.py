"""Several processes that call one function together, as torchrun starts them."""

from __future__ import annotations

import io
import os
import socket
import traceback
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch
from torch import multiprocessing

from detres.engine.distributed import Group, joined


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(size: int, function: Callable[..., Any], *arguments: object, waits_s: float = 120):
    """Return what `function(group, *arguments)` returns in each of `size` processes, by rank; what
    one raises is raised here, with its traceback in words.
    """
    context = multiprocessing.get_context("spawn")
    results, port = context.SimpleQueue(), free_port()
    processes = [
        context.Process(
            target=_work, args=(results, rank, size, port, waits_s, function, arguments)
        )
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    found = {}
    for _ in processes:
        rank, written = results.get()
        found[rank] = torch.load(io.BytesIO(written), weights_only=False)
    for process in processes:
        process.join()
    failed = [each for each in found.values() if isinstance(each, _Failure)]
    if failed:
        raise AssertionError(failed[0].text)
    return [found[rank] for rank in range(size)]


class _Failure:
    def __init__(self, text: str) -> None:
        self.text = text


def _work(
    results: SimpleQueue,
    rank: int,
    size: int,
    port: int,
    waits_s: float,
    function: Callable[..., Any],
    arguments: tuple,
) -> None:
    os.environ.update(
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    )
    torch.set_num_threads(1)
    try:
        group, _ = joined(torch.device("cpu"), waits_s)
        found = function(group, *arguments)
        group.close()
    except BaseException:
        found = _Failure(f"process {rank}:\n{traceback.format_exc()}")
    written = io.BytesIO()  # a tensor would be gone with its process
    torch.save(found, written)
    results.put((rank, written.getvalue()))


def alone(function: Callable[..., Any], *arguments: object):
    """Return what `function(group, *arguments)` returns in this process by itself."""
    return function(Group(), *arguments)

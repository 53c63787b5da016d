"""The processes that train one model together, started by torchrun; one process alone is a group
of one.
"""

from __future__ import annotations

import contextlib
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from detres.engine.batches import Share

Item = TypeVar("Item")

NEEDED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun, or whoever starts the processes, tells each of them in its environment."""

_LINGERS_S = 3.0
"""Seconds that the first process stays after it knows of a lost one."""

WAITS_S = 1800
"""Seconds that processes wait for each other by default: torch's own value."""

_LOST = (
    "timed out",
    "timeout",
    "closed by peer",
    "reset by peer",
    "broken pipe",
    "connection refused",
    "connection was likely closed",
    "remote process exited",
    "read error",
    "socket",
    "nccl",
)
"""In what gloo and NCCL say where another process does not answer."""


class LaunchError(ValueError):
    """The processes of a training could not be put together."""


class ElsewhereError(Exception):
    """Another process of the group has failed, and says why."""


class LostProcessError(RuntimeError):
    """Another process of the group does not answer any more; the message names it and what it was
    doing.

    told_here: whether this is the one of those that waited which tells people.
    """

    def __init__(self, message: str, *, told_here: bool) -> None:
        super().__init__(message)
        self.told_here = told_here


class Group:
    """The processes of one training: who this one is, and what they tell each other.

    All of them must call the same methods in the same order; each returns when all have. One
    process alone never waits. rank: 0..size - 1; the first one, of rank 0, writes and prints.
    """

    rank, size = 0, 1
    now = ""
    """What this process has said that it is doing."""

    @property
    def share(self) -> Share:
        """Which part of a step's images, or of batches, this process gets."""
        return Share(self.rank, self.size)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def doing(self, what: str) -> None:
        """Say what this process is about to do, so that the others can name it should it be
        late.
        """
        self.now = what

    def any(self, flag: bool) -> bool:
        """Return whether `flag` holds in any process."""
        return flag

    def add(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Return numbers by name, the same names in every process, added up over all."""
        return dict(numbers)

    def add_scalars(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return scalar tensors by name, added up over all processes, without gradients."""
        return {name: value.detach() for name, value in values.items()}

    def gather(self, value: Item) -> list[Item]:
        """Return the value of every process, by rank."""
        return [value]

    def broadcast(self, value: Item) -> Item:
        """Return the value of the first process."""
        return value

    def same_buffers(self, model: nn.Module) -> None:
        """Give `model` the buffers that it has in the first process."""

    def wrapped(self, model: nn.Module) -> nn.Module:
        """Return what to call in the place of `model` so that gradients are averaged over the
        processes; the weights become those of the first.
        """
        return model

    def gradients_stay_here(self, _wrapped: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Within, backward passes of a wrapped model add to the gradients and average nothing."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Within, an error of one process is one of all: the first that has one raises it, the
        others ElsewhereError.
        """
        yield

    def explained(self, error: RuntimeError) -> RuntimeError:
        """Return the LostProcessError that an error of waiting for the others comes to; any other
        error as it is.
        """
        return error

    def close(self) -> None:
        """Leave the group."""


class _Launched(Group):
    """Several processes, by torch.distributed: tensors of a GPU by NCCL, all else by gloo."""

    def __init__(
        self, rank: int, size: int, store: dist.Store, device: torch.device, waits_s: float
    ) -> None:
        self.rank, self.size, self.store, self.waits_s = rank, size, store, waits_s
        self.device = device
        self.stage = 0
        waits = timedelta(seconds=waits_s)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            store=dist.PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=waits,
        )
        self.control = dist.new_group(backend="gloo", timeout=waits) if backend == "nccl" else None

    def doing(self, what: str) -> None:
        self.now = what
        self.stage += 1
        self.store.set(f"doing/{self.rank}", f"{self.stage} {time.time():.1f} {what}")

    def any(self, flag: bool) -> bool:
        return self.add({"flag": float(flag)})["flag"] > 0

    def add(self, numbers: Mapping[str, float]) -> dict[str, float]:
        sums = torch.tensor(list(numbers.values()), dtype=torch.float64)
        dist.all_reduce(sums, group=self.control)
        return dict(zip(numbers, sums.tolist(), strict=True))

    def add_scalars(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sums = torch.stack([value.detach() for value in values.values()])
        dist.all_reduce(sums)
        return dict(zip(values, sums, strict=True))

    def gather(self, value: Item) -> list[Item]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.control)
        return found

    def broadcast(self, value: Item) -> Item:
        found = [value]
        dist.broadcast_object_list(found, src=0, group=self.control)
        return found[0]

    def same_buffers(self, model: nn.Module) -> None:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)

    def wrapped(self, model: nn.Module) -> nn.Module:
        with warnings.catch_warnings():  # the name of the option is another in some versions
            warnings.simplefilter("ignore", FutureWarning)
            # the buffers are equal, or of each process: see same_buffers
            return DistributedDataParallel(model, broadcast_buffers=False)

    def gradients_stay_here(self, wrapped: nn.Module) -> contextlib.AbstractContextManager[None]:
        return wrapped.no_sync()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        error: Exception | None = None
        try:
            yield
        except Exception as raised:  # whatever it is, the others must know
            error = raised
        failed = [rank for rank, bad in enumerate(self.gather(error is not None)) if bad]
        if failed and failed[0] == self.rank:
            raise error
        if failed:
            raise ElsewhereError(f"process {failed[0]} has failed") from error

    def explained(self, error: RuntimeError) -> RuntimeError:
        said = str(error).lower()
        if not any(sign in said for sign in _LOST):
            return error
        waited = "timed out" in said or "timeout" in said
        how = f"has not answered within {self.waits_s:g} s" if waited else "has ended"
        try:
            return self._who_is_lost(how)
        except RuntimeError:  # the store went with the process that kept it
            return LostProcessError(
                f"the process that holds the {self.size} together is gone: {_first_line(error)}",
                told_here=True,
            )

    def _who_is_lost(self, how: str) -> LostProcessError:
        self.store.set(f"waited/{self.rank}", "")
        time.sleep(1.0)  # those that waited find out at about the same time
        others = range(self.size)
        waited = [rank for rank in others if self.store.check([f"waited/{rank}"])]
        lost = [rank for rank in others if rank not in waited]
        said = "; ".join(self._what_it_did(rank, how) for rank in lost)
        if self.is_first:
            time.sleep(_LINGERS_S)  # its end may be that of the store, which the others still ask
        return LostProcessError(
            said or f"the connection between the {self.size} processes broke",
            told_here=self.rank == waited[0],
        )

    def _what_it_did(self, rank: int, how: str) -> str:
        who = f"process {rank} of {self.size} {how}"
        if not self.store.check([f"doing/{rank}"]):
            return who
        _, since, what = self.store.get(f"doing/{rank}").decode().split(" ", 2)
        return f"{who}; {time.time() - float(since):.0f} s ago it began: {what}"

    def close(self) -> None:
        dist.destroy_process_group()


def is_launched() -> bool:
    """Return whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def own_name() -> str:
    """Return what a message of this process begins with: nothing but where it is one of several and
    not the first.
    """
    rank = os.environ.get("RANK", "0")
    return f"process {rank}: " if is_launched() and rank != "0" else ""


def joined(device: torch.device, waits_s: float = WAITS_S) -> tuple[Group, torch.device]:
    """Return the group that torchrun has put this process into, and the device of this process; one
    process alone is a group of its own.

    device: a GPU without a number becomes that of the process on its machine. waits_s: seconds that
    processes wait for each other. Raises LaunchError for an environment that is not whole, for
    fewer GPUs than processes, where the port is taken, and where processes do not come.
    """
    if not is_launched():
        return Group(), device
    rank, size, local, host, port = _environment()
    if device.type == "cuda":
        if device.index is None:
            device = torch.device("cuda", local)
        if device.index >= torch.cuda.device_count():
            raise LaunchError(
                f"process {local} of this machine has no GPU: there are "
                f"{torch.cuda.device_count()}; start as many processes (--nproc-per-node)"
            )
        torch.cuda.set_device(device)
    store = _store(host, port, rank, waits_s)
    _await_all(store, rank, size, waits_s)
    return _Launched(rank, size, store, device, waits_s), device


def _environment() -> tuple[int, int, int, str, int]:
    """Rank, size, rank on this machine, host and port of the store."""
    missing = [name for name in NEEDED if not os.environ.get(name)]
    if missing:
        raise LaunchError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} but {missing[0]} is not set: start the "
            "processes with torchrun, or set all of " + ", ".join(NEEDED)
        )
    try:
        rank, size, local, port = (int(os.environ[name]) for name in NEEDED if "ADDR" not in name)
    except ValueError:
        raise LaunchError("of " + ", ".join(NEEDED) + ", all but the address are numbers") from None
    if not 0 <= rank < size:
        raise LaunchError(f"RANK is {rank}, expected 0..{size - 1} (WORLD_SIZE is {size})")
    return rank, size, local, os.environ["MASTER_ADDR"], port


def _store(host: str, port: int, rank: int, waits_s: float) -> dist.Store:
    """What the processes find each other by; torchrun keeps one, else the first process does."""
    kept = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = dist.TCPStore(
            host,
            port,
            is_master=rank == 0 and not kept,
            timeout=timedelta(seconds=waits_s),
            wait_for_workers=False,
        )
    except RuntimeError as error:
        if "address already in use" in str(error).lower() or "eaddrinuse" in str(error).lower():
            raise LaunchError(
                f"port {port} of {host} is in use: give another one (torchrun --master-port, or "
                "MASTER_PORT)"
            ) from None
        raise LaunchError(
            f"the first process does not answer at {host}:{port}: {_first_line(error)}"
        ) from None
    return dist.PrefixStore(f"detres/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _await_all(store: dist.Store, rank: int, size: int, waits_s: float) -> None:
    """Return when all processes are there; raises LaunchError in the first of those that are, which
    names the others, and ElsewhereError in the rest.
    """
    until = time.monotonic() + waits_s
    try:
        store.set(f"here/{rank}", "")
        for other in range(size):
            with contextlib.suppress(RuntimeError):
                left = max(0.01, until - time.monotonic())
                store.wait([f"here/{other}"], timedelta(seconds=left))
        there = [other for other in range(size) if store.check([f"here/{other}"])]
    except RuntimeError as error:  # whoever kept the store has said it, and ended
        raise ElsewhereError("the process that holds the others together is gone") from error
    if len(there) == size:
        return
    lost = [str(other) for other in range(size) if other not in there]
    if rank != there[0]:
        raise ElsewhereError("not all processes have come")
    raise LaunchError(
        f"after {waits_s:g} s only {len(there)} of {size} processes have come; missing: "
        f"{', '.join(lost)}"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]

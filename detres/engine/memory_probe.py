"""What the worst batch of a training takes, found by going through it once, before the first
step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from detres.engine.distributed import Group
from detres.engine.memory import (
    StepMemoryError,
    described,
    is_out_of_memory,
    taken_at_most,
)
from detres.engine.probes import Precision
from detres.engine.step import Batch, GradientStep

USABLE = 0.9
"""Of a device's memory: the rest is for what is not part of a step."""


def step_peak(model: nn.Module, batch: Batch, device: torch.device, precision: Precision) -> int:
    """Return how many bytes are in use at the peak of one step on `batch`, forward and backward,
    with as much beside the weights as the momenta of an optimizer take.

    Weights, gradients (none), norm statistics and random numbers are afterwards as they were.
    Raises torch's own error where the memory does not hold it. On a processor without Linux it is
    the most that the process has taken so far.
    """
    with _as_it_was(model, device), taken_at_most(device) as peak:
        momenta = [torch.zeros_like(each) for each in model.parameters() if each.requires_grad]
        GradientStep(model, model, Group(), device, precision).whole([batch], seed=0)
        del momenta
    return peak.bytes


def peak_in_words(
    model: nn.Module, batch: Batch, device: torch.device, precision: Precision
) -> str:
    """Return how much one step on the worst batch takes at the peak, of how much there is; raises
    StepMemoryError where there is not enough.
    """
    what = f"worst batch, {described([batch])}"
    try:
        peak = step_peak(model, batch, device, precision)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise StepMemoryError(f"the {what}") from error
    limit = memory_of(device)
    of = "" if limit is None else f" of {in_gib(limit)}"
    return f"{what}: {in_gib(peak)}{of} at the peak"


def memory_of(device: torch.device) -> int | None:
    """Return how many bytes `device` has for this process, what it holds already included; None
    where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    try:
        available = _line_of("/proc/meminfo", "MemAvailable")
        return available + _line_of("/proc/self/status", "VmRSS")
    except OSError:
        return None


def largest_that_fits(
    sizes: list[int], peak: Callable[[int], int], limit: int | None
) -> tuple[int | None, str]:
    """Return the largest of rising `sizes` of a batch whose step fits, and why not a larger one, in
    words; None: not even the first.

    peak: size -> bytes, or torch's error where there is no memory. limit: bytes that there are,
    None: not known. A size that would take more than 0.9 of them, as far as the two before it show,
    is not tried: a processor's memory has no error, its process is killed.
    """
    found: list[tuple[int, int]] = []
    for size in sizes:
        expected = _expected(found, size)
        if limit is not None and expected > USABLE * limit:
            return found[-1][0], f"{size} would take {in_gib(expected)} of {in_gib(limit)}"
        try:
            taken = peak(size)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return (found[-1][0] if found else None), f"{size} does not fit"
        if limit is not None and taken > USABLE * limit:
            why = f"{size} takes {in_gib(taken)} of {in_gib(limit)}"
            return (found[-1][0] if found else None), why
        found.append((size, taken))
    return found[-1][0], f"it takes {in_gib(found[-1][1])}"


def in_gib(number: float) -> str:
    """Return bytes in words."""
    return f"{number / 2**30:.1f} GiB"


def _expected(found: list[tuple[int, int]], size: int) -> float:
    """What `size` would take, in proportion to the last two; nothing where that is not known."""
    if len(found) < 2:
        return 0
    (less, low), (more, high) = found[-2:]
    return high + (high - low) * (size - more) / (more - less)


@contextlib.contextmanager
def _as_it_was(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Within, `model` trains; afterwards it and torch's random numbers are as before."""
    training = {module: module.training for module in model.modules()}
    buffers = {name: each.clone() for name, each in model.named_buffers()}
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            model.train()
            yield
        finally:
            for module, mode in training.items():
                module.training = mode
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
            for parameter in model.parameters():
                parameter.grad = None
            if device.type == "cuda":
                torch.cuda.empty_cache()


def _line_of(path: str, name: str) -> int:
    """Bytes that a file of Linux gives in kB."""
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{path} has no {name}")

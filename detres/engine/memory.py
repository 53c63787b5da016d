"""How much memory a training takes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

try:
    import resource
except ImportError:  # not on Windows
    resource = None


CPU_ALLOCATOR = "DefaultCPUAllocator"
"""In the RuntimeError that PyTorch has for a processor without memory."""

_FIRST = 8
"""Images of a step whose sizes and boxes are named."""


class StepMemoryError(MemoryError):
    """A step for which there is not the memory; the message has the sizes of its images, their
    boxes, and why it was not divided.
    """


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether PyTorch's allocators, of a GPU or of the processor, raised `error` for want of
    memory.
    """
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and CPU_ALLOCATOR in str(error)
    )


def why_indivisible(model: nn.Module) -> str | None:
    """Return in words what makes of a batch in halves something else than of the whole; None:
    nothing does.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            return "batch norm takes its statistics from the images at once"
    return getattr(model, "indivisible", None)


def described(parts: list[tuple[object, object]]) -> str:
    """Return in words how large the batches of a step are, and how many boxes their images have."""
    said = []
    for images, targets in parts:
        height, width = images.pixels.shape[2:]
        line = f"{len(images)} of {width}x{height} px"
        if isinstance(targets, list):
            boxes = [str(len(target)) for target in targets]
            more = f" and {len(boxes) - _FIRST} more" if len(boxes) > _FIRST else ""
            line += f" with {', '.join(boxes[:_FIRST])}{more} boxes"
        said.append(line)
    return "; ".join(dict.fromkeys(said))


@dataclass
class Peak:
    """The most bytes that were in use in a stretch of time; known when it is over."""

    bytes: int = 0


@contextlib.contextmanager
def taken_at_most(device: torch.device) -> Iterator[Peak]:
    """Give what will say how much memory was in use at most within: reserved on a GPU, else
    resident, of a system other than Linux since the process began; 0 where it does not tell.
    """
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_reserved(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew
    yield peak
    peak.bytes = _resident_at_most()


def _resident_at_most() -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return _most_so_far() or 0


def _most_so_far() -> int | None:
    """The most bytes this process has had since it began; None where the system does not tell."""
    if resource is None:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # Linux counts kibibytes


def most_memory() -> str | None:
    """Return `most_bytes` in words."""
    most = most_bytes()
    if most is None:
        return None
    return f"{'GPU ' if torch.cuda.is_initialized() else ''}{most / 2**30:.1f} GiB"


def most_bytes() -> int | None:
    """Return the most that this process has taken so far, of the GPU where it uses one; None where
    the system does not tell. Loader workers are not counted.
    """
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved()
    return _most_so_far()

"""Which arithmetic is the faster one here."""

from __future__ import annotations

import time
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Precision = Literal["fp32", "bf16"]


def faster_precision(device: torch.device) -> Precision:
    """Return "bf16" where a 3x3 convolution of a ResNet takes less than 0.8 of its time in float32,
    else "fp32".

    Processors with bf16 instructions, and GPUs since Ampere, take half the time; others emulate it
    at several times the cost. Takes well under a second.
    """
    seconds = {
        dtype: _convolution_seconds(device, dtype) for dtype in (torch.float32, torch.bfloat16)
    }
    return "bf16" if seconds[torch.bfloat16] < 0.8 * seconds[torch.float32] else "fp32"


@torch.inference_mode()
def _convolution_seconds(device: torch.device, dtype: torch.dtype) -> float:
    x = torch.ones((8, 128, 28, 28), device=device, dtype=dtype).to(
        memory_format=torch.channels_last
    )
    weight = torch.ones((128, 128, 3, 3), device=device, dtype=dtype).to(
        memory_format=torch.channels_last
    )
    times = []
    for _ in range(7):
        started = time.perf_counter()
        F.conv2d(x, weight, padding=1)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times)


def compile_failure(device: torch.device) -> str | None:
    """Return in one line why torch.compile does not work on `device`, None where it does; takes
    seconds.

    It wants a C++ compiler, on a GPU Triton and compute capability 7.0 besides, and says what lacks
    only when it compiles; so one line of arithmetic is compiled and run.
    """
    try:
        torch.compile(_arithmetic)(torch.ones(8, device=device))
    except Exception as error:  # whatever it is, training can do without
        return next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
    return None


def _arithmetic(x: Tensor) -> Tensor:
    return 2 * x + 1

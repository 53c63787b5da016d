"""What the machine does at best: convolutions in the layout and precision that it is fastest in."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import torch
from torch import nn

from backbones.fused import FusedConv2d

_SHAPES = (
    (300, 512, 512, 7, 3),
    (100, 512, 512, 7, 3),
    (8, 256, 256, 38, 3),
    (50, 1024, 512, 14, 1),
    (50, 2048, 512, 7, 1),
)
"""Batch, channels in and out, cells of a side, kernel: those of a detector's networks."""


def best_rate(dtype: torch.dtype, device: torch.device, repeats: int = 7) -> float:
    """Return the most floating-point operations a second that the library makes any of a few
    convolutions of a detector with in `dtype`, of `repeats` runs each.
    """
    best = 0.0
    for batch, channels, width, side, kernel in _SHAPES:
        conv = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=False).to(device)
        fused = FusedConv2d(conv, None, dtype, relu=False)
        x = torch.randn((batch, channels, side, side), device=device, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        operations = 2 * batch * channels * width * side**2 * kernel**2
        with torch.inference_mode():
            for _ in range(repeats):
                started = time.perf_counter()
                fused.by_library(x)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                best = max(best, operations / (time.perf_counter() - started))
    return best


def machine(device: torch.device) -> str:
    """Return in a line what computes."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

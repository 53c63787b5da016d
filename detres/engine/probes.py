"""What this machine can do: arithmetic, and compiling."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Precision = Literal["fp32", "bf16", "fp16"]

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The type in which a forward pass computes what it can; None: that of its tensors."""

_BF16_CAPABILITY = (8, 0)
"""Compute capability from which NVIDIA's GPUs have bf16 instructions: Ampere."""

_BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16")
"""Of processors, as torch.cpu.get_capabilities names them; the last one is ARM's."""


def native_precision(device: torch.device) -> tuple[Precision, str]:
    """Return "bf16" where `device` has instructions for it, else "fp32", and why, in words.

    Decided by what the device is, never by a clock, so that equal runs are equal. With such
    instructions a 3x3 convolution of a ResNet (128 channels, 28x28, batch 8) takes half its time
    in float32: 8.1 instead of 16.4 ms on one core of an EPYC with AVX512-BF16 and without AMX;
    others emulate them at several times the cost.
    """
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        has = (major, minor) >= _BF16_CAPABILITY
        what = f"the GPU's compute capability is {major}.{minor}, bf16 instructions come with 8.0"
        return ("bf16" if has else "fp32"), what
    if device.type != "cpu":
        return "fp32", f"of {device.type} it is not known whether it has bf16 instructions"
    found = [name for name in _BF16_INSTRUCTIONS if name in _cpu_instructions()]
    if found:
        return "bf16", f"the processor has bf16 instructions, {found[0]}"
    return "fp32", "the processor has no bf16 instructions"


def precision_failure(precision: Precision, device: torch.device) -> str | None:
    """Return in one line why a training cannot be of this precision on `device`, None where it can:
    processors have no instructions for fp16's gradients, and need no more than bf16.
    """
    if precision == "fp16" and device.type != "cuda":
        return "fp16 needs a GPU: bf16 is for processors"
    return None


def _cpu_instructions() -> set[str]:
    """Those for bf16 that this processor has; PyTorch before 2.14 tells of x86's only."""
    if hasattr(torch.cpu, "get_capabilities"):
        return {name for name, has in torch.cpu.get_capabilities().items() if has is True}
    tests = {"amx_bf16": "_is_amx_tile_supported", "avx512_bf16": "_is_avx512_bf16_supported"}
    return {name for name, test in tests.items() if getattr(torch.cpu, test, bool)()}


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

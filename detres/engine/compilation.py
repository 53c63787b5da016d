"""Whether torch.compile works on this machine."""

from __future__ import annotations

import torch
from torch import Tensor


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

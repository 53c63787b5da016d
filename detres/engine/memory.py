"""How much memory a training takes."""

from __future__ import annotations

import sys

import torch

try:
    import resource
except ImportError:  # not on Windows
    resource = None


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
    if resource is None:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024  # Linux counts kibibytes

"""How much memory a training takes."""

from __future__ import annotations

import sys

import torch

try:
    import resource
except ImportError:  # not on Windows
    resource = None


def most_memory() -> str | None:
    """Return the most that this process has taken so far in words, of the GPU where it uses one;
    None where the system does not tell. Loader workers are not counted.
    """
    if torch.cuda.is_initialized():
        return f"GPU {torch.cuda.max_memory_reserved() / 2**30:.1f} GiB"
    if resource is None:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    in_bytes = most if sys.platform == "darwin" else most * 1024  # Linux counts kibibytes
    return f"{in_bytes / 2**30:.1f} GiB"

"""Equal weights for equal seeds: what makes torch compute alike every time, and digests to see it
by.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from detres.engine.distributed import Group
from detres.engine.step import Batch

_LIMIT = 2**128
_SHOWN = 16
"""Characters of a digest."""


class DeterminismError(ValueError):
    """An operation that a device cannot compute alike every time; the message names it."""


def compute_alike() -> None:
    """Let torch, in this process from now on, compute equal results from equal inputs, and raise
    for an operation that cannot; to be called before a GPU is first used for a product of matrices.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def explained(error: RuntimeError) -> DeterminismError | None:
    """Return what torch's error of an operation after `compute_alike` comes to; None for any other
    error.
    """
    found = re.match(r"(\S+) does not have a deterministic implementation", str(error))
    if found is None:
        return None
    return DeterminismError(f"{found[1]} does not compute alike every time on this device")


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return 16 characters that are equal for equal tensors, of any shape (...,), by name."""
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:_SHOWN]


class OrderDigest:
    """A digest of which images stood where in all steps so far, the same however a step is divided
    among processes and parts: the sum of what every image in its place comes to.

    total: of those that this process has seen.
    """

    def __init__(self) -> None:
        self.total = 0

    def see(self, step: int, parts: list[Batch], group: Group) -> None:
        """Take in the images of one step, those that this process of `group` looks at."""
        for number, (images, _) in enumerate(parts):
            first = (number * group.size + group.rank) * len(images)
            for place, image_id in enumerate(images.ids, start=first):
                given = f"{step} {place} {image_id!r}".encode()
                found = hashlib.blake2b(given, digest_size=16).digest()
                self.total = (self.total + int.from_bytes(found, "big")) % _LIMIT

    def of_all(self, group: Group) -> str:
        """Return 32 characters for what all processes of `group`, which call this together, have
        seen.
        """
        return f"{sum(group.gather(self.total)) % _LIMIT:032x}"

    def restore(self, digest: object, group: Group) -> None:
        """Go on from `of_all`; raises ValueError where it is no such digest."""
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{32}", digest):
            raise ValueError(f"{digest!r:.40} is no digest")
        self.total = int(digest, 16) if group.is_first else 0


def shown(digest: str) -> str:
    """Return as much of a digest as a record has."""
    return digest[:_SHOWN]

"""What a run depends on of its data, in so few bytes that every state holds it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class DataChangedError(ValueError):
    """The data are not those that a run has learned from."""


@dataclass(frozen=True)
class Fingerprint:
    """Of N records in their order: `records` (N,) int64, a hash of each as it is trained on, and
    `files` (N,) int64, a hash of the name and the size of the file it is read from.

    name: index -> what a message calls a record.
    """

    records: Tensor
    files: Tensor
    name: Callable[[int], str]

    def state(self) -> dict[str, Tensor]:
        """Return what last.pt holds of it."""
        return {"records": self.records, "files": self.files}

    def what_changed(self, saved: dict[str, Tensor]) -> str | None:
        """Return in words how these data differ from those whose `state` was `saved`; None where
        they do not. Raises ValueError when it is no such state.
        """
        earlier, files = saved["records"], saved["files"]
        for hashes in (earlier, files):
            if hashes.dtype != torch.int64 or hashes.dim() != 1 or len(hashes) != len(earlier):
                raise ValueError("expected two lists of hashes, one for every record")
        before, now = len(earlier), len(self.records)
        common = min(before, now)
        differing = (self.records[:common] != earlier[:common]).nonzero().flatten()
        if before != now:
            first = int(differing[0]) if len(differing) else common
            which = f", the first that differs is {self.name(first)}" if first < now else ""
            return f"{before:,} records then, {now:,} now{which}"
        if len(differing) and torch.equal(self.records.sort()[0], earlier.sort()[0]):
            return (
                f"the same {now:,} records in another order, from {self.name(int(differing[0]))} on"
            )
        if len(differing):
            return (
                f"{len(differing):,} of {now:,} records differ, the first is "
                f"{self.name(int(differing[0]))}"
            )
        other = (self.files != files).nonzero().flatten()
        if len(other):
            return (
                f"the files of {len(other):,} of {now:,} records have another name or size, the "
                f"first is {self.name(int(other[0]))}"
            )
        return None


def hashes_of(records: Iterable[tuple[str | bytes, ...]]) -> Tensor:
    """Return (N,) int64, a hash of each record's parts; (0,) without records."""
    return torch.tensor([_hash(parts) for parts in records], dtype=torch.int64)


def file_hashes(paths: Sequence[str]) -> Tensor:
    """Return (N,) int64, a hash of the size in bytes of each file and of its path below the folder
    they have in common, so that data which have moved as a whole are the same.

    A file that is not there counts as one of no size: who reads it will say so.
    """
    folders = {os.path.dirname(path) for path in paths}
    skipped = len(os.path.commonpath(folders)) if folders else 0
    return hashes_of((path[skipped:].replace(os.sep, "/"), str(_size(path))) for path in paths)


def _hash(parts: Iterable[str | bytes]) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        encoded = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return int.from_bytes(digest.digest(), "little", signed=True)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1

"""The values that travel between the parts of classification: disk -> labelled images -> CropBatch,
ClassTargets -> detres.losses or logits.

Everywhere: N images of a batch, K classes. Labels are int64 indices of a ClassMap, 0..K-1; there is
no background.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class CropBatch:
    """N images of one size for a classifier: `pixels` (N, 3, H, W) uint8 RGB, normalised by the
    model on its device; N `ids`.

    damaged: images that could not be read, whose places others of the batch have taken.
    """

    pixels: Tensor
    ids: tuple[int | str, ...]
    damaged: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, device: torch.device | str) -> CropBatch:
        """Return it on `device`; from pinned memory the copy overlaps with computing."""
        return CropBatch(self.pixels.to(device, non_blocking=True), self.ids, self.damaged)

    def select(self, rows: Sequence[int]) -> CropBatch:
        """Return the batch of these of its images, in this order; raises IndexError for others."""
        return CropBatch(
            self.pixels[list(rows)], tuple(self.ids[row] for row in rows), self.damaged
        )

    def pin_memory(self) -> CropBatch:
        """Return it in memory from which a GPU copies while it computes; a DataLoader calls this by
        its name.
        """
        return CropBatch(self.pixels.pin_memory(), self.ids, self.damaged)


@dataclass(frozen=True)
class ClassTargets:
    """The classes of a batch: `labels` (N,) int64, 0..K-1; there is no background."""

    labels: Tensor

    def to(self, device: torch.device | str) -> ClassTargets:
        """Return it on `device`; from pinned memory the copy overlaps with computing."""
        return ClassTargets(self.labels.to(device, non_blocking=True))

    def select(self, rows: Sequence[int]) -> ClassTargets:
        """Return those of these images, in this order; raises IndexError for others."""
        return ClassTargets(self.labels[list(rows)])

    def pin_memory(self) -> ClassTargets:
        """As CropBatch's."""
        return ClassTargets(self.labels.pin_memory())

"""Sampler: a fixed-size random choice of foreground and background candidates for the losses."""

from __future__ import annotations

import torch
from torch import Tensor

from detres.detection.models.matcher import BELOW


class Sampler:
    """Draws at most `batch_size` candidates of an image, at most the share `positive_fraction` of
    them foreground.

    py-faster-rcnn: 256 with 0.5 for the RPN, 128 with 0.25 for the RoI head. Missing foreground is
    filled up with background; missing background is not filled up.

    Raises ValueError for numbers out of range.
    """

    def __init__(self, *, batch_size: int, positive_fraction: float) -> None:
        if batch_size < 1 or not 0 <= positive_fraction <= 1:
            raise ValueError(
                f"sampler needs batch_size >= 1 and 0 <= positive_fraction <= 1, got {batch_size} "
                f"and {positive_fraction}"
            )
        self.batch_size = batch_size
        self.positive_fraction = positive_fraction

    def __call__(
        self, matched_idxs: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return row indices (P,) of sampled foreground and (Q,) of sampled background, without
        repetition.

        matched_idxs: (N,) as Matcher gives them. generator: what draws, None: torch's global one.
        Both may be empty.
        """
        positive = torch.nonzero(matched_idxs >= 0).flatten()
        negative = torch.nonzero(matched_idxs == BELOW).flatten()
        num_positive = min(len(positive), round(self.batch_size * self.positive_fraction))
        num_negative = min(len(negative), self.batch_size - num_positive)
        return (
            self._draw(positive, num_positive, generator),
            self._draw(negative, num_negative, generator),
        )

    def _draw(self, rows: Tensor, num: int, generator: torch.Generator | None) -> Tensor:
        if num == len(rows):
            return rows
        return rows[torch.randperm(len(rows), device=rows.device, generator=generator)[:num]]

"""The losses of a batch, as sums and what they are divided by, so that those of its parts can be
put together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Losses:
    """What was trained with, by name: of Faster R-CNN loss_rpn_cls and loss_roi_cls in nats,
    loss_rpn_box and loss_roi_box of dimensionless deltas; of a classifier loss_cls in nats.

    sums: scalar tensors. counts: how many things each is summed over, or the number that it is
    divided by in their place. watched: names that are shown and not minimised. The counts of the
    parts of a batch add up to its own, so a part's sum over the count of the whole is its share of
    the whole's mean: it makes no difference how a batch is divided. A count of 0 divides as 1.
    """

    sums: dict[str, Tensor]
    counts: dict[str, int]
    watched: frozenset[str] = frozenset()

    def terms(self, counts: Mapping[str, float] | None = None) -> dict[str, Tensor]:
        """Return name -> scalar tensor: the means, or shares of the means over other `counts`."""
        counts = self.counts if counts is None else counts
        return {name: value / max(1, counts[name]) for name, value in self.sums.items()}

    def total(self, counts: Mapping[str, float] | None = None) -> Tensor:
        """Return the unweighted sum of the terms that are minimised, a scalar tensor."""
        terms = self.terms(counts)
        return sum(value for name, value in terms.items() if name not in self.watched)

    def __or__(self, other: Losses) -> Losses:
        """Return the terms of both."""
        return Losses(
            self.sums | other.sums, self.counts | other.counts, self.watched | other.watched
        )

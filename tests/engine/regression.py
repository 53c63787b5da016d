"""A linear regression, the smallest thing the loop can train, and its batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detres.losses import Losses


@dataclass(frozen=True)
class Batch:
    """Inputs (N, 3) with the ids of where they came from."""

    values: Tensor
    ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Batch:
        return Batch(self.values.to(device), self.ids)


def losses_of(loss_fit: Tensor, loss_size: Tensor) -> Losses:
    sums = {"loss_fit": loss_fit, "loss_size": loss_size}
    return Losses(sums, dict.fromkeys(sums, 1))


class Regression(nn.Module):
    """Linear regression on a random half of each batch, so that resuming has randomness to
    repeat.
    """

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, batch: Batch, targets: list[Tensor]) -> Losses:
        chosen = torch.randperm(len(batch))[: max(1, len(batch) // 2)]
        error = self.linear(batch.values[chosen]).squeeze(1) - torch.stack(targets)[chosen]
        return losses_of(error.square().mean(), 0.1 * self.linear.weight.abs().sum())


def batches(start: int, stop: int) -> Iterator[tuple[Batch, list[Tensor]]]:
    for step in range(start, stop):
        values = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        yield (
            Batch(values, tuple(f"{step}-{row}" for row in range(8))),
            list(values @ torch.tensor([1.0, -2.0, 3.0])),
        )


def poisoned(at: int, steps: int = 10) -> Iterator[tuple[Batch, list[Tensor]]]:
    """Batches of which one has targets that are not numbers."""
    for step, (batch, targets) in enumerate(batches(0, steps)):
        yield batch, [target * float("nan") for target in targets] if step == at else targets


def same_tensors(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def same_training(
    one: tuple[nn.Module, torch.optim.Optimizer], other: tuple[nn.Module, torch.optim.Optimizer]
) -> bool:
    """Whether weights and momenta are the same, bit for bit."""
    momenta = [optimizer.state_dict()["state"] for _, optimizer in (one, other)]
    return same_tensors(one[0].state_dict(), other[0].state_dict()) and all(
        torch.equal(momenta[0][key]["momentum_buffer"], momenta[1][key]["momentum_buffer"])
        for key in momenta[0]
    )

"""One step's gradients: of a batch in parts, on one process or several, the same in every division
of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from detres.engine.batches import targets_to
from detres.engine.distributed import Group
from detres.engine.probes import Precision
from detres.losses import Losses

Batch = tuple[Any, Any]
"""Images with .to(device) and len(), and targets, or each of a list of them, with .to(device)."""


_TOTAL = "total"


@dataclass(frozen=True)
class GradientStep:
    """What makes the gradients of a step.

    model: (images, targets) -> Losses, as `group` wraps it. precision: of the forward pass.
    """

    model: nn.Module
    wrapped: nn.Module
    group: Group
    device: torch.device
    precision: Precision

    def take(self, parts: list[Batch], seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Leave in every parameter's .grad that of the mean losses over the whole step, all parts
        of all processes, and return their total and their terms, name -> scalar tensor.

        parts: what this process looks at, one after the other. seed: of what the model draws from
        torch's generator. What a loss is divided by is known only when all parts were seen: the
        first part tells what to expect, and should it be otherwise (regions that are too few to
        sample from), the gradients are made once more, now by the true counts.
        """
        counts = None
        while True:
            sums, seen, used = self._pass(parts, seed, counts)
            if seen == used:
                break
            for parameter in self.model.parameters():
                parameter.grad = None
            counts = seen
        terms = self.group.add_scalars(sums)
        return terms.pop(_TOTAL), terms

    def _pass(
        self, parts: list[Batch], seed: int, counts: Mapping[str, float] | None
    ) -> tuple[dict[str, Tensor], dict[str, float], dict[str, float]]:
        """Go forward and backward through all parts; returns this process's shares of the terms and
        of their total, what was counted in the whole step, and what was divided by.
        """
        sums: dict[str, Tensor] = {}
        seen: dict[str, float] = {}
        for number, part in enumerate(parts):
            with self._averaging(last=number == len(parts) - 1):
                losses = self.forward(part, number, seed)
                counted = self.group.add(losses.counts)
                if counts is None:
                    counts = {name: number * len(parts) for name, number in counted.items()}
                total = losses.total(counts)
                # gradients are averaged over the processes, and the sum is wanted
                (total * self.group.size + self._nothing(losses)).backward()
            shares = {_TOTAL: total, **losses.terms(counts)}
            for name, value in shares.items():
                sums[name] = sums.get(name, 0.0) + value.detach()
            for name, count in counted.items():
                seen[name] = seen.get(name, 0.0) + count
        return sums, seen, counts

    def forward(self, part: Batch, number: int, seed: int) -> Losses:
        """Return the losses of the `number`-th part that this process looks at, by `wrapped`."""
        images, targets = part[0].to(self.device), targets_to(self.device, part[1])
        torch.manual_seed(_mixed(seed, number * self.group.size + self.group.rank))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            return self.wrapped(images, targets)

    def _averaging(self, last: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients are averaged over the processes in the backward pass of the last part."""
        if last:
            return contextlib.nullcontext()
        return self.group.gradients_stay_here(self.wrapped)

    def _nothing(self, losses: Losses) -> Tensor | float:
        """A 0 that depends on every parameter where a loss counts nothing: other processes, or
        parts, which do have something, wait for a gradient of each.
        """
        if all(losses.counts.values()):
            return 0.0
        return sum(
            parameter.flatten()[:0].sum()
            for parameter in self.model.parameters()
            if parameter.requires_grad
        )


def in_steps(batches: Iterable[Batch], parts: int) -> Iterator[list[Batch]]:
    """Yield the batches of each step, `parts` of them; what is left over at the end is no step."""
    step: list[Batch] = []
    for batch in batches:
        step.append(batch)
        if len(step) == parts:
            yield step
            step = []


def _mixed(seed: int, place: int) -> int:
    """Of a step's seed that of one of its places; the first has the seed itself."""
    return (seed + place * 2**40) % 2**63

"""One step's gradients: of a batch in parts, on one process or several, the same in every division
of it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from detres.engine.batches import targets_to
from detres.engine.distributed import Group
from detres.engine.memory import StepMemoryError, described, is_out_of_memory, why_indivisible
from detres.engine.probes import AUTOCAST, Precision
from detres.losses import Losses

Batch = tuple[Any, Any]
"""Images with .to(device), .select(rows), len() and pixels (N, 3, H, W), and targets with the first
two, or a list of them, each with .to(device).
"""


_TOTAL = "total"


@dataclass
class GradientStep:
    """What makes the gradients of a step.

    model: (images, targets) -> Losses, as `group` wraps it. precision: of the forward pass. scaler:
    what multiplies losses, and with them the gradients that are left; by default nothing does.
    say: called with a line where a step is divided for want of memory. halved: whether it was.
    """

    model: nn.Module
    wrapped: nn.Module
    group: Group
    device: torch.device
    precision: Precision
    scaler: torch.amp.GradScaler = field(
        default_factory=lambda: torch.amp.GradScaler(enabled=False)
    )
    say: Callable[[str], None] = lambda _: None
    halved: bool = False

    def take(self, parts: list[Batch], seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Leave in every parameter's .grad that of the mean losses over the whole step, all parts
        of all processes, and return their total and their terms, name -> scalar tensor.

        parts: what this process looks at, one after the other. seed: of what the model draws from
        torch's generator. What a loss is divided by is known only when all parts were seen: the
        first part tells what to expect, and should it be otherwise (regions that are too few to
        sample from), the gradients are made once more, now by the true counts.

        Where the memory is used up, every part goes in two halves from then on, with the same
        result. Raises StepMemoryError where it is used up again, where halves would give another
        result, and on several processes, which must all go alike.
        """
        if not self.halved:
            try:
                return self.whole(parts, seed)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(parts, error)
            self._forget_gradients()  # here, where the error holds no activations any more
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        halves = [half for part in parts for half in _halves(*part)]
        try:
            return self.whole(halves, seed)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise _no_memory(halves, "in halves already", error) from error

    def whole(self, parts: list[Batch], seed: int) -> tuple[Tensor, dict[str, Tensor]]:
        """As `take`, of parts that are divided no further: torch's own error where the memory is
        used up.
        """
        counts = None
        while True:
            sums, seen, used = self._pass(parts, seed, counts)
            if seen == used:
                break
            self._forget_gradients()
            counts = seen
        terms = self.group.add_scalars(sums)
        return terms.pop(_TOTAL), terms

    def _halve(self, parts: list[Batch], error: RuntimeError) -> None:
        """Take every part in halves from now on; raises StepMemoryError where that cannot be."""
        why = why_indivisible(self.model)
        if self.group.size > 1:
            why = f"one of {self.group.size} processes, which divide their steps alike"
        elif max(len(images) for images, _ in parts) < 2:
            why = "a single image at once"
        if why is not None:
            raise _no_memory(parts, f"not divided: {why}", error) from error
        self.halved = True
        self.say(
            f"the memory is used up ({described(parts)}): from here on every step goes in twice as "
            "many parts, with the same result"
        )

    def _forget_gradients(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = None

    def _pass(
        self, parts: list[Batch], seed: int, counts: Mapping[str, float] | None
    ) -> tuple[dict[str, Tensor], dict[str, float], dict[str, float]]:
        """Go forward and backward through all parts; returns this process's shares of the terms and
        of their total, what was counted in the whole step, and what was divided by.
        """
        size = sum(len(images) for images, _ in parts)
        sums: dict[str, Tensor] = {}
        seen: dict[str, float] = {}
        for number, part in enumerate(parts):
            with self._averaging(last=number == len(parts) - 1):
                losses = self.forward(part, number, seed)
                counted = self.group.add(losses.counts)
                if counts is None:
                    own = len(part[0])
                    counts = {name: each * size / own for name, each in counted.items()}
                total = losses.total(counts)
                # gradients are averaged over the processes, and the sum is wanted
                scaled = self.scaler.scale(total * self.group.size)
                (scaled + self._nothing(losses)).backward()
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
        dtype = AUTOCAST[self.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
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


def _halves(images: Any, targets: Any) -> list[Batch]:
    """A batch in two, the first one with the odd image; a single image as it is."""
    middle = (len(images) + 1) // 2
    rows = [range(middle), range(middle, len(images))]
    return [
        (
            images.select(each),
            [targets[row] for row in each] if isinstance(targets, list) else targets.select(each),
        )
        for each in rows
        if len(each) > 0
    ]


def _no_memory(parts: list[Batch], why: str, error: RuntimeError) -> StepMemoryError:
    asked = str(error).strip().partition("\n")[0]
    return StepMemoryError(f"images at once: {described(parts)}; {why}; {asked}")


def _mixed(seed: int, place: int) -> int:
    """Of a step's seed that of one of its places; the first has the seed itself."""
    return (seed + place * 2**40) % 2**63

"""What the layers of a model put out, and which gradients they get: a few numbers each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Statistics:
    """Of one tensor: its name and shape; min, max, mean and standard deviation of its finite
    values, None where there are none; how many are not finite.
    """

    name: str
    shape: tuple[int, ...]
    min: float | None
    max: float | None
    mean: float | None
    std: float | None
    nonfinite: int

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Statistics:
        """Return those of a tensor of any shape (...,); whole numbers and flags count as floats."""
        values = tensor.detach().to(torch.float64 if tensor.device.type == "cpu" else torch.float32)
        finite = values[values.isfinite()]
        lost, shape = values.numel() - finite.numel(), tuple(tensor.shape)
        if not finite.numel():
            return cls(name, shape, None, None, None, None, lost)
        found = finite.min(), finite.max(), finite.mean(), finite.std(correction=0)
        return cls(name, shape, *(each.item() for each in found), lost)


@contextlib.contextmanager
def watched(model: nn.Module) -> Iterator[list[Statistics]]:
    """Within, every call of a module of `model` adds the statistics of its outputs to the list that
    is given, in the order in which they were made: those of a module after its parts'. A module
    that is called twice is there twice; one without a name, the model itself, is called "model".
    """
    found: list[Statistics] = []

    def note(name: str, output: object) -> None:
        found.extend(Statistics.of(name, tensor) for tensor in _tensors(output))

    def noting(name: str) -> nn.modules.module.RemovableHandle:
        return modules[name].register_forward_hook(
            lambda _module, _inputs, output: note(name or "model", output)
        )

    modules = dict(model.named_modules())
    handles = [noting(name) for name in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def gradient_statistics(model: nn.Module) -> list[Statistics]:
    """Return those of the gradient of every parameter that has one."""
    return [
        Statistics.of(name, parameter.grad)
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    ]


def _tensors(output: object) -> Iterator[Tensor]:
    """All tensors of what a module returned."""
    if isinstance(output, Tensor):
        yield output
        return
    parts: object = ()
    if isinstance(output, Mapping):
        parts = output.values()
    elif isinstance(output, (list, tuple)):
        parts = output
    elif is_dataclass(output):
        parts = [getattr(output, each.name) for each in fields(output)]
    for part in parts:
        yield from _tensors(part)

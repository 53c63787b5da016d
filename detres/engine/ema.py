"""The exponential moving average of a model's weights, and weights that take a model's place for a
while.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

_STEPS_TO_FORGET = 10
"""In the warm-up of the decay: after few steps s it is (1 + s) / (10 + s)."""


class WeightAverage:
    """The exponential moving average of the tensors of a model, which itself learns on.

    decay: of what one step keeps of the average once many are done; after s steps it is
    min(decay, (1 + s) / (10 + s)), so that random first weights are soon forgotten (TensorFlow's
    ExponentialMovingAverage with num_updates). Floating-point parameters and buffers, the
    statistics of batch norm among them, are averaged; whole numbers are copied. Begins as a copy
    of the model as it is. Raises ValueError for a decay outside (0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay {decay} of a moving average, expected between 0 and 1")
        self.decay = decay
        self.tensors = {name: each.detach().clone() for name, each in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the tensors that `model` has after `step` steps, counted from 1."""
        new = 1 - min(self.decay, (1 + step) / (_STEPS_TO_FORGET + step))
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                self.tensors[name].lerp_(tensor, new)
            else:
                self.tensors[name].copy_(tensor)

    def state(self) -> dict[str, Tensor]:
        """Return what `restore` goes on from: name -> tensor (...,), as of the model."""
        return {name: tensor.contiguous() for name, tensor in self.tensors.items()}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Go on from `state`; raises ValueError for tensors of other names, shapes or kinds, which
        leave the average as it is.
        """
        if saved.keys() != self.tensors.keys():
            other = sorted(saved.keys() ^ self.tensors.keys())
            raise ValueError(f"{other[0]!r:.60} is missing, or should be")
        for name, own in self.tensors.items():
            if saved[name].shape != own.shape or saved[name].dtype != own.dtype:
                raise ValueError(
                    f"{name} is {saved[name].dtype} {tuple(saved[name].shape)}, expected "
                    f"{own.dtype} {tuple(own.shape)}"
                )
        for name, own in self.tensors.items():
            own.copy_(saved[name])


@contextlib.contextmanager
def having(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, `model` has `tensors`, of any shape (...,), by the names and with the shapes of its
    own, which come back afterwards bit for bit, also after an error.
    """
    own = model.state_dict()
    kept = {name: tensor.detach().clone() for name, tensor in own.items()}
    try:
        _copy(tensors, own)
        yield
    finally:
        _copy(kept, own)


@torch.no_grad()
def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(source[name])

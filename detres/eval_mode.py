"""A model in eval mode for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Within, `model` is in eval mode and no gradient is recorded; the train/eval state of each of
    its modules is put back afterwards, also after an error.

    Of each: where a part of `model` is in eval mode already, as one inside another of these, it
    stays so.
    """
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, was_training in before:
            module.training = was_training

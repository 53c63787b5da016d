"""A training command in float64, in which rounding cannot tell two ways of computing apart for many
steps: `python -m tests.float64_command train_det --cfg ...`.
"""

from __future__ import annotations

import importlib
import sys

import torch
from torch import Tensor

from detres.images.normalize import PixelNormalizer


def in_float64() -> None:
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    normalize = PixelNormalizer.forward

    def forward(self: PixelNormalizer, *arguments: object) -> Tensor:
        return normalize(self, *arguments).double()

    PixelNormalizer.forward = forward


if __name__ == "__main__":
    in_float64()
    command = sys.argv.pop(1)
    sys.exit(importlib.import_module(f"detres.cli.{command}").main())

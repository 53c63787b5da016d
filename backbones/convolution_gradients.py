"""The gradients of a convolution by torch's own, where they are to have gradients themselves or
come many at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def torchs_are_wanted(of_result: Tensor) -> bool:
    """Return whether the backward that was given `of_result`, (N, K, H', W'), is itself followed by
    a gradient, or by a transform of functions.
    """
    return (
        torch.is_grad_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch._C._functorch.is_legacy_batchedtensor(of_result)  # many gradients at once
    )


def torchs_gradients(
    of_result: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    wanted: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    """Return those of `x`, (N, C, H, W), and `weight`, (K, C, kh, kw), each None where it is not
    `wanted`, from that of the result, (N, K, H', W').
    """
    how = stride, padding, (1, 1), False, (0, 0), 1
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        of_result, x, weight.to(x.dtype), None, *how, (*wanted, False)
    )
    return of_x, None if of_weight is None else of_weight.to(weight.dtype)

"""How the convolutions of a network that learns are computed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.hooks import has_hooks
from backbones.small_grid import FEWEST, small_grid_conv2d, small_grid_of
from backbones.winograd import tiles_of, winograd_conv2d


def call(conv: nn.Module, x: Tensor) -> Tensor:
    """Return conv(x) of `x`, (N, C, H, W); where nobody notices that the convolution is not called
    as `convolve` computes it.
    """
    has_own = "forward" in vars(conv) or nn.modules.module._has_any_global_hook()
    if is_plain(conv) and not has_own and not has_hooks(conv):
        return convolve(conv, x, conv.weight, conv.bias)
    return conv(x)


def is_plain(conv: nn.Module) -> bool:
    """Return whether `conv` is torch's convolution, with zeros around its input."""
    return type(conv) is nn.Conv2d and conv.padding_mode == "zeros"


def convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what `conv`, a plain one, would make of `x`, (N, C, H, W), with `weight` (K, C, kh,
    kw) and `bias` (K,) in the place of its own.

    On a CPU in the way that takes the least time: as products of matrices (`small_grid`,
    `winograd`) or by torch's convolution. Equal up to rounding, under autocast in its precision.
    """
    how = conv.stride, conv.padding, conv.dilation, conv.groups
    if _may_be_products(conv, x):
        if torch.is_autocast_enabled("cpu") and weight.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype("cpu"))
        grid = small_grid_of(x.shape, weight.shape[2:], *how) if len(x) >= FEWEST else None
        if grid is not None:
            return small_grid_conv2d(x, weight, bias, grid)
        if (tiles := tiles_of(x, weight.shape, *how)) is not None:
            return winograd_conv2d(x, weight, bias, tiles)
    return F.conv2d(x, weight, bias, *how)


def _may_be_products(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether `x` holds numbers, not a tracer's stand-in for them, on the CPU, of a kind and number
    that `conv` takes.
    """
    is_traced = (
        type(x) not in (Tensor, nn.Parameter)
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0  # what counts or records the operators
    )
    if is_traced or x.device.type != "cpu" or x.layout != torch.strided or x.dim() != 4:
        return False
    kinds = {x.dtype, conv.weight.dtype}
    if torch.is_autocast_enabled("cpu"):
        kinds -= {torch.float32, torch.get_autocast_dtype("cpu")}
        is_known = not kinds or kinds == {torch.float64}
        is_known &= (x.dtype == torch.float64) == (conv.weight.dtype == torch.float64)
    else:
        is_known = len(kinds) == 1 and x.is_floating_point()
    return is_known and len(x) > 0 and x.shape[1] == conv.in_channels

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
    if is_plain(conv) and not (is_traced(x) or has_own or has_hooks(conv)):
        return convolve(conv, x, conv.weight, conv.bias)
    return conv(x)


def is_plain(conv: nn.Module) -> bool:
    """Return whether `conv` is torch's convolution, with zeros around its input."""
    return type(conv) is nn.Conv2d and conv.padding_mode == "zeros"


def convolve(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return what `conv`, a plain one, would make of `x`, (N, C, H, W), with `weight` (K, C, kh,
    kw) and `bias` (K,) in the place of its own.

    On a CPU in the way that takes the least time: as products of matrices (`small_grid`,
    `winograd`) or by torch's convolution. Equal up to rounding, under autocast in its precision,
    channels last where torch's is.
    """
    how = conv.stride, conv.padding, conv.dilation, conv.groups
    if is_traced(x) or not _may_be_products(x, weight, bias):
        return F.conv2d(x, weight, bias, *how)
    if torch.is_autocast_enabled("cpu") and weight.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype("cpu"))
    pairs = *(_pair(each) for each in how[:3]), conv.groups
    grid = small_grid_of(x.shape, weight.shape[2:], *pairs) if len(x) >= FEWEST else None
    if grid is not None:
        y = small_grid_conv2d(x, weight, bias, grid)
    elif (tiles := tiles_of(x, weight.shape, *pairs)) is not None:
        y = winograd_conv2d(x, weight, bias, tiles)
    else:
        return F.conv2d(x, weight, bias, *how)
    return y if _is_channels_last(x) or _is_channels_last(weight) else y.contiguous()


def is_traced(x: Tensor) -> bool:
    """Return whether `x` is a tracer's stand-in for numbers, or operators on it are watched."""
    return (
        torch.compiler.is_compiling()
        or type(x) not in (Tensor, nn.Parameter)
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0  # what counts or records the operators
    )


def _may_be_products(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether all of them are on the CPU, of kinds and shapes that torch's convolution takes."""
    given = (x, weight) if bias is None else (x, weight, bias)
    if not all(
        type(each) in (Tensor, nn.Parameter)
        and each.device.type == "cpu"
        and each.layout == torch.strided
        for each in given
    ):
        return False
    if x.dim() != 4 or not len(x) or x.shape[1] != weight.shape[1]:
        return False
    if bias is not None and (bias.dtype, *bias.shape) != (weight.dtype, len(weight)):
        return False
    kinds = {x.dtype, weight.dtype}
    if torch.is_autocast_enabled("cpu") and kinds != {torch.float64}:
        return kinds <= {torch.float32, torch.get_autocast_dtype("cpu")}
    return len(kinds) == 1 and x.is_floating_point()


def _pair(setting: int | tuple[int, int] | str) -> tuple[int, int] | str:
    return (setting, setting) if isinstance(setting, int) else setting


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()

"""Normalisation layers of the backbones, and how they are folded into the convolution before
them.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from backbones.convolve import call, convolve, is_plain
from backbones.hooks import has_hooks
from backbones.padding import Padding, zero_padding_

NormKind = Literal["batch", "frozen", "sync", "group"]

GROUPS = 32
"""Groups of group norm (Wu and He 2018)."""


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine terms never change: y = x * scale + shift for a
    channel.

    Its four buffers have the names of nn.BatchNorm2d; `num_batches_tracked` in a state dict is
    accepted and ignored.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.register_buffer("weight", torch.ones(num_features))
        self.register_buffer("bias", torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised (N, C, H, W)."""
        scale, shift = scale_and_shift(self)
        return x * scale.view(1, -1, 1, 1).to(x.dtype) + shift.view(1, -1, 1, 1).to(x.dtype)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Return what print shows of the layer."""
        return f"{self.num_features}, eps={self.eps}"


class SyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm by the statistics of the batches of all processes that train together, on any
    device (torch's own is for GPUs).

    All of them must call it, on batches of any sizes. One process alone computes in the same way,
    so that its rounding is that of several.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised (N, C, H, W)."""
        return _batch_norm_of_images(self, x, None) if self.training else super().forward(x)


_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, SyncBatchNorm2d)
_OWN_NORMS = (FrozenBatchNorm2d, nn.GroupNorm, *_BATCH_NORMS)


def scale_and_shift(norm: FrozenBatchNorm2d | _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return what a batch norm with fixed statistics does to a channel: (C,) factors and (C,)
    offsets, at least float32.
    """
    dtype = torch.promote_types(norm.running_var.dtype, torch.float32)
    scale = (norm.running_var.to(dtype) + norm.eps).rsqrt()
    if norm.weight is None:
        return scale, -norm.running_mean.to(dtype) * scale
    scale = norm.weight.to(dtype) * scale
    return scale, norm.bias.to(dtype) - norm.running_mean.to(dtype) * scale


def conv_norm(
    conv: nn.Conv2d, norm: nn.Module, x: Tensor, padding: Padding | None = None
) -> Tensor:
    """Return norm(conv(x)) of `x`, (N, C, H, W), as a single convolution where the statistics are
    fixed.

    padding: of the result; statistics that are taken from the batch then count the cells of images
    only. What stands in the other cells has no meaning.

    A frozen batch norm, or a batch norm in eval mode, is folded in the graph: the weight times the
    scale, and the shift as bias. Equal to float rounding, with one pass over the activations less
    (1.4 times faster on a CPU), and nothing stored: gradients reach the convolution's own weight
    and state dicts stay as they are. Layers that were replaced, wrapped or given hooks are called
    as they are.
    """
    if (
        is_plain(conv)
        and conv.bias is None
        and _has_fixed_statistics(norm)
        and not (has_hooks(conv) or has_hooks(norm))
    ):
        scale, shift = scale_and_shift(norm)
        weight = (conv.weight * scale.view(-1, 1, 1, 1)).to(conv.weight.dtype)
        return convolve(conv, x, weight, shift.to(weight.dtype))
    y = call(conv, x)
    return norm(y) if padding is None else _norm_of_images(norm, y, padding)


def pointwise_norm(conv: nn.Conv2d, norm: nn.Module) -> PointwiseNorm:
    """Return norm(conv(x)) of a 1x1 convolution without bias in two steps; see PointwiseNorm."""
    weight, finish = conv.weight, norm
    if _has_fixed_statistics(norm):
        scale, shift = scale_and_shift(norm)
        weight = (weight * scale.view(-1, 1, 1, 1)).to(weight.dtype)
        finish = functools.partial(add_bias_, shift)
    return PointwiseNorm(conv.out_channels, functools.partial(F.conv2d, weight=weight), finish)


def add_bias_(bias: Tensor, x: Tensor) -> Tensor:
    """Return `x`, (N, C, H, W), changed in place: `bias`, (C,), is added to its channels."""
    return x.add_(bias.view(1, -1, 1, 1).to(x.dtype))


@dataclass(frozen=True)
class PointwiseNorm:
    """norm(conv(x)) of a 1x1 convolution in two steps, the first of which is linear in `x`, so that
    what is linear in space (RoIAlign) may stand before it, behind it or between the two.

    channels: K of the result. mix: the first step, of every cell of (N, C, H, W). finish: what
    makes the result, (N, K, H, W), of that of the first; it may change it in place.
    """

    channels: int
    mix: Callable[[Tensor], Tensor]
    finish: Callable[[Tensor], Tensor]


def has_batch_statistics(module: nn.Module) -> bool:
    """Return whether some norm of `module` takes statistics from the batch, as it is set now."""
    return any(
        isinstance(norm, _BatchNorm) and (norm.training or norm.running_var is None)
        for norm in module.modules()
    )


def _norm_of_images(norm: nn.Module, x: Tensor, padding: Padding) -> Tensor:
    """Return norm(x), (N, C, H, W), as if the cells of `padding` were not there; they are 0 where
    `norm` takes statistics.
    """
    if isinstance(norm, nn.GroupNorm):  # its statistics are those of one image
        normed = [norm(image) for image in padding.images(x)]
        out = torch.zeros_like(x, dtype=normed[0].dtype)  # autocast may widen
        for into, image in zip(padding.images(out), normed, strict=True):
            into.copy_(image)
        return out
    if isinstance(norm, _BatchNorm) and (norm.training or norm.running_var is None):
        plain = type(norm) is nn.BatchNorm2d and norm.affine and x.device.type == "cpu"
        if plain or type(norm) is SyncBatchNorm2d:
            return _batch_norm_of_images(norm, zero_padding_(x, padding), padding)
        keep = padding.keep[:, 0]
        cells = x.permute(0, 2, 3, 1)[keep]  # (N, C, H, W) -> (cells, C)
        out = x.new_zeros((len(x), *x.shape[2:], x.shape[1]))
        out[keep] = norm(cells[:, :, None, None])[:, :, 0, 0].to(out.dtype)
        return out.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W), channels last in memory
    return norm(x)


def _batch_norm_of_images(norm: nn.BatchNorm2d, x: Tensor, padding: Padding | None) -> Tensor:
    """Return what `norm` makes of `x`, (N, C, H, W), by the statistics of its images' cells, and
    count these in its averages; `x` is 0 in the padding, and what the result holds there has no
    meaning. A SyncBatchNorm2d's are of the cells in all processes.

    As fast as torch's own over all cells, where gathering the cells takes six times as long.
    """
    if padding is None:
        keep, count = None, len(x) * x.shape[2] * x.shape[3]
    else:
        keep, count = padding.keep, sum(height * width for height, width in padding.sizes)
    synced = type(norm) is SyncBatchNorm2d and _has_others()
    if synced:
        number = torch.tensor(count, device=x.device)
        dist.all_reduce(number)
        count = int(number)
    out, mean, var = _ImagesBatchNorm.apply(
        x, norm.weight, norm.bias, keep, count, norm.eps, synced
    )
    if norm.training and norm.track_running_stats:
        norm.num_batches_tracked.add_(1)
        share = norm.momentum
        if share is None:  # the plain average over all batches
            share = 1 / norm.num_batches_tracked.item()
        norm.running_mean.lerp_(mean, share)
        norm.running_var.lerp_(var * (count / max(1, count - 1)), share)
    return out


def _has_others() -> bool:
    """Whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class _ImagesBatchNorm(torch.autograd.Function):
    """Batch norm by the statistics of `count` cells per channel of `x`, (N, C, H, W), those that
    `keep`, (N, 1, H, W) bool, marks; `x` is 0 in all others. Gives the result, and the mean (C,)
    and the variance (C,) of those cells.

    Zeros add nothing to a sum, so torch's statistics over all cells become those of the images by
    counting fewer; and its normalising with given statistics, forward and backward, does the rest.
    keep None: all cells are marked. synced: `count` is of all processes, whose sums are added up.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        keep: Tensor | None,
        count: int,
        eps: float,
        synced: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return (N, C, H, W), (C,) and (C,)."""
        more = x.numel() / x.shape[1] / count
        mean, var = (each.double() for each in torch.batch_norm_update_stats(x, None, None, 0.0))
        shares = torch.stack((more * mean, more * (var + mean**2)))  # (2, C): of the means
        if synced:
            dist.all_reduce(shares)
        mean = shares[0].to(weight.dtype)
        var = (shares[1] - shares[0] ** 2).clamp(min=0).to(weight.dtype)
        ctx.save_for_backward(x, weight, mean, var, keep)
        ctx.count, ctx.eps, ctx.synced = count, eps, synced
        ctx.mark_non_differentiable(mean, var)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps), mean, var

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor, *_: object
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of x, weight and bias; of x as if each image cell were one of
        `count`.
        """
        x, weight, mean, var, keep = ctx.saved_tensors
        grad = grad if keep is None else grad * keep
        by_itself, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, mean, var, None, None, False, ctx.eps, [True, True, True]
        )
        sums = torch.stack((of_weight, of_bias))  # (2, C)
        if ctx.synced:
            dist.all_reduce(sums)
        scale = weight * (var + ctx.eps).rsqrt()
        slope = scale * sums[0] * (var + ctx.eps).rsqrt() / ctx.count
        # by way of the statistics: slope * (x - mean) + offset, in one pass
        through_all = F.batch_norm(
            x, mean, torch.ones_like(var), slope, scale * sums[1] / ctx.count, eps=0.0
        )
        return by_itself - through_all, of_weight, of_bias, None, None, None, None


def is_own_layer(layer: nn.Module) -> bool:
    """Return whether `layer`, a convolution or a norm of a network of this package, is the one it
    was made with, without hooks, so that its arithmetic may be done in another way.
    """
    plain = is_plain(layer) if isinstance(layer, nn.Conv2d) else type(layer) in _OWN_NORMS
    return plain and not has_hooks(layer)


def _has_fixed_statistics(norm: nn.Module) -> bool:
    if type(norm) is FrozenBatchNorm2d:
        return True
    return type(norm) in _BATCH_NORMS and not norm.training and norm.running_var is not None


def make_norm(kind: NormKind, channels: int) -> nn.Module:
    """Return a new normalisation layer; raises ValueError for an unknown kind, and for group norm
    on a number of channels below 32.
    """
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "frozen":
        return FrozenBatchNorm2d(channels)
    if kind == "sync":
        return SyncBatchNorm2d(channels)
    if kind == "group":
        if channels % GROUPS:
            raise ValueError(
                f"norm 'group' has {GROUPS} groups, which do not divide {channels} channels: take "
                "batch, sync or frozen"
            )
        return nn.GroupNorm(GROUPS, channels)
    raise ValueError(f"unknown norm '{kind}', expected batch, frozen, sync or group")


def freeze_batch_norm(module: nn.Module) -> nn.Module:
    """Return `module` with every nn.BatchNorm2d, synchronised or not, in it replaced by a
    FrozenBatchNorm2d of the same state.

    Works in place, except where `module` is itself a batch norm. Gives the same outputs as the
    original in eval mode. Subclasses, which may do more, are left alone. Raises ValueError for a
    batch norm that keeps no statistics.
    """
    if type(module) in _BATCH_NORMS:
        if module.running_mean is None:
            raise ValueError(f"{module} keeps no statistics that could be frozen")
        frozen = FrozenBatchNorm2d(module.num_features, module.eps).to(module.running_mean)
        frozen.load_state_dict({**frozen.state_dict(), **module.state_dict()})
        return frozen
    for name, child in module.named_children():
        setattr(module, name, freeze_batch_norm(child))
    return module


class FoldError(ValueError):
    """A norm that cannot be folded into the convolution before it."""


def folded_weight(conv: nn.Conv2d, norm: nn.Module | None) -> tuple[Tensor, Tensor | None]:
    """Return weight (K, C, h, w) and bias (K,), or None, of the one convolution that norm(conv(x))
    is; norm None: those of `conv`, copied.

    Raises FoldError for layers that were replaced, wrapped or given hooks, and for a norm without
    fixed statistics.
    """
    for layer in (conv, norm):
        if layer is not None and not is_own_layer(layer):
            raise FoldError(f"{layer} was replaced or has hooks, so that it has to be called")
    with torch.no_grad():
        weight, bias = conv.weight.detach(), None if conv.bias is None else conv.bias.detach()
        if norm is None:
            return weight.clone(), bias if bias is None else bias.clone()
        if not _has_fixed_statistics(norm):
            raise FoldError(f"the statistics of {norm} are not fixed")
        scale, shift = scale_and_shift(norm)
        bias = shift if bias is None else bias * scale + shift
        return (weight * scale.view(-1, 1, 1, 1)).to(weight.dtype), bias.to(weight.dtype)


def fold_batch_norm(module: nn.Module) -> nn.Module:
    """Return a copy of `module` for inference, in eval mode, its batch norms folded into the
    convolutions before them.

    A convolution's weight is multiplied by the norm's scale and its bias takes the shift; the norm
    becomes nn.Identity. Equal to the original in eval mode up to float rounding. Works for the
    networks of this package, for torchvision's ResNet and VGG, and for others whose convolution and
    norm are called convN and bnN (conv, bn), in this order, or follow each other in a Sequential,
    and are used in this order and nowhere else.

    Raises ValueError naming a batch norm that has no convolution of its own before it, or that is
    no plain one.
    """
    folded = copy.deepcopy(module).eval()
    places: dict[nn.Module, int] = {}
    for parent in folded.modules():
        for child in parent._modules.values():
            places[child] = places.get(child, 0) + 1
    for parent in folded.modules():
        children = list(parent.named_children())
        following = (
            itertools.pairwise(children)
            if isinstance(parent, nn.Sequential)
            else _named_pairs(parent)
        )
        for (_, conv), (name, norm) in list(following):
            own = places[conv] == places[norm] == 1
            if (
                own
                and is_plain(conv)
                and _has_fixed_statistics(norm)
                and conv.out_channels == norm.num_features
            ):
                _fold(conv, norm)
                setattr(parent, name, nn.Identity())
    left = [
        name
        for name, norm in folded.named_modules()
        if isinstance(norm, (FrozenBatchNorm2d, _BatchNorm))
    ]
    if left:
        raise ValueError(
            f"no convolution of its own found before the batch norm {left[0]}: it cannot be folded"
        )
    return folded


def _named_pairs(parent: nn.Module) -> list[tuple[tuple[str, nn.Module], tuple[str, nn.Module]]]:
    children = dict(parent.named_children())
    order = list(children)
    names = [
        (name, f"bn{name.removeprefix('conv')}") for name in children if name.startswith("conv")
    ]
    return [
        ((conv, children[conv]), (norm, children[norm]))
        for conv, norm in names
        if norm in order[order.index(conv) :]
    ]


def _fold(conv: nn.Conv2d, norm: FrozenBatchNorm2d | _BatchNorm) -> None:
    weight, bias = folded_weight(conv, norm)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(bias, requires_grad=False)


@torch.no_grad()
def recompute_batch_norm(net: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace the statistics of every batch norm by plain averages over `batches`, and return the
    number of batches.

    batches: what `net` takes, (N, C, H, W) of equal size, of training images; every batch counts
    the same, unlike the moving average kept in training, and each layer sees its predecessors
    normalised by the batch, as in training. The paper does this before it fixes the statistics for
    detection (appendix A). Frozen batch norms, and those that stay in eval mode when `net` is asked
    to train, are left alone; dropout is off meanwhile. Modes and weights are left as they were;
    empty batches do not count.

    Raises ValueError when `net` has no batch norm to recompute, or for no batches; after any error
    the statistics are as before.
    """
    modes = {module: module.training for module in net.modules()}
    net.train()
    norms = [
        module
        for module in net.modules()
        if isinstance(module, _BatchNorm) and module.training and module.track_running_stats
    ]
    before = [(norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms]
    net.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # torch's cumulative average
    count = 0
    try:
        if not norms:
            raise ValueError("the network has no batch norm whose statistics could be recomputed")
        for batch in batches:
            if batch.numel():
                net(batch)
                count += 1
        if not count:
            raise ValueError("no batches to recompute the batch norm statistics from")
    except BaseException:
        for norm, (_, state) in zip(norms, before, strict=True):
            norm.load_state_dict(state)
        raise
    finally:
        for norm, (momentum, _) in zip(norms, before, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    return count

"""Networks for inference alone: norms folded into the convolutions, and what follows a convolution
(ReLU, an addition) done with it, in one pass over memory.

Shapes: N images, C channels, (H, W) cells.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.convolve import is_traced
from backbones.hooks import has_hooks
from backbones.norm import FoldError, PointwiseNorm, add_bias_, folded_weight
from backbones.onednn import ONEDNN, has_onednn
from backbones.padding import Padding, zero_padding_
from backbones.resnet import BasicBlock, BlockEntry, Bottleneck, ResNet
from backbones.shortcuts import ProjectionShortcut
from backbones.small_grid import SmallGrid, small_grid_of
from backbones.vgg import VGG
from backbones.winograd import Tiles, keeps_its_size, prepared_conv2d, prepared_kernel, tiles_of


class FusedConv2d(nn.Module):
    """A convolution with its norm, and a ReLU where `relu` is set; for inference, on one device, in
    one dtype.

    conv, norm: what it does the work of; norm None: there is none. dtype: float32, bfloat16 or
    float64, of the weights and of the result. with_bias: False leaves out what is added to the
    channels, a norm's shift among it, to be added later. stride: another than the convolution's. It
    has no parameters and cannot be moved. Raises FoldError for layers that were replaced or
    wrapped, given hooks, or have no fixed statistics.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: nn.Module | None,
        dtype: torch.dtype,
        *,
        relu: bool,
        with_bias: bool = True,
        stride: int | None = None,
    ) -> None:
        super().__init__()
        kernel, bias = folded_weight(conv, norm)
        weight = kernel.to(dtype).contiguous(memory_format=torch.channels_last)
        self.bias = bias.to(dtype) if with_bias and bias is not None else None
        self.out_channels, self.dtype, self.relu = conv.out_channels, dtype, relu
        self.stride = list(conv.stride) if stride is None else [stride, stride]
        self.padding, self.dilation = list(conv.padding), list(conv.dilation)
        self.groups, self.kernel_size = conv.groups, conv.kernel_size
        self.fused, self.weight = has_onednn(weight), weight
        self._products: dict[tuple[SmallGrid, bool], FusedLinear] = {}
        self._kernel = kernel if keeps_its_size(self.kernel_size, *self._how) else None
        self._matrices: list[Tensor] | None = None  # of it, from its first map in tiles on

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, K, H', W') of the layer's dtype, channels last, for `x`, (N, C, H, W)."""
        x = x.to(self.dtype)
        if (grid := self._small_grid(x)) is not None:
            return self._of_grid(x, grid, relu=self.relu)
        if (tiles := self._tiles(x)) is not None:
            y = self._of_tiles(x, tiles)
            return F.relu_(y) if self.relu else y
        return self.by_library(x)

    def by_library(self, x: Tensor) -> Tensor:
        """Return the same for `x`, (N, C, H, W) of the layer's dtype, by oneDNN's convolution, or
        torch's, as it is written.
        """
        if self.fused:
            after = "relu" if self.relu else "none"
            return ONEDNN._convolution_pointwise(x, *self._arguments(x), after, [], "")
        y = self._plain(x)
        return F.relu_(y) if self.relu else y

    def add_(self, x: Tensor, into: Tensor) -> Tensor:
        """Return `into`, (N, K, H', W') of the layer's dtype, channels last, changed in place: the
        layer's result for `x`, (N, C, H, W), is added, then there is a ReLU, whatever `relu` is.
        """
        x = x.to(self.dtype)
        if (grid := self._small_grid(x)) is not None:
            return F.relu_(into.add_(self._of_grid(x, grid, relu=False)))
        if (tiles := self._tiles(x)) is not None:
            return F.relu_(into.add_(self._of_tiles(x, tiles)))
        if self.fused:
            return ONEDNN._convolution_pointwise_.binary(
                into, x, *self._arguments(x), "add", 1.0, "relu", [], ""
            )
        return F.relu_(into.add_(self._plain(x)))

    @property
    def _how(self) -> tuple[list[int], list[int], list[int], int]:
        return self.stride, self.padding, self.dilation, self.groups

    def _small_grid(self, x: Tensor) -> SmallGrid | None:
        if self.weight.is_mkldnn or not len(x) or x.device.type != "cpu":
            return None
        return small_grid_of(x.shape, self.kernel_size, *self._how)

    def _of_grid(self, x: Tensor, grid: SmallGrid, *, relu: bool) -> Tensor:
        """(N, K, H', W'), channels last, of a small grid, with a ReLU where it is asked for."""
        product = self._products.get((grid, relu))
        if product is None:
            matrix = grid.matrix(self.weight, self.dtype)
            times = len(matrix) // self.out_channels
            bias = None if self.bias is None else self.bias.repeat(times)
            product = self._products[grid, relu] = FusedLinear(matrix, bias, self.dtype, relu=relu)
        return grid.result(product(grid.rows(x)), self.out_channels)

    def _tiles(self, x: Tensor) -> Tiles | None:
        if is_traced(x):
            return None
        weight = self.out_channels, x.shape[1], *self.kernel_size
        return tiles_of(x, weight, *self._how, prepared=True)

    def _of_tiles(self, x: Tensor, tiles: Tiles) -> Tensor:
        kernel, matrices = self._kernel, self._matrices  # another thread may make them meanwhile
        if matrices is None:
            matrices = self._matrices = prepared_kernel(kernel, self.dtype)
            self._kernel = None
        return prepared_conv2d(x, matrices, self.bias, tiles)

    def _plain(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, *self._how)

    def _arguments(self, x: Tensor) -> tuple[object, ...]:
        # these operators want the padding before the stride
        how = self.padding, self.stride, self.dilation, self.groups
        weight = self.weight  # once: another thread may lay it out meanwhile
        if not weight.is_mkldnn and x.numel():
            # laid out for the first input: told of none, oneDNN may choose one 4 times as slow
            weight = self.weight = ONEDNN._reorder_convolution_weight(weight, *how, [*x.shape])
        return weight, self.bias, *how


class FusedLinear(nn.Module):
    """A fully connected layer, and a ReLU where `relu` is set; for inference, on one device, in one
    dtype.

    weight (D, C), bias (D,) or None: of the layer whose work it does. dtype: see FusedConv2d.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, *, relu: bool
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.dtype, self.relu = dtype, relu
        weight = weight.detach().to(dtype, copy=True).contiguous()
        self.bias = None if bias is None else bias.detach().to(dtype, copy=True)
        self.fused, self.weight = has_onednn(weight), weight

    def forward(self, x: Tensor) -> Tensor:
        """Return (R, D) of the layer's dtype for `x`, (R, C)."""
        x = x.to(self.dtype)
        if self.fused:
            after = "relu" if self.relu else "none"
            weight = self.weight  # once: another thread may lay it out meanwhile
            if not weight.is_mkldnn and len(x):
                weight = self.weight = ONEDNN._reorder_linear_weight(weight, len(x))
            return ONEDNN._linear_pointwise(x, weight, self.bias, after, [], "")
        y = F.linear(x, self.weight, self.bias)
        return F.relu_(y) if self.relu else y


class FusedBottleneck(nn.Module):
    """A bottleneck for inference. Its input may be overwritten where it is the shortcut."""

    def __init__(self, block: Bottleneck, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv1 = FusedConv2d(block.conv1, block.bn1, dtype, relu=True)
        self.conv2 = FusedConv2d(block.conv2, block.bn2, dtype, relu=True)
        self.conv3 = FusedConv2d(block.conv3, block.bn3, dtype, relu=True)
        self.downsample = _fused_shortcut(block.downsample, self.conv3, dtype)
        self._entry: BlockEntry | None = None
        if isinstance(block.downsample, ProjectionShortcut):
            main, shortcut = (
                FusedConv2d(conv, norm, dtype, relu=False, with_bias=False, stride=1)
                for conv, norm in ((block.conv1, block.bn1), block.downsample)
            )
            self._entry = BlockEntry(
                main=PointwiseNorm(
                    main.out_channels, main, functools.partial(add_bias_, self.conv1.bias)
                ),
                main_stride=block.conv1.stride[0],
                # whose bias is in that of conv3
                shortcut=PointwiseNorm(shortcut.out_channels, shortcut, nn.Identity()),
                shortcut_stride=block.downsample[0].stride[0],
            )

    def forward(
        self, x: Tensor, before: Padding | None = None, after: Padding | None = None
    ) -> Tensor:
        """Return the block's output (N, C', H', W') for (N, C, H, W); see Bottleneck."""
        within = before if self.conv1.stride == [1, 1] else after
        y = zero_padding_(self.conv1(x), within)
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.conv3.add_(self.conv2(y), shortcut)

    def forward_rest(self, y: Tensor, shortcut: Tensor) -> Tensor:
        """Return the block's output from what `entry` makes of its input, which is overwritten; see
        Bottleneck.
        """
        return self.conv3.add_(self.conv2(F.relu_(y)), shortcut)

    def entry(self) -> BlockEntry | None:
        """Return what it does to its input first; None where its shortcut is no projection."""
        return self._entry


class FusedBasicBlock(nn.Module):
    """A block of two 3x3 convolutions for inference. Its input may be overwritten where it is the
    shortcut.
    """

    def __init__(self, block: BasicBlock, dtype: torch.dtype) -> None:
        super().__init__()
        self.residual = block.residual
        self.conv1 = FusedConv2d(block.conv1, block.bn1, dtype, relu=True)
        self.conv2 = FusedConv2d(block.conv2, block.bn2, dtype, relu=True)
        self.downsample = _fused_shortcut(block.downsample, self.conv2, dtype)

    def forward(
        self,
        x: Tensor,
        before: Padding | None = None,  # noqa: ARG002
        after: Padding | None = None,
    ) -> Tensor:
        """Return the block's output (N, C', H', W') for (N, C, H, W); see BasicBlock."""
        y = zero_padding_(self.conv1(x), after)
        if not self.residual:
            return zero_padding_(self.conv2(y), after)
        shortcut = x if self.downsample is None else self.downsample(x)
        return zero_padding_(self.conv2.add_(y, shortcut), after)


def _fused_shortcut(
    shortcut: nn.Module | None, last: FusedConv2d, dtype: torch.dtype
) -> nn.Module | None:
    """What makes a block's shortcut; the bias of a projection goes to that of the block's `last`
    convolution.
    """
    if not isinstance(shortcut, ProjectionShortcut):
        return shortcut
    conv, norm = shortcut
    _, bias = folded_weight(conv, norm)
    last.bias = (last.bias.to(bias.dtype) + bias).to(dtype)
    return FusedConv2d(conv, norm, dtype, relu=False, with_bias=False)


class _DoneReLU(nn.ReLU):
    """Where a ReLU stood that the convolution before it does now."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def fuse_blocks_(blocks: nn.Sequential, dtype: torch.dtype) -> nn.Sequential:
    """Return `blocks`, a stage of a ResNet, changed in place for inference in `dtype`; raises
    FoldError as FusedConv2d does, and for other blocks.
    """
    kinds = {Bottleneck: FusedBottleneck, BasicBlock: FusedBasicBlock}
    for name, block in list(blocks.named_children()):
        if type(block) not in kinds or has_hooks(block):
            raise FoldError(f"{type(block).__name__} is no block of a ResNet, or has hooks")
        setattr(blocks, name, kinds[type(block)](block, dtype))
    return blocks


def _require_relu(layer: nn.Module) -> None:
    if type(layer) is not nn.ReLU:
        raise FoldError(f"{type(layer).__name__} stands where a ReLU is folded")


def fuse_network_(net: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return `net`, a ResNet or a VGG in eval mode, changed in place for inference: its maps are
    those it gave, up to float rounding, in `dtype`, in less time.

    It stays on its device, learns no more and has no state. Raises FoldError as FusedConv2d does,
    and for other networks, which are then changed in part.
    """
    if type(net) is ResNet:
        _require_relu(net.relu)
        net.conv1, net.bn1, net.relu = (
            FusedConv2d(net.conv1, net.bn1, dtype, relu=True),
            nn.Identity(),
            nn.Identity(),
        )
        for stage in list(net.channels)[1:]:
            fuse_blocks_(getattr(net, net.output_module(stage)), dtype)
    elif type(net) is VGG:
        layers = list(net.features)
        for number, layer in enumerate(layers):
            if isinstance(layer, nn.Conv2d):
                norm = None if isinstance(layers[number + 1], nn.ReLU) else layers[number + 1]
                activation = number + (1 if norm is None else 2)
                _require_relu(layers[activation])
                net.features[number] = FusedConv2d(layer, norm, dtype, relu=True)
                if norm is not None:
                    net.features[number + 1] = nn.Identity()
                net.features[activation] = _DoneReLU()
    else:
        raise FoldError(f"{type(net).__name__} is neither a ResNet nor a VGG of this package")
    return net

"""Residual and plain networks of Table 1 of He et al. 2016: ResNet-18, 34, 50, 101 and 152,
plain-18 and 34.

Stages: conv1 (7x7, stride 2), conv2 (3x3 max pool, stride 2, and the first blocks) ... conv5.
Parameters are named as torchvision names them, so state dicts go both ways. Shapes: N images, C
channels, (H, W) pixels.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from backbones.backbone import ResidualBackbone
from backbones.catalogue import IMAGENET
from backbones.norm import (
    NormKind,
    PointwiseNorm,
    conv_norm,
    is_own_layer,
    make_norm,
    pointwise_norm,
)
from backbones.padding import Padding, zero_padding_
from backbones.shortcuts import ProjectionShortcut, ShortcutKind, ShortcutRule
from backbones.weights import load_weights

StridePlacement = Literal["original", "torchvision"]
Pool1 = Literal["torch", "caffe"]

STAGES = ("conv1", "conv2", "conv3", "conv4", "conv5")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (paper, figure 5 left); without shortcut, two layers of a
    plain net.
    """

    expansion = 1

    def __init__(
        self, in_channels: int, width: int, *, stride: int, shortcut: ShortcutRule, norm: NormKind
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = make_norm(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = make_norm(norm, width)
        self.downsample = shortcut.make(in_channels, width, stride, norm)
        self.residual = shortcut.kind != "none"

    @property
    def last_norm(self) -> nn.Module:
        """The norm before the addition."""
        return self.bn2

    def forward(
        self,
        x: Tensor,
        before: Padding | None = None,  # noqa: ARG002
        after: Padding | None = None,
    ) -> Tensor:
        """Return the block's output (N, C', H', W') for (N, C, H, W).

        before, after: padding of `x`, which must be 0 there, and of the output, which is 0 there.
        """
        y = conv_norm(self.conv1, self.bn1, x, after)
        y = F.relu(zero_padding_(y, after), inplace=True)
        y = conv_norm(self.conv2, self.bn2, y, after)
        if self.residual:
            y += x if self.downsample is None else self.downsample(x, after)
        return F.relu(zero_padding_(y, after), inplace=True)


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up and a shortcut (paper, figure 5 right); a stage's stride sits in the
    first 1x1 or in the 3x3.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int,
        shortcut: ShortcutRule,
        norm: NormKind,
        stride_placement: StridePlacement,
    ) -> None:
        super().__init__()
        stride_1x1, stride_3x3 = (stride, 1) if stride_placement == "original" else (1, stride)
        channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride_1x1, bias=False)
        self.bn1 = make_norm(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, stride_3x3, padding=1, bias=False)
        self.bn2 = make_norm(norm, width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = make_norm(norm, channels)
        self.downsample = shortcut.make(in_channels, channels, stride, norm)

    @property
    def last_norm(self) -> nn.Module:
        """The norm before the addition."""
        return self.bn3

    def forward(
        self, x: Tensor, before: Padding | None = None, after: Padding | None = None
    ) -> Tensor:
        """Return the block's output (N, C', H', W') for (N, C, H, W).

        before, after: padding of `x` and of the output. What stands there has no meaning: the 3x3
        convolution alone reads beyond its own cell, so its input alone is set to 0.
        """
        within = before if self.conv1.stride == (1, 1) else after
        y = conv_norm(self.conv1, self.bn1, x, within)
        shortcut = x if self.downsample is None else self.downsample(x, after)
        return self.forward_rest(y, shortcut, within, after)

    def forward_rest(
        self,
        y: Tensor,
        shortcut: Tensor,
        within: Padding | None = None,
        after: Padding | None = None,
    ) -> Tensor:
        """Return the block's output (N, C', H', W') from what its first layers make of the input:
        `y`, (N, width, H, W), the first norm's output, and the shortcut (N, C', H', W').

        within, after: padding of `y` and of the output.
        """
        y = F.relu(zero_padding_(y, within), inplace=True)
        y = F.relu(conv_norm(self.conv2, self.bn2, y, after), inplace=True)
        y = conv_norm(self.conv3, self.bn3, y, after)
        y += shortcut
        return F.relu(y, inplace=True)

    def entry(self) -> BlockEntry | None:
        """Return what the block does to its input first; None where its shortcut is no projection.

        Layers that were replaced, wrapped or given hooks or a bias: None too.
        """
        if not isinstance(self.downsample, ProjectionShortcut):
            return None
        pairs = ((self.conv1, self.bn1), (self.downsample[0], self.downsample[1]))
        if not all(
            conv.bias is None and is_own_layer(conv) and is_own_layer(norm) for conv, norm in pairs
        ):
            return None
        return BlockEntry(
            main=pointwise_norm(*pairs[0]),
            main_stride=self.conv1.stride[0],
            shortcut=pointwise_norm(*pairs[1]),
            shortcut_stride=self.downsample[0].stride[0],
        )


@dataclass(frozen=True)
class BlockEntry:
    """The two 1x1 convolutions that read a bottleneck's input, the first of its main path and its
    shortcut's, and which cells they read: every `stride`-th of a row and of a column.
    """

    main: PointwiseNorm
    main_stride: int
    shortcut: PointwiseNorm
    shortcut_stride: int


def initialize_convolutions(net: nn.Module) -> None:
    """Draw every convolution from He's normal distribution, std sqrt(2 / fan out), and set biases
    to zero.

    The paper (section 3.4) refers to He et al. 2015 without saying which fan; fb.resnet.torch and
    torchvision take fan out.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def zero_last_norms(net: nn.Module) -> None:
    """Set the scale of the norm before every addition to zero, so that each block starts as its
    shortcut (Goyal et al. 2017).

    Raises ValueError when those norms do not learn, for they would stay zero, and for a plain net,
    which would be zero.
    """
    for module in net.modules():
        if isinstance(module, (BasicBlock, Bottleneck)):
            if isinstance(module, BasicBlock) and not module.residual:
                raise ValueError(
                    "zero_init_residual needs shortcuts: a plain net would give nothing but zeros"
                )
            if not isinstance(module.last_norm.weight, nn.Parameter):
                raise ValueError(
                    "zero_init_residual needs a norm that learns: norm='batch', 'sync' or 'group'"
                )
            nn.init.zeros_(module.last_norm.weight)


class ResNet(ResidualBackbone):
    """A residual network that classifies (`forward`) or gives feature maps by stage name
    (`feature_maps`).

    block, depths: kind of block and their number in conv2..conv5. shortcut: A, B or C of the paper,
    or "none" (plain; basic blocks only). stride_placement: where a bottleneck halves, the 1x1
    ("original": the paper) or the 3x3 ("torchvision"); basic blocks have one place only. width:
    what the channels of every block are multiplied by; conv1 keeps its 64. pool1: the max pooling
    "torch" pads by a cell (every network of torch's world), "caffe" does not and rounds its size up
    (the authors' own networks), so that its map has floor(cells / 2) rows and its windows lie half
    a cell further. norm: "batch", "frozen" (fixed statistics; for pretrained weights), "sync"
    (batch norm over all processes) or "group". num_classes: 0 leaves the classifier out, None is
    that of the weights' classifier, else 1000. freeze_at: see `freeze`. zero_init_residual: start
    each block as its shortcut; not in the paper. weights: see load_weights; without, convolutions
    start as `initialize_convolutions` says and the classifier as torch's linear layers do.

    Raises ValueError for an unknown shortcut, stride placement, pool1 or norm, for a width that
    makes no whole number of channels, and for one below 1 with shortcut A, which can widen alone;
    WeightsError for weights that cannot be used.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        *,
        shortcut: ShortcutKind,
        stride_placement: StridePlacement,
        width: float,
        pool1: Pool1,
        norm: NormKind,
        in_channels: int,
        num_classes: int | None,
        freeze_at: int,
        zero_init_residual: bool,
        weights: str | Path | None,
    ) -> None:
        rule = ShortcutRule(shortcut)
        traits = {
            **rule.traits,
            **({"stride_placement": stride_placement} if block is Bottleneck else {}),
            "pool1": pool1,
        }
        super().__init__(in_channels=in_channels, input_spec=IMAGENET, traits=traits)
        self.width = width
        if stride_placement not in ("original", "torchvision"):
            raise ValueError(
                f"unknown stride_placement '{stride_placement}', expected original or torchvision"
            )
        make_block = block
        if block is Bottleneck:
            if shortcut == "none":
                raise ValueError(
                    "shortcut 'none' goes with basic blocks: the paper has no plain net of "
                    "bottlenecks"
                )
            make_block = functools.partial(Bottleneck, stride_placement=stride_placement)
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = make_norm(norm, 64)
        # a child, in its place: torchvision's IntermediateLayerGetter runs the children in order
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = _max_pooling(pool1)
        self.channels["conv1"] = 64
        self.strides.update(conv1=2, conv2=4, conv3=8, conv4=16, conv5=32)
        channels, narrowest = 64, _scaled(64, width)
        for number, depth in enumerate(depths):
            of_block = narrowest << number
            blocks = []
            for index in range(depth):
                stride = 2 if index == 0 and number > 0 else 1
                blocks.append(
                    make_block(channels, of_block, stride=stride, shortcut=rule, norm=norm)
                )
                channels = of_block * block.expansion
            stage = f"conv{number + 2}"
            self.add_module(self.output_module(stage), nn.Sequential(*blocks))
            self.channels[stage] = channels
        self.last_stage, self.num_features = "conv5", channels
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.reset_classifier(1000 if num_classes is None else num_classes)
        initialize_convolutions(self)
        if zero_init_residual:
            zero_last_norms(self)
        if weights is not None:
            load_weights(self, weights, resize_classifier=num_classes is None)
        self.freeze(freeze_at)

    def map_size(self, stage: str, size: tuple[int, int]) -> tuple[int, int]:
        """Return the cells (h', w') of the map of `stage` for an image of `size` (h, w) px; the
        max pooling without padding leaves out an odd last row or column.
        """
        if stage == "conv1" or self.traits["pool1"] == "torch":
            return super().map_size(stage, size)
        # an image below a cell has one, where a padded batch gives it room
        pooled = [max(1, -(-side // 2) // 2) for side in size]
        stride = self.strides[stage] // self.strides["conv2"]
        return -(-pooled[0] // stride), -(-pooled[1] // stride)

    def run_stage(
        self, stage: str, x: Tensor, before: Padding | None = None, after: Padding | None = None
    ) -> Tensor:
        """Return the map (N, C', H', W') of `stage` for `x`, (N, C, H, W); conv2 begins with the
        max pooling (paper, table 1).
        """
        if stage == "conv2":
            x, before = zero_padding_(self.maxpool(x), after), after
        return super().run_stage(stage, x, before, after)

    def pop_stage(self, stage: str) -> nn.Sequential:
        """Take the last stage, and the classifier, out of the network and return it as a module of
        its own.

        A C4 detector makes its RoI head of conv5. Raises ValueError when `stage` is not the last
        one left, or is conv1.
        """
        last = list(self.channels)[-1]
        if stage != last or stage == "conv1":
            raise ValueError(f"cannot take out {stage}: the last stage of this network is {last}")
        module = getattr(self, self.output_module(stage))
        delattr(self, self.output_module(stage))
        self.fc = None
        del self.channels[stage], self.strides[stage]
        return module


def _max_pooling(kind: Pool1) -> nn.MaxPool2d:
    if kind == "torch":
        return nn.MaxPool2d(3, stride=2, padding=1)
    if kind == "caffe":
        return nn.MaxPool2d(3, stride=2, ceil_mode=True)
    raise ValueError(f"unknown pool1 '{kind}', expected torch or caffe")


def _scaled(channels: int, width: float) -> int:
    scaled = float(channels * width)
    if not (scaled > 0 and scaled.is_integer()):
        raise ValueError(
            f"width {width:g} makes {scaled:g} channels of {channels}; expected one that makes a "
            "whole number of them, such as 0.25, 0.5 or 1.5"
        )
    return int(scaled)


def resnet18(
    *,
    shortcut: ShortcutKind = "B",
    stride_placement: StridePlacement = "torchvision",
    width: float = 1.0,
    pool1: Pool1 = "torch",
    norm: NormKind = "batch",
    in_channels: int = 3,
    num_classes: int | None = None,
    freeze_at: int = 0,
    zero_init_residual: bool = False,
    weights: str | Path | None = None,
) -> ResNet:
    """Return ResNet-18 (11.7 M parameters). Arguments: see ResNet."""
    return ResNet(
        BasicBlock, (2, 2, 2, 2), shortcut=shortcut, stride_placement=stride_placement,
        width=width, pool1=pool1, norm=norm, in_channels=in_channels,
        num_classes=num_classes, freeze_at=freeze_at, zero_init_residual=zero_init_residual,
        weights=weights,
    )  # fmt: skip


def resnet34(
    *,
    shortcut: ShortcutKind = "B",
    stride_placement: StridePlacement = "torchvision",
    width: float = 1.0,
    pool1: Pool1 = "torch",
    norm: NormKind = "batch",
    in_channels: int = 3,
    num_classes: int | None = None,
    freeze_at: int = 0,
    zero_init_residual: bool = False,
    weights: str | Path | None = None,
) -> ResNet:
    """Return ResNet-34 (21.8 M parameters). Arguments: see ResNet."""
    return ResNet(
        BasicBlock, (3, 4, 6, 3), shortcut=shortcut, stride_placement=stride_placement,
        width=width, pool1=pool1, norm=norm, in_channels=in_channels,
        num_classes=num_classes, freeze_at=freeze_at, zero_init_residual=zero_init_residual,
        weights=weights,
    )  # fmt: skip


def resnet50(
    *,
    shortcut: ShortcutKind = "B",
    stride_placement: StridePlacement = "torchvision",
    width: float = 1.0,
    pool1: Pool1 = "torch",
    norm: NormKind = "batch",
    in_channels: int = 3,
    num_classes: int | None = None,
    freeze_at: int = 0,
    zero_init_residual: bool = False,
    weights: str | Path | None = None,
) -> ResNet:
    """Return ResNet-50 (25.6 M parameters). Arguments: see ResNet."""
    return ResNet(
        Bottleneck, (3, 4, 6, 3), shortcut=shortcut, stride_placement=stride_placement,
        width=width, pool1=pool1, norm=norm, in_channels=in_channels,
        num_classes=num_classes, freeze_at=freeze_at, zero_init_residual=zero_init_residual,
        weights=weights,
    )  # fmt: skip


def resnet101(
    *,
    shortcut: ShortcutKind = "B",
    stride_placement: StridePlacement = "torchvision",
    width: float = 1.0,
    pool1: Pool1 = "torch",
    norm: NormKind = "batch",
    in_channels: int = 3,
    num_classes: int | None = None,
    freeze_at: int = 0,
    zero_init_residual: bool = False,
    weights: str | Path | None = None,
) -> ResNet:
    """Return ResNet-101 (44.5 M parameters). Arguments: see ResNet."""
    return ResNet(
        Bottleneck, (3, 4, 23, 3), shortcut=shortcut, stride_placement=stride_placement,
        width=width, pool1=pool1, norm=norm, in_channels=in_channels,
        num_classes=num_classes, freeze_at=freeze_at, zero_init_residual=zero_init_residual,
        weights=weights,
    )  # fmt: skip


def resnet152(
    *,
    shortcut: ShortcutKind = "B",
    stride_placement: StridePlacement = "torchvision",
    width: float = 1.0,
    pool1: Pool1 = "torch",
    norm: NormKind = "batch",
    in_channels: int = 3,
    num_classes: int | None = None,
    freeze_at: int = 0,
    zero_init_residual: bool = False,
    weights: str | Path | None = None,
) -> ResNet:
    """Return ResNet-152 (60.2 M parameters). Arguments: see ResNet."""
    return ResNet(
        Bottleneck, (3, 8, 36, 3), shortcut=shortcut, stride_placement=stride_placement,
        width=width, pool1=pool1, norm=norm, in_channels=in_channels,
        num_classes=num_classes, freeze_at=freeze_at, zero_init_residual=zero_init_residual,
        weights=weights,
    )  # fmt: skip


def plain18(
    *,
    stride_placement: StridePlacement = "torchvision",
    width: float = 1.0,
    pool1: Pool1 = "torch",
    norm: NormKind = "batch",
    in_channels: int = 3,
    num_classes: int | None = None,
    freeze_at: int = 0,
    weights: str | Path | None = None,
) -> ResNet:
    """Return plain-18 (11.5 M parameters): ResNet-18 without its shortcuts. Arguments: see
    ResNet.
    """
    return ResNet(
        BasicBlock, (2, 2, 2, 2), shortcut="none", stride_placement=stride_placement,
        width=width, pool1=pool1, norm=norm, in_channels=in_channels,
        num_classes=num_classes, freeze_at=freeze_at, zero_init_residual=False, weights=weights,
    )  # fmt: skip


def plain34(
    *,
    stride_placement: StridePlacement = "torchvision",
    width: float = 1.0,
    pool1: Pool1 = "torch",
    norm: NormKind = "batch",
    in_channels: int = 3,
    num_classes: int | None = None,
    freeze_at: int = 0,
    weights: str | Path | None = None,
) -> ResNet:
    """Return plain-34 (21.6 M parameters): ResNet-34 without its shortcuts. Arguments: see
    ResNet.
    """
    return ResNet(
        BasicBlock, (3, 4, 6, 3), shortcut="none", stride_placement=stride_placement,
        width=width, pool1=pool1, norm=norm, in_channels=in_channels,
        num_classes=num_classes, freeze_at=freeze_at, zero_init_residual=False, weights=weights,
    )  # fmt: skip


RESNETS = {
    "plain18": plain18,
    "plain34": plain34,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "resnet152": resnet152,
}
"""The networks of table 1 by name."""

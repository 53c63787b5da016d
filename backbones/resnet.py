"""Residual networks of Table 1 of He et al. 2016: ResNet-18, 34, 50, 101 and 152.

Stages: conv1 (7x7, stride 2), conv2 (3x3 max pool, stride 2, and the first blocks) ... conv5. Parameters are named as
torchvision names them, so state dicts go both ways. Shapes: N images, C channels, (H, W) pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.norm import NormKind, conv_norm, make_norm
from backbones.weights import load_weights

StridePlacement = Literal["original", "torchvision"]

STAGES = ("conv1", "conv2", "conv3", "conv4", "conv5")
_LAYER_OF_STAGE = {"conv2": "layer1", "conv3": "layer2", "conv4": "layer3", "conv5": "layer4"}


class _ProjectionShortcut(nn.Sequential):
    """Shortcut B: a 1x1 convolution where the dimensions change (paper, section 3.3)."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: NormKind) -> None:
        super().__init__(nn.Conv2d(in_channels, channels, 1, stride, bias=False), make_norm(norm, channels))

    def forward(self, x: Tensor) -> Tensor:
        return conv_norm(self[0], self[1], x)


def _shortcut(in_channels: int, channels: int, stride: int, norm: NormKind) -> nn.Module | None:
    """Return the projection, or None where the identity fits (torchvision's attribute is None there too)."""
    if stride == 1 and in_channels == channels:
        return None
    return _ProjectionShortcut(in_channels, channels, stride, norm)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (paper, figure 5 left)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, *, stride: int, stride_placement: StridePlacement, norm: NormKind) -> None:  # noqa: ARG002
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = make_norm(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = make_norm(norm, width)
        self.downsample = _shortcut(in_channels, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(conv_norm(self.conv1, self.bn1, x), inplace=True)
        x = conv_norm(self.conv2, self.bn2, x)
        return F.relu(x + shortcut, inplace=True)


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up and a shortcut (paper, figure 5 right); a stage's stride sits in the first 1x1 or in the 3x3."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, *, stride: int, stride_placement: StridePlacement, norm: NormKind) -> None:
        super().__init__()
        stride_1x1, stride_3x3 = (stride, 1) if stride_placement == "original" else (1, stride)
        channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride_1x1, bias=False)
        self.bn1 = make_norm(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, stride_3x3, padding=1, bias=False)
        self.bn2 = make_norm(norm, width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = make_norm(norm, channels)
        self.downsample = _shortcut(in_channels, channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(conv_norm(self.conv1, self.bn1, x), inplace=True)
        x = F.relu(conv_norm(self.conv2, self.bn2, x), inplace=True)
        x = conv_norm(self.conv3, self.bn3, x)
        return F.relu(x + shortcut, inplace=True)


class ResNet(nn.Module):
    """A residual network that classifies (`forward`) or gives feature maps by stage name (`features`).

    block, depths: kind of block and their number in conv2..conv5. stride_placement: where a bottleneck halves, the 1x1
    ("original": the paper) or the 3x3 ("torchvision"); basic blocks have one place only. norm: "batch", "frozen" (fixed
    statistics; for pretrained weights) or "group". num_classes: 0 leaves the classifier out. freeze_at: see `freeze`.
    weights: see load_weights; without, convolutions start from He's normal initialisation, fan out.

    channels, strides: stage -> channels of its output and pixels an output cell steps by, known without a forward.
    Raises ValueError for an unknown stride placement or norm, WeightsError for weights that cannot be used.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        *,
        stride_placement: StridePlacement,
        norm: NormKind,
        in_channels: int,
        num_classes: int,
        freeze_at: int,
        weights: str | Path | None,
    ) -> None:
        super().__init__()
        if stride_placement not in ("original", "torchvision"):
            raise ValueError(f"unknown stride_placement '{stride_placement}', expected original or torchvision")
        self.in_channels = in_channels
        self.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = make_norm(norm, 64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.channels = {"conv1": 64}
        self.strides = {"conv1": 2, "conv2": 4, "conv3": 8, "conv4": 16, "conv5": 32}
        channels = 64
        for number, depth in enumerate(depths):
            width = 64 << number
            blocks = []
            for index in range(depth):
                stride = 2 if index == 0 and number > 0 else 1
                blocks.append(block(channels, width, stride=stride, stride_placement=stride_placement, norm=norm))
                channels = width * block.expansion
            stage = f"conv{number + 2}"
            self.add_module(_LAYER_OF_STAGE[stage], nn.Sequential(*blocks))
            self.channels[stage] = channels
        self.fc = nn.Linear(channels, num_classes) if num_classes else None
        self.frozen_stages = 0
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if weights is not None:
            load_weights(self, weights)
        self.freeze(freeze_at)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) for images (N, in_channels, H, W), or averaged features (N, C) without classifier.

        Raises ValueError for another number of channels, or when conv5 was popped.
        """
        x = self.features(x, stages=("conv5",))["conv5"].mean(dim=(2, 3))
        return x if self.fc is None else self.fc(x)

    def features(self, x: Tensor, stages: Sequence[str] = ("conv4",)) -> dict[str, Tensor]:
        """Return stage -> feature map (N, C, H', W'), in network order, computing nothing beyond the last stage asked for.

        x: (N, in_channels, H, W), any size from 1 px, N = 0 allowed. conv1 is given after its ReLU, before the pooling.
        Frozen leading stages run without a gradient and keep no activations. Raises ValueError for an unknown or popped
        stage, another number of channels, or images without pixels.
        """
        unknown = [stage for stage in stages if stage not in self.channels]
        if unknown or not stages:
            raise ValueError(f"no stage {', '.join(unknown) or '(none asked for)'}, this network has {', '.join(self.channels)}")
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"expected images (N, {self.in_channels}, H, W), got {tuple(x.shape)}")
        if 0 in x.shape[2:]:
            raise ValueError(f"expected images of at least 1x1 px, got {tuple(x.shape)}")
        names = list(self.channels)
        found = {}
        for number, stage in enumerate(names[: max(map(names.index, stages)) + 1]):
            with torch.set_grad_enabled(torch.is_grad_enabled() and number >= self.frozen_stages):
                x = self._run(stage, x)
            if stage in stages:
                found[stage] = x
        return found

    def _run(self, stage: str, x: Tensor) -> Tensor:
        if stage == "conv1":
            return F.relu(conv_norm(self.conv1, self.bn1, x), inplace=True)
        if stage == "conv2":
            x = self.maxpool(x)
        return getattr(self, _LAYER_OF_STAGE[stage])(x)

    def freeze(self, up_to: int) -> ResNet:
        """Stop the first `up_to` stages (1 = conv1, 2 = conv1 and conv2, ...) from learning, for good, and return the network.

        They get no gradient, and their norms stay in eval mode whatever train() is asked. A smaller number than before
        changes nothing. Raises ValueError for a number that is negative or above that of the stages.
        """
        if not 0 <= up_to <= len(self.channels):
            raise ValueError(f"cannot freeze {up_to} stages: this network has {len(self.channels)}, {', '.join(self.channels)}")
        self.frozen_stages = max(self.frozen_stages, up_to)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        return self.train(self.training)

    def train(self, mode: bool = True) -> ResNet:
        """Set train or eval mode, and return the network; frozen stages stay in eval mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> list[nn.Module]:
        modules = [self.conv1, self.bn1] if self.frozen_stages else []
        return modules + [getattr(self, _LAYER_OF_STAGE[stage]) for stage in list(self.channels)[1 : self.frozen_stages]]

    def pop_stage(self, stage: str) -> nn.Sequential:
        """Take the last stage, and the classifier, out of the network and return it as a module of its own.

        A C4 detector makes its RoI head of conv5. Raises ValueError when `stage` is not the last one left, or is conv1.
        """
        last = list(self.channels)[-1]
        if stage != last or stage == "conv1":
            raise ValueError(f"cannot take out {stage}: the last stage of this network is {last}")
        module = getattr(self, _LAYER_OF_STAGE[stage])
        delattr(self, _LAYER_OF_STAGE[stage])
        self.fc = None
        del self.channels[stage], self.strides[stage]
        return module


def resnet18(
    *,
    stride_placement: StridePlacement = "torchvision",
    norm: NormKind = "batch",
    in_channels: int = 3,
    num_classes: int = 1000,
    freeze_at: int = 0,
    weights: str | Path | None = None,
) -> ResNet:
    """Return ResNet-18 (11.7 M parameters). Arguments: see ResNet."""
    return ResNet(
        BasicBlock, (2, 2, 2, 2), stride_placement=stride_placement, norm=norm, in_channels=in_channels,
        num_classes=num_classes, freeze_at=freeze_at, weights=weights,
    )  # fmt: skip


def resnet34(
    *,
    stride_placement: StridePlacement = "torchvision",
    norm: NormKind = "batch",
    in_channels: int = 3,
    num_classes: int = 1000,
    freeze_at: int = 0,
    weights: str | Path | None = None,
) -> ResNet:
    """Return ResNet-34 (21.8 M parameters). Arguments: see ResNet."""
    return ResNet(
        BasicBlock, (3, 4, 6, 3), stride_placement=stride_placement, norm=norm, in_channels=in_channels,
        num_classes=num_classes, freeze_at=freeze_at, weights=weights,
    )  # fmt: skip


def resnet50(
    *,
    stride_placement: StridePlacement = "torchvision",
    norm: NormKind = "batch",
    in_channels: int = 3,
    num_classes: int = 1000,
    freeze_at: int = 0,
    weights: str | Path | None = None,
) -> ResNet:
    """Return ResNet-50 (25.6 M parameters). Arguments: see ResNet."""
    return ResNet(
        Bottleneck, (3, 4, 6, 3), stride_placement=stride_placement, norm=norm, in_channels=in_channels,
        num_classes=num_classes, freeze_at=freeze_at, weights=weights,
    )  # fmt: skip


def resnet101(
    *,
    stride_placement: StridePlacement = "torchvision",
    norm: NormKind = "batch",
    in_channels: int = 3,
    num_classes: int = 1000,
    freeze_at: int = 0,
    weights: str | Path | None = None,
) -> ResNet:
    """Return ResNet-101 (44.5 M parameters). Arguments: see ResNet."""
    return ResNet(
        Bottleneck, (3, 4, 23, 3), stride_placement=stride_placement, norm=norm, in_channels=in_channels,
        num_classes=num_classes, freeze_at=freeze_at, weights=weights,
    )  # fmt: skip


def resnet152(
    *,
    stride_placement: StridePlacement = "torchvision",
    norm: NormKind = "batch",
    in_channels: int = 3,
    num_classes: int = 1000,
    freeze_at: int = 0,
    weights: str | Path | None = None,
) -> ResNet:
    """Return ResNet-152 (60.2 M parameters). Arguments: see ResNet."""
    return ResNet(
        Bottleneck, (3, 8, 36, 3), stride_placement=stride_placement, norm=norm, in_channels=in_channels,
        num_classes=num_classes, freeze_at=freeze_at, weights=weights,
    )  # fmt: skip

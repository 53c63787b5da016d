"""The CIFAR networks of He et al. 2016, section 4.2: 6n + 2 layers on 32x32 images, residual and
plain.

Stages: conv1 (3x3, 16 channels), conv2 (n blocks, 16 channels, 32x32), conv3 (32, 16x16), conv4
(64, 8x8). Parameters are named conv1, bn1, layer1..layer3, fc, as for the larger networks.

    depth          20      32      44      56      110       1202
    parameters  269,722 464,154 658,586 853,018 1,727,962 19,421,274    (10 classes, shortcut A)
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from backbones.backbone import ResidualBackbone
from backbones.catalogue import CIFAR
from backbones.norm import NormKind, make_norm
from backbones.resnet import BasicBlock, initialize_convolutions, zero_last_norms
from backbones.shortcuts import PaddingSide, ShortcutKind, ShortcutRule
from backbones.weights import load_weights

CIFAR_DEPTHS = (20, 32, 44, 56, 110, 1202)
"""The residual nets of table 6."""

PLAIN_CIFAR_DEPTHS = (20, 32, 44, 56, 110)
"""The plain nets of figure 6; the deepest stays above 60 % error."""


class CifarResNet(ResidualBackbone):
    """A network of 6n + 2 weighted layers: one 3x3 convolution, three stages of n blocks, one
    linear layer.

    depth: 6n + 2. shortcut: "A" (the paper's choice here), "B", "C" or "none" (plain).
    shortcut_padding: side of A's zero channels, "end" (fb.resnet.torch) or "both" (the widely used
    CIFAR port, whose weights need it). num_classes: None is that of the weights' classifier, else
    10. The other arguments are those of ResNet.

    Raises ValueError for another depth, shortcut, padding or norm, WeightsError for weights that
    cannot be used.
    """

    def __init__(
        self,
        depth: int,
        *,
        shortcut: ShortcutKind,
        shortcut_padding: PaddingSide,
        norm: NormKind,
        in_channels: int,
        num_classes: int | None,
        freeze_at: int,
        zero_init_residual: bool,
        weights: str | Path | None,
    ) -> None:
        rule = ShortcutRule(shortcut, shortcut_padding)
        super().__init__(in_channels=in_channels, input_spec=CIFAR, traits=rule.traits)
        blocks_per_stage, left_over = divmod(depth - 2, 6)
        if blocks_per_stage < 1 or left_over:
            raise ValueError(
                f"no CIFAR network of {depth} layers: the depth is 6n + 2, such as "
                f"{', '.join(map(str, CIFAR_DEPTHS))}"
            )
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = make_norm(norm, 16)
        self.relu = nn.ReLU(inplace=True)
        self.channels["conv1"], self.strides["conv1"] = 16, 1
        channels = 16
        for number, stage in enumerate(("conv2", "conv3", "conv4")):
            width = 16 << number
            blocks = []
            for index in range(blocks_per_stage):
                stride = 2 if index == 0 and number > 0 else 1
                blocks.append(BasicBlock(channels, width, stride=stride, shortcut=rule, norm=norm))
                channels = width
            self.add_module(self.output_module(stage), nn.Sequential(*blocks))
            self.channels[stage], self.strides[stage] = width, 1 << number
        self.last_stage, self.num_features = "conv4", channels
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.reset_classifier(10 if num_classes is None else num_classes)
        initialize_convolutions(self)
        if zero_init_residual:
            zero_last_norms(self)
        if weights is not None:
            load_weights(self, weights, resize_classifier=num_classes is None)
        self.freeze(freeze_at)


def resnet_cifar(
    depth: int,
    *,
    shortcut: ShortcutKind = "A",
    shortcut_padding: PaddingSide = "end",
    norm: NormKind = "batch",
    in_channels: int = 3,
    num_classes: int | None = None,
    freeze_at: int = 0,
    zero_init_residual: bool = False,
    weights: str | Path | None = None,
) -> CifarResNet:
    """Return the residual network of `depth` layers. Arguments: see CifarResNet."""
    return CifarResNet(
        depth, shortcut=shortcut, shortcut_padding=shortcut_padding, norm=norm,
        in_channels=in_channels,
        num_classes=num_classes, freeze_at=freeze_at, zero_init_residual=zero_init_residual,
        weights=weights,
    )  # fmt: skip


def plain_cifar(
    depth: int,
    *,
    norm: NormKind = "batch",
    in_channels: int = 3,
    num_classes: int | None = None,
    freeze_at: int = 0,
    weights: str | Path | None = None,
) -> CifarResNet:
    """Return the plain network of `depth` layers: the residual one without its shortcuts.
    Arguments: see CifarResNet.
    """
    return CifarResNet(
        depth, shortcut="none", shortcut_padding="end", norm=norm, in_channels=in_channels,
        num_classes=num_classes, freeze_at=freeze_at, zero_init_residual=False, weights=weights,
    )  # fmt: skip

"""Box heads: what turns the pooled grid of a region into its feature vector.

Shapes: R regions, C channels of the shared map, S x S pooled cells, D features of a region.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.backbone import run_checkpointed
from backbones.norm import conv_norm


class BoxHead(Protocol):
    """What can be a box head: a module that makes features (R, D) of pooled grids (R, C, S, S)."""

    out_channels: int

    def __call__(self, pooled: Tensor) -> Tensor:
        """Return features (R, D) for pooled grids (R, C, S, S); R > 0."""


class Conv5BoxHead(nn.Module):
    """conv5 of a residual network on every region, then the average over its grid (paper,
    appendix A).

    conv5: the stage taken out of the backbone (`pop_stage`). out_channels: D, of its output.
    checkpointed: whether its activations are computed again in the backward, as of a stage of
    Backbone.checkpoint_activations.
    """

    def __init__(self, *, conv5: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.conv5 = conv5
        self.out_channels = out_channels
        self.checkpointed = False

    def forward(self, pooled: Tensor) -> Tensor:
        """Return features (R, D) for pooled grids (R, C, S, S); R > 0."""
        if self.checkpointed and torch.is_grad_enabled():
            grid = run_checkpointed(self.conv5, pooled, [self.conv5])
        else:
            grid = self.conv5(pooled)
        return grid.mean(dim=(2, 3))  # (R, D, S', S') -> (R, D)


class FcBoxHead(nn.Module):
    """Fully connected layers on every region, each with its ReLU: fc6 and fc7 of a VGG, with
    dropout (Ren et al. 2015; He et al. 2016, appendix A: the baseline that ResNet-101 is compared
    with), or those of a feature pyramid's head (Lin et al. 2017, section 4.2).

    layers: which read the grid channel by channel, C * S * S values; taken out of the backbone
    (`pop_head`), or `pyramid_layers`. out_channels: D, of the last.
    """

    def __init__(self, *, layers: nn.Sequential, out_channels: int) -> None:
        super().__init__()
        self.layers = layers
        self.out_channels = out_channels

    def forward(self, pooled: Tensor) -> Tensor:
        """Return features (R, D) for pooled grids (R, C, S, S); R > 0."""
        return self.layers(pooled.flatten(1))  # (R, C, S, S) -> (R, C * S * S) -> (R, D)


class ConvFcBoxHead(nn.Module):
    """3x3 convolutions with batch norm, then fully connected layers, each with its ReLU (the head
    of torchvision's second version of its pyramid detector).

    in_channels: C. num_convs: of `in_channels` channels each. fc: the layers that follow.
    """

    def __init__(self, *, in_channels: int, num_convs: int, fc: FcBoxHead) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(in_channels, in_channels, 3, padding=1, bias=False) for _ in range(num_convs)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(in_channels) for _ in range(num_convs))
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.fc = fc
        self.out_channels = fc.out_channels

    def forward(self, pooled: Tensor) -> Tensor:
        """Return features (R, D) for pooled grids (R, C, S, S); R > 0."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            pooled = F.relu(conv_norm(conv, norm, pooled), inplace=True)
        return self.fc(pooled)


def pyramid_layers(*, in_features: int, width: int, num_layers: int) -> nn.Sequential:
    """Return `num_layers` fully connected layers of `width` features, each with its ReLU, the first
    of `in_features` values; initialised as Caffe2 does ("XavierFill"), biases 0.
    """
    layers: list[nn.Module] = []
    for number in range(num_layers):
        layer = nn.Linear(width if number else in_features, width)
        nn.init.kaiming_uniform_(layer.weight, a=1)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)

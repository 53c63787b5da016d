"""Box heads: what turns the pooled grid of a region into its feature vector.

Shapes: R regions, C channels of the shared map, S x S pooled cells, D features of a region.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn


class BoxHead(Protocol):
    """What can be a box head: a module that makes features (R, D) of pooled grids (R, C, S, S)."""

    out_channels: int

    def __call__(self, pooled: Tensor) -> Tensor:
        """Return features (R, D) for pooled grids (R, C, S, S); R > 0."""


class Conv5BoxHead(nn.Module):
    """conv5 of a residual network on every region, then the average over its grid (paper,
    appendix A).

    conv5: the stage taken out of the backbone (`pop_stage`). out_channels: D, of its output.
    """

    def __init__(self, *, conv5: nn.Module, out_channels: int) -> None:
        super().__init__()
        self.conv5 = conv5
        self.out_channels = out_channels

    def forward(self, pooled: Tensor) -> Tensor:
        """Return features (R, D) for pooled grids (R, C, S, S); R > 0."""
        return self.conv5(pooled).mean(dim=(2, 3))  # (R, D, S', S') -> (R, D)


class FcBoxHead(nn.Module):
    """fc6 and fc7 of a VGG on every region, each with its ReLU and dropout (Ren et al. 2015; He et
    al. 2016, appendix A: the baseline that ResNet-101 is compared with).

    layers: those taken out of the backbone (`pop_head`), which read the grid channel by channel,
    C * S * S values. out_channels: D, of fc7.
    """

    def __init__(self, *, layers: nn.Sequential, out_channels: int) -> None:
        super().__init__()
        self.layers = layers
        self.out_channels = out_channels

    def forward(self, pooled: Tensor) -> Tensor:
        """Return features (R, D) for pooled grids (R, C, S, S); R > 0."""
        return self.layers(pooled.flatten(1))  # (R, C, S, S) -> (R, C * S * S) -> (R, D)

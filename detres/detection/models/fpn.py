"""Feature pyramid network (Lin et al. 2017, section 3): maps of one width at every stride, each
with what the deeper stages know.

Shapes: N images, C channels of a stage, D of the pyramid, (H, W) cells of a map. Levels are called
p2, p3, ... after the stages conv2, conv3, ...; the coarsest, of the last stage's map at every
second cell, is one further.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.convolve import call
from backbones.norm import conv_norm
from backbones.padding import Padding, zero_padding_
from detres.detection.models.padding import padding_of
from detres.detection.structures import FeatureMap


class FPN(nn.Module):
    """Lateral 1x1 convolutions, the coarser map added at twice its size, a 3x3 convolution on the
    sum; and one more level, the coarsest map at every second cell (detectron2's LastLevelMaxPool).

    in_channels: stage -> C, the finest first. strides: stage -> px a cell, each twice the one
    before. width: D. batch_norm: behind every convolution, which then has no bias (torchvision's
    second version). Initialised as Caffe2 does ("XavierFill"), biases 0. levels: level -> px a
    cell, the finest first.
    """

    def __init__(
        self,
        *,
        in_channels: Mapping[str, int],
        strides: Mapping[str, int],
        width: int,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        self.width = width
        self.levels = {stage.replace("conv", "p"): strides[stage] for stage in in_channels}
        *_, (last, stride) = self.levels.items()
        self.levels[f"p{int(last.removeprefix('p')) + 1}"] = 2 * stride
        self.lateral, self.output = nn.ModuleDict(), nn.ModuleDict()
        for stage, channels in in_channels.items():
            self.lateral[stage] = _Layer(channels, width, 1, batch_norm=batch_norm)
            self.output[stage] = _Layer(width, width, 3, batch_norm=batch_norm)

    def forward(self, features: dict[str, FeatureMap]) -> dict[str, FeatureMap]:
        """Return level -> map (N, D, H, W), the finest first, of the maps of the stages; an image's
        cells do not depend on what it shares the batch with, and the others are 0.
        """
        found: dict[str, FeatureMap] = {}
        coarser: Tensor | None = None
        for stage in reversed(list(self.lateral)):
            feature = features[stage]
            padding = padding_of(feature)
            x = self.lateral[stage](feature.values, padding)
            if coarser is not None:
                x = x + twice(coarser, x.shape[2:])
            coarser = x = zero_padding_(x, padding)
            x = self.output[stage](x, padding)
            values = x if padding is None else x * padding.keep
            found[stage.replace("conv", "p")] = FeatureMap(values, feature.sizes)
        last, level = next(iter(found.values())), list(self.levels)[-1]
        stride = self.levels[level] // 2
        extra = FeatureMap(
            last.values[:, :, ::2, ::2].contiguous(memory_format=torch.channels_last),
            sizes=tuple((-(-height // 2), -(-width // 2)) for height, width in last.sizes),
            spans=tuple((height * stride, width * stride) for height, width in last.sizes),
        )
        return {**dict(reversed(found.items())), level: extra}


class _Layer(nn.Module):
    """A convolution that keeps the size, and a batch norm where there is one."""

    def __init__(self, channels: int, width: int, kernel: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, kernel, padding=kernel // 2, bias=not batch_norm)
        nn.init.kaiming_uniform_(self.conv.weight, a=1)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)
        self.norm = nn.BatchNorm2d(width) if batch_norm else None

    def forward(self, x: Tensor, padding: Padding | None) -> Tensor:
        if self.norm is None:
            return call(self.conv, x)
        return conv_norm(self.conv, self.norm, x, padding)


def twice(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return `x`, (N, D, H, W), with every cell twice in a row and in a column, cut to `size`
    (h, w), which is at most (2H, 2W).
    """
    doubled = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return doubled[:, :, : size[0], : size[1]]


CANONICAL_LEVEL = 4
"""Of the regions of the canonical side (Lin et al. 2017, section 4.2)."""


def levels_of(
    boxes: Tensor, *, finest: int, coarsest: int, canonical_side: float = 224.0
) -> Tensor:
    """Return the pyramid level (R,) int64 in finest..coarsest that each of `boxes` (R, 4) xyxy px
    is pooled from: CANONICAL_LEVEL at the area of a square of `canonical_side` px, one more at
    twice the side (Lin et al. 2017, equation 1).

    Both torchvision and detectron2 add a millionth (detectron2 a hundred-millionth) so that a box
    of exactly that side is not put one lower by rounding. No boxes: (0,).
    """
    sides = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    found = torch.floor(CANONICAL_LEVEL + torch.log2(sides / canonical_side) + 1e-6)
    return found.clamp(min=finest, max=coarsest).long()

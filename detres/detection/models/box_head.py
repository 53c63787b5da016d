"""Box heads: what turns the pooled grid of a region into its feature vector.

Shapes: R regions, C channels of the shared map, S x S pooled cells, D features of a region.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.backbone import run_checkpointed
from backbones.fused import FusedBottleneck
from backbones.hooks import has_hooks
from backbones.norm import conv_norm, has_batch_statistics
from backbones.resnet import BlockEntry, Bottleneck
from detres.detection.models.roi_bags import RegionBags
from detres.detection.models.roi_pool import RoIPooler
from detres.detection.structures import FeatureMap


class BoxHead(nn.Module):
    """What can be a box head: a module that makes features (R, D) of pooled grids (R, C, S, S)
    (`forward`), or of regions of the map (`of_regions`).

    out_channels: D.
    """

    out_channels: int

    def of_regions(
        self, pooler: RoIPooler, features: dict[str, FeatureMap], rois: list[Tensor]
    ) -> Tensor:
        """Return features (R, D) of regions, N tensors (R_n, 4) xyxy px, that `pooler` pools from
        the maps by stage; R > 0.
        """
        return self(pooler(features, rois))


class Conv5BoxHead(BoxHead):
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
        return _mean_of_cells(grid)

    def of_regions(
        self, pooler: RoIPooler, features: dict[str, FeatureMap], rois: list[Tensor]
    ) -> Tensor:
        """Return features (R, D) of regions, N tensors (R_n, 4) xyxy px; R > 0.

        What `forward` makes of their pooled grids, with less work on a CPU: bins that the first
        block's strides skip are not pooled; and where regions overlap so much that there are more
        of their cells than of the map's, the 1x1 convolutions that read them come before the
        pooling, which like them is linear (RoIAlign). Without a gradient regions go through in
        groups whose activations stay in the cache.
        """
        feature = next(iter(features.values()))
        num_regions = together = sum(map(len, rois))
        alone = not (torch.is_grad_enabled() or has_batch_statistics(self.conv5))
        if alone and not feature.values.is_cuda:
            together = _regions_together(pooler.output_size, self.out_channels, feature)
        entry = self._entry(features)
        if entry is None:
            groups = _split(rois, together)
            return torch.cat([self(pooler(features, some)) for some in groups])
        mixed = None
        if pooler.linear and _mixing_first_pays(entry, pooler, feature, num_regions):
            mixed = entry.main.mix(feature.values), entry.shortcut.mix(feature.values)
        found = [
            self._of_bags(entry, pooler.bags(feature, some), feature.values, mixed)
            for some in _split(rois, together)
        ]
        return torch.cat(found)

    def _entry(self, features: dict[str, FeatureMap]) -> BlockEntry | None:
        """How conv5 begins, where that may be used: None where it is to run as it stands."""
        first = next(self.conv5.children(), None)
        as_it_stands = (
            not isinstance(first, (Bottleneck, FusedBottleneck))
            or len(features) > 1
            or any(feature.values.is_cuda for feature in features.values())
            or (self.checkpointed and torch.is_grad_enabled())
            or self._compiled_call_impl is not None  # set by nn.Module.compile
            or any(has_hooks(module) for module in self.modules())
        )
        return None if as_it_stands else first.entry()

    def _of_bags(
        self,
        entry: BlockEntry,
        bags: RegionBags,
        feature: Tensor,
        mixed: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        """Return features (R, D) of some regions; mixed: of both 1x1 convolutions of `entry`, what
        they make of the map `feature`, (N, C, H, W).
        """
        steps = entry.main_stride, entry.shortcut_stride
        of_main, of_shortcut = (bags.every(step) for step in steps)
        if mixed is not None:
            y, shortcut = of_main.pool(mixed[0]), of_shortcut.pool(mixed[1])
        else:
            pooled = of_main.pool(feature)
            skipped = steps[1] // steps[0]
            y = entry.main.mix(pooled)
            shortcut = entry.shortcut.mix(pooled[:, :, ::skipped, ::skipped])
        first, *others = self.conv5
        x = first.forward_rest(entry.main.finish(y), entry.shortcut.finish(shortcut))
        for block in others:
            x = block(x)
        return _mean_of_cells(x)


_TAPS = 9
"""Cells that a bin reads, at two samples a side."""

_MIXING_RATE = 28
"""Multiply-adds of a convolution in the time of one of pooling, on x86 cores with AVX-512."""


def _mixing_first_pays(
    entry: BlockEntry, pooler: RoIPooler, feature: FeatureMap, num_regions: int
) -> bool:
    """Whether the 1x1 convolutions of `entry` on the whole map, and pooling what they make, are
    less work than pooling the map for `num_regions` regions and the convolutions on that.
    """
    images, channels, height, width = feature.values.shape
    cells = [
        num_regions * math.ceil(pooler.output_size / step) ** 2
        for step in (entry.main_stride, entry.shortcut_stride)
    ]
    made = [entry.main.channels, entry.shortcut.channels]
    of_regions = sum(n * k for n, k in zip(cells, made, strict=True))
    first = images * height * width * channels * sum(made) / _MIXING_RATE + of_regions * _TAPS
    after = cells[0] * channels * _TAPS + of_regions * channels / _MIXING_RATE
    return first < after


def _mean_of_cells(grid: Tensor) -> Tensor:
    """(R, D) of (R, D, S', S'); the gradient lies channels last, as the grid does."""
    return grid.permute(0, 2, 3, 1).mean(dim=(1, 2))


_CACHE = 40 * 2**20
"""Bytes of the widest activations of the regions that go through conv5 together."""


def _regions_together(output_size: int, channels: int, feature: FeatureMap) -> int:
    cells = math.ceil(output_size / 2) ** 2
    return max(1, _CACHE // (cells * channels * feature.values.element_size()))


def _split(rois: list[Tensor], size: int) -> list[list[Tensor]]:
    """N tensors (R_n, 4) in turns of at most `size` regions of all images together, each again N
    tensors; in their order.
    """
    counts = [len(boxes) for boxes in rois]
    total = sum(counts)
    if total <= size:
        return [rois]
    starts = [sum(counts[:n]) for n in range(len(counts))]
    return [
        [
            boxes[max(0, start - first) : max(0, start + size - first)]
            for boxes, first in zip(rois, starts, strict=True)
        ]
        for start in range(0, total, size)
    ]


class FcBoxHead(BoxHead):
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


class ConvFcBoxHead(BoxHead):
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

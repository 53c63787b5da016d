"""RoI pooling: a grid of fixed size from each region of the feature map (Girshick 2015; He et al.
2017 for RoIAlign).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import ops

from detres.detection.models.fpn import levels_of
from detres.detection.models.roi_bags import RegionBags, align_bags, max_bags
from detres.detection.structures import FeatureMap

PoolKind = Literal["roi_pool", "roi_align", "roi_align_aligned"]


class RoIPooler(nn.Module):
    """Pools R regions of the shared maps to (R, C, output_size, output_size).

    strides: stage -> px a cell, of the maps that regions are pooled from, the finest first. One
    map: all of them are. Several: levels p2, p3, ... of a pyramid, each region from the one that
    `fpn.levels_of` says, which canonical_side is for.
    kind: "roi_pool" (maximum over rounded bins: the paper), "roi_align" (bilinear samples:
    torchvision) or "roi_align_aligned" (the same, shifted by half a cell: detectron2).
    sampling_ratio: samples along each side of a bin for RoIAlign; 0 = as many as the bin is cells
    wide.
    """

    def __init__(
        self,
        *,
        strides: Mapping[str, int],
        kind: PoolKind,
        output_size: int,
        sampling_ratio: int,
        canonical_side: float = 224.0,
    ) -> None:
        super().__init__()
        self.canonical_side = canonical_side
        self.strides = dict(strides)
        self.kind = kind
        self.output_size = output_size
        self.sampling_ratio = sampling_ratio

    def forward(self, features: dict[str, FeatureMap], rois: list[Tensor]) -> Tensor:
        """Return (R, C, S, S), the regions of all images one after the other; R = 0 is possible.

        features: by stage. rois: N tensors (R_n, 4) xyxy px. In a padded batch each image is pooled
        from its own cells: what a bin finds at their border differs by kind (its nearest cell, or
        0), and no filling of the padding gives all of it.
        """
        if len(self.strides) == 1:
            ((stage, stride),) = self.strides.items()
            return self._of_map(features[stage], stride, rois)
        first, *_, last = (int(stage.removeprefix("p")) for stage in self.strides)
        levels = [
            levels_of(boxes, finest=first, coarsest=last, canonical_side=self.canonical_side)
            for boxes in rois
        ]
        level, pooled = torch.cat(levels), None
        for number, (stage, stride) in enumerate(self.strides.items(), start=first):
            own = [boxes[of == number] for boxes, of in zip(rois, levels, strict=True)]
            if pooled is not None and sum(map(len, own)) == 0:
                continue
            part = self._of_map(features[stage], stride, own).permute(0, 2, 3, 1)
            if pooled is None:
                pooled = part.new_empty((len(level), *part.shape[1:]))
            # of rows of one axis: ten times as fast as of (R', S, S, C)
            rows = torch.nonzero(level == number).flatten()
            pooled.flatten(1).index_copy_(0, rows, part.flatten(1))
        return pooled.permute(0, 3, 1, 2)  # (R, S, S, C) -> (R, C, S, S)

    def _of_map(self, feature: FeatureMap, stride: int, rois: list[Tensor]) -> Tensor:
        """Return (R, C, S, S) of regions, N tensors (R_n, 4), all from one map."""
        indexed = _indexed(rois)
        if not feature.values.is_cuda:
            return self._bags(feature, stride, indexed).pool(feature.values)
        if not feature.padded:
            return self._operator(feature.values, stride, indexed)
        own = [
            self._operator(
                feature.values[n, :, :height, :width][None], stride, F.pad(boxes, (1, 0))
            )
            for n, ((height, width), boxes) in enumerate(zip(feature.sizes, rois, strict=True))
        ]
        return torch.cat(own)

    def _operator(self, feature: Tensor, stride: int, rois: Tensor) -> Tensor:
        """Return (R, C, S, S) by torchvision's operators, from a map (N, C, H, W) without padding
        and rois (R, 5).
        """
        scale = 1 / stride
        if self.kind == "roi_pool":
            # The operator has no bf16 kernel and wants contiguous planes.
            pooled = ops.roi_pool(feature.float().contiguous(), rois, self.output_size, scale)
            return pooled.to(feature.dtype).contiguous(memory_format=torch.channels_last)
        aligned = self.kind == "roi_align_aligned"
        pooled = ops.roi_align(
            feature.float(), rois, self.output_size, scale, self.sampling_ratio, aligned
        )
        return pooled.to(feature.dtype)

    @property
    def linear(self) -> bool:
        """Whether a pooled grid is linear in the map."""
        return self.kind != "roi_pool"

    def bags(self, feature: FeatureMap, rois: list[Tensor]) -> RegionBags:
        """Return what the bins of regions, N tensors (R_n, 4) xyxy px, read of the one map that
        they are all pooled from, in their order.
        """
        (stride,) = self.strides.values()
        return self._bags(feature, stride, _indexed(rois))

    def _bags(self, feature: FeatureMap, stride: int, rois: Tensor) -> RegionBags:
        images, _, height, width = feature.values.shape
        sizes = feature.sizes if feature.padded else None
        shape, scale = (images, height, width), 1 / stride
        if self.kind == "roi_pool":
            return max_bags(
                rois, shape, output_size=self.output_size, spatial_scale=scale, sizes=sizes
            )
        return align_bags(
            rois,
            shape,
            output_size=self.output_size,
            spatial_scale=scale,
            sampling_ratio=self.sampling_ratio,
            aligned=self.kind == "roi_align_aligned",
            sizes=sizes,
        )


def _indexed(rois: list[Tensor]) -> Tensor:
    """N tensors (R_n, 4) -> (R, 5): image, x1, y1, x2, y2."""
    return torch.cat([F.pad(boxes, (1, 0), value=n) for n, boxes in enumerate(rois)])


def roi_align(
    feature: Tensor,
    rois: Tensor,
    *,
    output_size: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Return (R, C, S, S), channels last: torchvision.ops.roi_align as a weighted sum of the rows
    of a map (N, C, H, W), for rois (R, 5): image index, then xyxy px; R may be 0.

    On the CPU several times faster than the operator, more so with the gradient. No gradient to the
    RoIs. sampling_ratio, aligned: see roi_bags.align_bags.
    """
    images, _, height, width = feature.shape
    return align_bags(
        rois,
        (images, height, width),
        output_size=output_size,
        spatial_scale=spatial_scale,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
    ).pool(feature)

"""RoI pooling: a grid of fixed size from each region of the feature map (Girshick 2015; He et al.
2017 for RoIAlign).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import ops

from detres.detection.structures import FeatureMap

PoolKind = Literal["roi_pool", "roi_align", "roi_align_aligned"]


class RoIPooler(nn.Module):
    """Pools R regions of one shared map to (R, C, output_size, output_size).

    stage, stride: the map, and its px a cell. kind: "roi_pool" (maximum over rounded bins: the
    paper), "roi_align" (bilinear samples: torchvision) or "roi_align_aligned" (the same, shifted by
    half a cell: detectron2). sampling_ratio: samples along each side of a bin for RoIAlign; 0 = as
    many as the bin is cells wide.
    """

    def __init__(
        self, *, stage: str, stride: int, kind: PoolKind, output_size: int, sampling_ratio: int
    ) -> None:
        super().__init__()
        self.stage = stage
        self.stride = stride
        self.kind = kind
        self.output_size = output_size
        self.sampling_ratio = sampling_ratio

    def forward(self, features: dict[str, FeatureMap], rois: list[Tensor]) -> Tensor:
        """Return (R, C, S, S), the regions of all images one after the other; R = 0 is possible.

        features: by stage. rois: N tensors (R_n, 4) xyxy px. In a padded batch each image is pooled
        from its own cells: what a bin finds at their border differs by kind (its nearest cell, or
        0), and no filling of the padding gives all of it.
        """
        feature = features[self.stage]
        of_image = [F.pad(boxes, (1, 0), value=n) for n, boxes in enumerate(rois)]
        indexed = torch.cat(of_image)  # N x (R_n, 4) -> (R, 5): image, x1, y1, x2, y2
        if self.kind != "roi_pool" and self.sampling_ratio > 0 and not feature.values.is_cuda:
            return roi_align(
                feature.values,
                indexed,
                output_size=self.output_size,
                spatial_scale=1 / self.stride,
                sampling_ratio=self.sampling_ratio,
                aligned=self.kind == "roi_align_aligned",
                sizes=feature.sizes if feature.padded else None,
            )
        if not feature.padded:
            return self._operator(feature.values, indexed)
        own = [
            self._operator(feature.values[n, :, :height, :width][None], F.pad(boxes, (1, 0)))
            for n, ((height, width), boxes) in enumerate(zip(feature.sizes, rois, strict=True))
        ]
        return torch.cat(own)

    def _operator(self, feature: Tensor, rois: Tensor) -> Tensor:
        """Return (R, C, S, S) by torchvision's operators, from a map (N, C, H, W) without padding
        and rois (R, 5).
        """
        scale = 1 / self.stride
        if self.kind == "roi_pool":
            # The operator has no bf16 kernel and wants contiguous planes.
            pooled = ops.roi_pool(feature.float().contiguous(), rois, self.output_size, scale)
            return pooled.to(feature.dtype).contiguous(memory_format=torch.channels_last)
        aligned = self.kind == "roi_align_aligned"
        pooled = ops.roi_align(
            feature.float(), rois, self.output_size, scale, self.sampling_ratio, aligned
        )
        return pooled.to(feature.dtype)


def roi_align(
    feature: Tensor,
    rois: Tensor,
    *,
    output_size: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """Return (R, C, S, S), channels last: torchvision.ops.roi_align written as a weighted sum of
    feature rows.

    feature (N, C, H, W); rois (R, 5): image index, then xyxy px; sampling_ratio >= 1. sizes: N
    (h, w) cells that each image fills, beyond which nothing is read; None: all of them. Every
    output cell is a fixed combination of at most (2 * sampling_ratio)^2 positions, so the whole is
    one embedding_bag over the map laid out (N * H * W, C): on the CPU 4 times faster than the
    operator, 17 times with the gradient. No gradient to the RoIs.
    """
    channels, height, width = feature.shape[1:]
    # No copy of a channels_last map; but a bf16 one is widened, for its gradient is a sum over all
    # regions.
    table = (
        feature.permute(0, 2, 3, 1)
        .reshape(-1, channels)
        .to(torch.promote_types(feature.dtype, torch.float32))
        .contiguous()
    )
    boxes = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    sides = boxes[:, 2:] - boxes[:, :2]
    if not aligned:
        sides = sides.clamp(min=1.0)  # as the operator: a RoI is at least one cell
    images = rois[:, 0].long()
    filled = [(height, width)] * len(feature) if sizes is None else sizes
    limits = torch.tensor(filled, device=boxes.device)[images]  # (N, 2) -> (R, 2)
    # (R,), (R,) -> (R, S, T), T cells that a bin reads along one axis
    columns, column_weights = _taps(
        boxes[:, 0], sides[:, 0], output_size, sampling_ratio, limits[:, 1:]
    )
    rows, row_weights = _taps(boxes[:, 1], sides[:, 1], output_size, sampling_ratio, limits[:, :1])
    first_row = images[:, None, None] * height  # of the RoI's own image
    rows = (rows + first_row) * width  # now the index of the row's first cell in `table`
    index = rows[:, :, None, :, None] + columns[:, None, :, None, :]  # (R, S, S, T, T)
    weight = row_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
    bag = index.shape[-1] ** 2
    pooled = F.embedding_bag(
        index.reshape(-1, bag),
        table,
        per_sample_weights=weight.reshape(-1, bag).to(table.dtype),
        mode="sum",
    )
    return (
        pooled.view(len(rois), output_size, output_size, channels)
        .permute(0, 3, 1, 2)
        .to(feature.dtype)
    )


def _taps(
    start: Tensor, side: Tensor, bins: int, samples: int, limits: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the cells (R, S, T) that each bin reads along one axis and their weights, T = 2 *
    samples; limits (R, 1): the cells there are.
    """
    offset = (torch.arange(bins * samples, device=start.device, dtype=start.dtype) + 0.5) / samples
    point = start[:, None] + side[:, None] / bins * offset  # (R, S * samples)
    outside = (point < -1) | (point > limits)
    point = point.clamp(min=0).minimum((limits - 1).to(point))
    low = point.floor()
    fraction = point - low
    low = low.long()
    cells = torch.stack((low, (low + 1).minimum(limits - 1)), dim=-1)
    weights = torch.stack((1 - fraction, fraction), dim=-1) / samples
    weights = weights.masked_fill(outside[..., None], 0.0)
    return cells.view(-1, bins, 2 * samples), weights.view(-1, bins, 2 * samples)

"""RoI pooling: a grid of fixed size from each region of the feature map (Girshick 2015; He et al.
2017 for RoIAlign).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import ops

from detres.detection.models.fpn import levels_of
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
            part = self._of_map(features[stage], stride, own)
            if pooled is None:
                pooled = part.new_zeros((len(level), *part.shape[1:]))
                pooled = pooled.contiguous(memory_format=torch.channels_last)
            pooled = pooled.index_put((torch.nonzero(level == number).flatten(),), part)
        return pooled

    def _of_map(self, feature: FeatureMap, stride: int, rois: list[Tensor]) -> Tensor:
        """Return (R, C, S, S) of regions, N tensors (R_n, 4), all from one map."""
        of_image = [F.pad(boxes, (1, 0), value=n) for n, boxes in enumerate(rois)]
        indexed = torch.cat(of_image)  # N x (R_n, 4) -> (R, 5): image, x1, y1, x2, y2
        if self.kind != "roi_pool" and not feature.values.is_cuda:
            return roi_align(
                feature.values,
                indexed,
                output_size=self.output_size,
                spatial_scale=1 / stride,
                sampling_ratio=self.sampling_ratio,
                aligned=self.kind == "roi_align_aligned",
                sizes=feature.sizes if feature.padded else None,
            )
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

    feature (N, C, H, W); rois (R, 5): image index, then xyxy px. sampling_ratio: samples along each
    side of a bin; 0: as many as the bin is cells wide, rounded up. sizes: N (h, w) cells that each
    image fills, beyond which nothing is read; None: all of them. Every output cell is a fixed
    combination of a few positions, so the whole is an embedding_bag over the map laid out
    (N * H * W, C): on the CPU 4 times faster than the operator, 17 times with the gradient. No
    gradient to the RoIs.
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
    limits = torch.tensor(filled, device=boxes.device).view(-1, 2)[images]  # (N, 2) -> (R, 2)
    first_row = images * height  # of the RoI's own image

    def of_rows(rows: Tensor | slice, samples: tuple[int, int]) -> Tensor:
        """The pooled cells (R', S, S, C) of some RoIs with so many samples in x and in y."""
        axes = [
            _taps(
                boxes[rows, axis],
                sides[rows, axis],
                output_size,
                samples[axis],
                limits[rows, 1 - axis, None],
                dense=sampling_ratio == 0,
            )
            for axis in (0, 1)
        ]
        # (R', S, T), (R', S, T), T cells that a bin reads along one axis
        (columns, column_weights), (lines, line_weights) = axes
        lines = (lines + first_row[rows, None, None]) * width  # now of the line's first cell
        index = lines[:, :, None, :, None] + columns[:, None, :, None, :]  # (R', S, S, Ty, Tx)
        weight = line_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
        bag = index.shape[-1] * index.shape[-2]
        pooled = F.embedding_bag(
            index.reshape(-1, bag),
            table,
            per_sample_weights=weight.reshape(-1, bag).to(table.dtype),
            mode="sum",
        )
        return pooled.view(-1, output_size, output_size, channels)

    if sampling_ratio > 0:
        pooled = of_rows(slice(None), (sampling_ratio, sampling_ratio))
    else:
        pooled = table.new_zeros((len(rois), output_size, output_size, channels))
        wanted = (sides / output_size).ceil().long()  # (R, 2), x and y; 0 for a box without extent
        for samples in wanted.unique(dim=0).tolist():
            rows = torch.nonzero((wanted == wanted.new_tensor(samples)).all(dim=1)).flatten()
            if min(samples) > 0:
                pooled = pooled.index_put((rows,), of_rows(rows, tuple(samples)))
    return pooled.permute(0, 3, 1, 2).to(feature.dtype)


def _taps(
    start: Tensor, side: Tensor, bins: int, samples: int, limits: Tensor, *, dense: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the cells (R, S, T) that each bin reads along one axis and their weights, T = 2 *
    samples; limits (R, 1): the cells there are.

    dense: the samples are at most a cell apart, so that they read `samples` + 1 cells in a row,
    T of them.
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
    cells, weights = cells.view(-1, bins, 2 * samples), weights.view(-1, bins, 2 * samples)
    if not dense:
        return cells, weights
    first = cells[..., :1]
    summed = weights.new_zeros((*cells.shape[:2], samples + 1))
    # a sample that rounding puts a cell too far has next to no weight there
    summed.scatter_add_(2, (cells - first).clamp(max=samples), weights)
    row = first + torch.arange(samples + 1, device=cells.device)
    return row.minimum(limits[..., None] - 1), summed

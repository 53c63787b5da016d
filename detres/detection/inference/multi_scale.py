"""Testing at several scales, of the Fast R-CNN step alone (paper, appendix B): every region is
pooled from two maps of an image pyramid, and what comes out is merged by maxout.

Proposals are those of the model's own scale. Boxes are in the pixels of one frame, the batch that
a detector is called with, until they are pooled. Shapes: N images, R regions of all, S scales.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from detres.boxes import box_area, scale_boxes
from detres.detection.models.roi_head import RoIHead
from detres.detection.structures import FeatureMap, Scale

Merge = Literal["features", "pooled"]


@dataclass(frozen=True)
class PyramidSettings:
    """scales: rising, where regions are scored. region_side: px of the square whose area a region
    should have where it is pooled, 224 in Fast R-CNN (section 2.3) and its forerunners, for that
    are the images of pretraining. merge: where the elementwise maximum of a region's two scales is
    taken, of the "features" after the layers that follow pooling (two passes of them), or of the
    "pooled" grids before (one pass).
    """

    scales: tuple[Scale, ...]
    region_side: float = 224.0
    merge: Merge = "features"


@dataclass(frozen=True)
class PyramidLevel:
    """A batch at one scale: its maps by stage, and the N sizes (h, w) px of its images there."""

    features: dict[str, FeatureMap]
    sizes: Sequence[tuple[int, int]]


def chosen_scales(areas: Tensor, region_side: float) -> Tensor:
    """Return (R, S) bool: the two scales at which each region is pooled; the one where S is 1.

    areas: (R, S) px^2 of the regions at rising scales. Chosen are those nearest to that of a square
    of `region_side` px, of equally near ones the smaller: Fast R-CNN's rule for one scale. As areas
    rise, the distance falls and then rises, so that the two are neighbours. R may be 0.
    """
    order = (areas - region_side**2).abs().argsort(dim=1, stable=True)
    return torch.zeros_like(areas, dtype=torch.bool).scatter_(1, order[:, :2], True)


def pyramid_features(
    head: RoIHead,
    levels: Sequence[PyramidLevel],
    rois: list[Tensor],
    frame: Sequence[tuple[int, int]],
    settings: PyramidSettings,
) -> Tensor:
    """Return the features (R, D) of regions, each from two levels of a pyramid; R > 0.

    levels: one a scale of `settings`. rois: N tensors (R_n, 4) xyxy px of images of the N sizes
    `frame` (h, w).
    """
    of_levels = [
        [
            scale_boxes(boxes, from_size=size, to_size=there)
            for boxes, size, there in zip(rois, frame, level.sizes, strict=True)
        ]
        for level in levels
    ]
    if len(levels) == 1:
        return head.region_features(levels[0].features, of_levels[0])
    of_features = settings.merge == "features"
    make = head.region_features if of_features else head.pooler
    areas = [box_area(torch.cat(boxes)) for boxes in of_levels]
    # S x (R,) -> (R, S)
    chosen = chosen_scales(torch.stack(areas, dim=1), settings.region_side)
    counts, merged = [len(boxes) for boxes in rois], None
    for level, boxes, here in zip(levels, of_levels, chosen.unbind(dim=1), strict=True):
        if not here.any():
            continue
        own = [each[rows] for each, rows in zip(boxes, here.split(counts), strict=True)]
        made = make(level.features, own)
        if merged is None:
            merged = made.new_full((len(here), *made.shape[1:]), -torch.inf)
        merged[here] = torch.maximum(merged[here], made)
    if of_features:
        return merged
    return head.box_head(merged.contiguous(memory_format=torch.channels_last))

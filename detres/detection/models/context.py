"""Global context: the whole image as one more RoI, whose feature goes beside that of every region
(paper, appendix B).

The whole image passes the same pooling and the same layers as a region, in the same pass, so it
costs one RoI an image and batch norm sees it as one region among the others; what takes the
features, the two sibling layers, is twice as wide, and all of it learns end to end. Shapes: N
images, R_n regions of image n, R of all, D features of a region.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def with_whole_images(rois: list[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Return N tensors (R_n + 1, 4) xyxy px: the regions of each image, then the image itself.

    rois: N tensors (R_n, 4); R_n may be 0. sizes: N (h, w) px without the padding of a batch.
    """
    return [
        torch.cat((boxes, boxes.new_tensor([[0, 0, width, height]])))
        for boxes, (height, width) in zip(rois, sizes, strict=True)
    ]


def beside_whole_images(features: Tensor, counts: Sequence[int]) -> Tensor:
    """Return (R, 2D): the feature of each region, then that of its image.

    features: (R + N, D) of the RoIs that `with_whole_images` gave. counts: the R_n.
    """
    of_images = features.split([count + 1 for count in counts])
    return torch.cat(
        [torch.cat((each[:-1], each[-1:].expand(len(each) - 1, -1)), dim=1) for each in of_images]
    )

"""Anchors: the reference boxes of the region proposal network, A at every cell of the feature
map.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

AnchorStyle = Literal["py-faster-rcnn", "torchvision", "detectron2"]


def cell_anchors(
    sizes: tuple[float, ...], aspect_ratios: tuple[float, ...], *, stride: int, style: AnchorStyle
) -> Tensor:
    """Return the anchors (A, 4) of the cell at the origin, xyxy px, A = len(sizes) *
    len(aspect_ratios).

    sizes: side in px of the square anchor. aspect_ratios: height / width.
    style: what the published implementations disagree on (facts of their sources):
      py-faster-rcnn: sides of a `stride`-sized box are rounded to whole pixels, then scaled by size
      / stride; centred on
        the cell (stride / 2); ratio-major. Its inclusive (-84, -40, 99, 55) is (-84, -40, 100, 56)
        here.
      torchvision: corners rounded to whole pixels, centred on the cell's corner (0, 0);
      ratio-major. detectron2: not rounded, centred on (0, 0), size-major.
    Raises ValueError for an unknown style.
    """
    ratios = torch.tensor(aspect_ratios, dtype=torch.float64)
    scales = torch.tensor(sizes, dtype=torch.float64)
    if style == "py-faster-rcnn":
        width = (stride * stride / ratios).sqrt().round()
        height = (width * ratios).round()
        scales = scales / stride
        center = stride / 2
    elif style in ("torchvision", "detectron2"):
        width = 1 / ratios.sqrt()
        height = ratios.sqrt()
        center = 0.0
    else:
        raise ValueError(
            f"unknown anchor style '{style}', expected py-faster-rcnn, torchvision or detectron2"
        )
    if style == "detectron2":
        half_width, half_height = (
            (scales[:, None] * width).flatten() / 2,
            (scales[:, None] * height).flatten() / 2,
        )
    else:
        half_width, half_height = (
            (width[:, None] * scales).flatten() / 2,
            (height[:, None] * scales).flatten() / 2,
        )
    anchors = torch.stack((-half_width, -half_height, half_width, half_height), dim=1)
    if style == "torchvision":
        anchors = anchors.round()
    return (anchors + center).float()


class AnchorGenerator(nn.Module):
    """Lays the A anchors of `cell_anchors` over every cell of a feature map.

    num_anchors: A. The anchors are not part of the state dict: they follow from the configuration.
    """

    def __init__(
        self,
        *,
        sizes: tuple[float, ...],
        aspect_ratios: tuple[float, ...],
        stride: int,
        style: AnchorStyle,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.style = style
        self.num_anchors = len(sizes) * len(aspect_ratios)
        self.register_buffer(
            "cell", cell_anchors(sizes, aspect_ratios, stride=stride, style=style), persistent=False
        )

    def forward(self, height: int, width: int, span: tuple[int, int] | None = None) -> Tensor:
        """Return anchors (height * width * A, 4) for a feature map of that size; row-major over
        cells, then A.

        span: (h, w) px that the cells were made of, as `FeatureMap.spans`. torchvision lays its
        anchors a whole number of px apart, span / cells rounded down: 61 px where 800 px became 13
        cells of stride 64. The other styles' are a stride apart.
        """
        spacing = (self.stride, self.stride)
        if self.style == "torchvision" and span is not None and height and width:
            spacing = (span[0] // height, span[1] // width)
        device = self.cell.device
        y = torch.arange(height, dtype=torch.float32, device=device) * spacing[0]
        x = torch.arange(width, dtype=torch.float32, device=device) * spacing[1]
        y, x = torch.meshgrid(y, x, indexing="ij")
        shifts = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
        return (shifts + self.cell).reshape(-1, 4)

    def rows_within(self, size: tuple[int, int], width: int) -> Tensor:
        """Return the rows (h * w * A,) int64, in their order, of the anchors of the h x w cells at
        the top left of a map that is `width` cells wide; size: (h, w).
        """
        device = self.cell.device
        first_of_row = torch.arange(size[0], device=device)[:, None, None] * width
        cells = first_of_row + torch.arange(size[1], device=device)[None, :, None]  # (h, w, 1)
        of_cell = torch.arange(self.num_anchors, device=device)
        return (cells * self.num_anchors + of_cell).flatten()  # (h, w, A) -> (h * w * A,)

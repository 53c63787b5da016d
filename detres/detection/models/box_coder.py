"""Box coder: boxes <-> deltas (dx, dy, dw, dh) relative to reference boxes (Girshick et al. 2014,
appendix C).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000 / 16)
"""Largest dw and dh decoded. Detectron and torchvision clamp here against overflow; py-faster-rcnn
does not.
"""


class BoxCoder:
    """Encodes and decodes with fixed `weights` (wx, wy, ww, wh), the inverse of the deltas'
    standard deviations.

    (10, 10, 5, 5) is py-faster-rcnn's BBOX_NORMALIZE_STDS (.1, .1, .2, .2) for the RoI head; its
    RPN uses none, (1, 1, 1, 1).
    """

    def __init__(self, weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)) -> None:
        self.weights = weights

    def encode(self, reference: Tensor, boxes: Tensor) -> Tensor:
        """Return deltas (N, 4) that turn `reference` (N, 4) into `boxes` (N, 4), both xyxy px with
        positive sides.
        """
        size, target_size = reference[:, 2:] - reference[:, :2], boxes[:, 2:] - boxes[:, :2]
        center, target_center = reference[:, :2] + size / 2, boxes[:, :2] + target_size / 2
        deltas = torch.cat(((target_center - center) / size, (target_size / size).log()), dim=1)
        return deltas * deltas.new_tensor(self.weights)

    def decode(self, reference: Tensor, deltas: Tensor) -> Tensor:
        """Return boxes (N, 4), or (N, K, 4) for deltas (N, K, 4), from `reference` (N, 4); not
        clipped to any image.
        """
        if deltas.dim() == 3:
            reference = reference[:, None]
        deltas = deltas.float() / deltas.new_tensor(self.weights, dtype=torch.float32)
        size = reference[..., 2:] - reference[..., :2]
        center = reference[..., :2] + size / 2 + deltas[..., :2] * size
        half = deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp() * size / 2
        return torch.cat((center - half, center + half), dim=-1)

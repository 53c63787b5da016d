"""Pixels -> what a network was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn


class PixelNormalizer(nn.Module):
    """(x - mean) / std of uint8 RGB batches, on their device, padding 0 afterwards.

    mean, std: three values on the 0..255 scale in the order of `channel_order`; "bgr" reverses the
    channels first. mean_image: (3, H, W) likewise, subtracted instead of mean from images of
    exactly that size (CIFAR-10's per-pixel mean).
    """

    def __init__(
        self,
        *,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        channel_order: Literal["rgb", "bgr"],
        mean_image: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.channel_order = channel_order
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("mean_image", mean_image, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor, sizes: Sequence[tuple[int, int]] = ()) -> Tensor:
        """Return (N, 3, H, W) float32, channels last. sizes: N (h, w) px inside the padding; none:
        nothing is padded.
        """
        pixels = pixels.flip(1) if self.channel_order == "bgr" else pixels
        own_size = self.mean_image is not None and self.mean_image.shape == pixels.shape[1:]
        mean = self.mean_image if own_size else self.mean
        x = (
            pixels.to(dtype=torch.float32, copy=True, memory_format=torch.channels_last)
            .sub_(mean)
            .div_(self.std)
        )
        for n, (height, width) in enumerate(sizes):
            x[n, :, height:] = 0
            x[n, :, :, width:] = 0
        return x

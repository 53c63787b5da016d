"""Pixels -> what a network was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from backbones import InputSpec, normalize_pixels


class PixelNormalizer(nn.Module):
    """(x - mean) / std of RGB batches as `spec` says, on their device, padding 0 afterwards.

    Its tensors move with the module, so that no step waits for them, and are not part of the state
    dict: they follow from `spec`.
    """

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.channel_order = spec.channel_order
        self.register_buffer("mean", torch.tensor(spec.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1), persistent=False)
        self.register_buffer("mean_image", spec.mean_image, persistent=False)

    def forward(self, pixels: Tensor, sizes: Sequence[tuple[int, int]] = ()) -> Tensor:
        """Return (N, 3, H, W) float32, channels last, from `pixels` (N, 3, H, W) uint8 or
        float32, on the 0..255 scale.

        sizes: N (h, w) px inside the padding; none: nothing is padded.
        """
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        x = normalize_pixels(pixels, self.channel_order, self.mean, self.std, self.mean_image)
        for n, (height, width) in enumerate(sizes):
            x[n, :, height:] = 0
            x[n, :, :, width:] = 0
        return x

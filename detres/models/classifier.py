"""A classifier: normalise -> network -> softmax cross-entropy (paper, section 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones import Backbone
from detres.structures import ClassLoss, ClassTargets, CropBatch


class Classifier(nn.Module):
    """A network of `backbones` with its input normalised as `net.input_spec` says.

    label_smoothing: share of a target spread over all classes; 0 in the paper.
    """

    def __init__(self, *, net: Backbone, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.net = net
        self.label_smoothing = label_smoothing
        spec = net.input_spec
        mean = torch.tensor(spec.mean).view(3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("mean_image", mean if spec.mean_image is None else spec.mean_image, persistent=False)
        self.register_buffer("std", torch.tensor(spec.std).view(3, 1, 1), persistent=False)

    def forward(self, images: CropBatch, targets: ClassTargets | None = None) -> ClassLoss | Tensor:
        """Return ClassLoss when targets are given, else logits (N, K); decided by the argument alone."""
        logits = self.net(self.normalize(images.pixels)).float()
        if targets is None:
            return logits
        loss = F.cross_entropy(logits, targets.labels, label_smoothing=self.label_smoothing)
        wrong = logits.detach().argmax(dim=1) != targets.labels
        return ClassLoss(loss, wrong.float().mean())

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return (N, 3, H, W) uint8 RGB as float32 in channels last; another size than the mean image's takes the channels' means."""
        pixels = pixels.flip(1) if self.net.input_spec.channel_order == "bgr" else pixels
        mean = self.mean_image if self.mean_image.shape == pixels.shape[1:] else self.mean
        return pixels.to(dtype=torch.float32, memory_format=torch.channels_last).sub_(mean).div_(self.std)

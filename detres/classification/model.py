"""A classifier: normalise -> network -> softmax cross-entropy (paper, section 3.4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2 import MixUp

from backbones import Backbone, InputSpec
from detres.classification.structures import ClassTargets, CropBatch
from detres.images.normalize import PixelNormalizer
from detres.losses import Losses


class ClassificationModel(nn.Module):
    """A network of `backbones` with its input normalised as `net.input_spec` says.

    label_smoothing: share of a target spread over all classes. mixup: mixes images and targets of a
    training batch (Zhang et al. 2018). The paper has neither.
    """

    def __init__(
        self, *, net: Backbone, label_smoothing: float = 0.0, mixup: MixUp | None = None
    ) -> None:
        super().__init__()
        self.net = net
        self.label_smoothing = label_smoothing
        self.mixup = mixup
        self.compiled: Callable[[Tensor], Tensor] | None = None
        # what of a batch depends on all its images, beside batch norm; None: nothing
        self.indivisible = None if mixup is None else "mixup mixes the images at once"
        self.take_input(net.input_spec)

    def take_input(self, spec: InputSpec) -> None:
        """Normalise as `spec` says from now on; the network keeps it, and takes it along into its
        weights file.
        """
        self.net.input_spec = spec
        self.normalizer = PixelNormalizer(spec)

    def forward(self, images: CropBatch, targets: ClassTargets | None = None) -> Losses | Tensor:
        """Return Losses when targets are given, else logits (N, K); decided by the argument alone.

        They are loss_cls, cross entropy in nats, and, watched alone, top1_error, the fraction
        classified wrongly.
        """
        pixels = self.normalizer(images.pixels)
        if targets is None:
            return self.net(pixels).float()
        wanted = targets.labels
        if self.mixup is not None:
            pixels, wanted = self.mixup(pixels, wanted)
        logits = (self.compiled or self.net)(pixels).float()
        loss = F.cross_entropy(
            logits, wanted, label_smoothing=self.label_smoothing, reduction="sum"
        )
        right = wanted if self.mixup is None else wanted.argmax(dim=1)
        wrong = (logits.detach().argmax(dim=1) != right).float().sum()
        return Losses(
            {"loss_cls": loss, "top1_error": wrong},
            {"loss_cls": len(logits), "top1_error": len(logits)},
            watched=frozenset({"top1_error"}),
        )

    def compile_training(self) -> None:
        """Compile the network for training steps, on a GPU as CUDA graphs; evaluation, with its
        varied sizes, stays as it is.

        The first step then takes a minute or so. Weights and their names do not change.
        """
        on_gpu = next(self.net.parameters()).is_cuda
        # the method, not the module, which would be a second child of this one
        self.compiled = torch.compile(
            self.net.forward, dynamic=False, mode="reduce-overhead" if on_gpu else "default"
        )

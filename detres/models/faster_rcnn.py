"""Faster R-CNN on a residual network, the C4 layout of He et al. 2016, appendix A.

conv1..conv4 are shared; the RPN proposes on conv4's output; every proposal is pooled from it and
goes through conv5.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from backbones.resnet import ResNet
from detres.boxes import scale_boxes
from detres.image_io import pad_images, read_image, resize_image, resized_size
from detres.models.normalizer import PixelNormalizer
from detres.models.roi_head import RoIHead
from detres.models.rpn import RPN
from detres.structures import Detections, ImageBatch, Losses, Target


class FasterRCNN(nn.Module):
    """The detector: normalise -> backbone to conv4 -> RPN -> RoI head.

    backbone: a ResNet whose conv5 was taken out (`pop_stage`) for the RoI head. shorter, longer: px
    to which `predict` resizes an image's shorter side and the cap on its longer side. Build it with
    `detres.build.build_detector`.
    """

    def __init__(
        self,
        *,
        normalizer: PixelNormalizer,
        backbone: ResNet,
        rpn: RPN,
        roi_head: RoIHead,
        shorter: int,
        longer: int,
    ) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.backbone = backbone
        self.rpn = rpn
        self.roi_head = roi_head
        self.shorter = shorter
        self.longer = longer

    def forward(
        self, images: ImageBatch, targets: list[Target] | None = None
    ) -> Losses | list[Detections]:
        """Return Losses when targets are given, else one Detections an image in the pixels of the
        batch.

        Decided by the argument alone, so a validation loss needs no train() and predictions no
        eval(); train() and eval() only tell batch norm which statistics to use. Raises ValueError
        when there are not N targets.
        """
        if targets is not None and len(targets) != len(images):
            raise ValueError(f"{len(images)} images but {len(targets)} targets")
        feature = self.backbone.feature_maps(
            self.normalizer(images.pixels, images.sizes), stages=("conv4",)
        )["conv4"]
        proposals, rpn_losses = self.rpn(feature, images, targets)
        if targets is None:
            return self.roi_head.detect(feature, proposals, images)
        return Losses(*rpn_losses, *self.roi_head.losses(feature, proposals, targets))

    @torch.inference_mode()
    def predict(
        self, images: Sequence[np.ndarray | str | Path], *, batch_size: int = 1
    ) -> list[Detections]:
        """Return one Detections an image, on the CPU, boxes in the pixels of the image as given.

        images: (H, W, 3) uint8 RGB arrays, or paths (EXIF orientation is honoured). Puts the model
        in eval mode for the call. No images: an empty list. Raises ImageReadError naming a file
        that cannot be read, ValueError for an array of another shape or dtype.
        """
        was_training = self.training
        self.eval()
        detections = []
        for start in range(0, len(images), batch_size):
            batch = self._batch(images[start : start + batch_size], start).to(
                self.normalizer.mean.device
            )
            for found, size, original in zip(
                self(batch), batch.sizes, batch.original_sizes, strict=True
            ):
                boxes = scale_boxes(found.boxes, from_size=size, to_size=original)
                detections.append(Detections(boxes, found.scores, found.labels).to("cpu"))
        self.train(was_training)
        return detections

    def _batch(self, images: Sequence[np.ndarray | str | Path], first: int) -> ImageBatch:
        resized, originals = [], []
        for number, image in enumerate(images, start=first):
            pixels = read_image(image) if isinstance(image, (str, Path)) else image
            if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
                raise ValueError(
                    f"image {number} is {pixels.dtype} {pixels.shape}, expected uint8 (H, W, 3) RGB"
                )
            height, width = pixels.shape[:2]
            originals.append((height, width))
            resized.append(
                resize_image(
                    pixels, resized_size(height, width, shorter=self.shorter, longer=self.longer)
                )
            )
        return pad_images(
            resized, original_sizes=tuple(originals), ids=tuple(range(first, first + len(images)))
        )

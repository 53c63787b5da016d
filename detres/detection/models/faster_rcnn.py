"""Faster R-CNN: shared feature maps -> RPN -> RoI head (Ren et al. 2015; He et al. 2016, appendix
A).

The table of contents of the detector. Shapes: N images, C channels, (H, W) cells of a feature map,
P proposals of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detres.detection.models.box_head import Conv5BoxHead
from detres.detection.models.fpn import FPN
from detres.detection.models.roi_head import RoIHead
from detres.detection.models.rpn import RPN, ProposalCounts
from detres.detection.structures import Detections, FeatureMap, ImageBatch, Target
from detres.images.normalize import PixelNormalizer
from detres.losses import Losses


class FeatureExtractor(Protocol):
    """What can be a backbone: channels, strides: feature map -> its channels, its pixels a cell."""

    channels: dict[str, int]
    strides: dict[str, int]

    def feature_maps(
        self, x: Tensor, stages: Sequence[str], sizes: Sequence[tuple[int, int]] | None
    ) -> dict[str, Tensor]:
        """Return name -> map (N, C, H, W) of the `stages` asked for, from images
        (N, 3, height, width) float32.

        sizes: N (h, w) px that each image fills of a padded batch, None: all of it. The cells of an
        image must not depend on the padding, and the others are 0.
        """

    def map_size(self, stage: str, size: tuple[int, int]) -> tuple[int, int]:
        """Return the cells (h', w') of the map of `stage` for an image of `size` (h, w) px."""


class FasterRCNN(nn.Module):
    """The detector: normalise -> backbone (-> feature pyramid) -> RPN -> RoI head.

    backbone: a module with a FeatureExtractor's methods. stages: those of its maps that are shared
    by rpn and roi_head, or that `fpn` makes the shared ones of; the paper's C4 layout shares conv4
    alone. multiple_of: px to a multiple of which each side of an image is lengthened with zeros
    that count as image (publishers of pyramids: 32); None: not. Reads no files and resizes nothing:
    that is detres.detection.detector. Build it with detres.detection.build.build_detector.
    """

    def __init__(
        self,
        *,
        normalizer: PixelNormalizer,
        backbone: FeatureExtractor,
        stages: Sequence[str],
        rpn: RPN,
        roi_head: RoIHead,
        fpn: FPN | None = None,
        multiple_of: int | None = None,
    ) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.backbone = backbone
        self.stages = tuple(stages)
        self.multiple_of = multiple_of
        self.fpn = fpn
        self.rpn = rpn
        self.roi_head = roi_head
        self.compiled: Callable[..., dict[str, Tensor]] | None = None

    def forward(
        self,
        images: ImageBatch,
        targets: list[Target] | None = None,
        proposals: list[Tensor] | None = None,
    ) -> Losses | list[Detections]:
        """Return Losses when targets are given, else one Detections an image in the pixels of the
        batch.

        proposals: N tensors (P, 4) xyxy px of the batch, which then take the RPN's place: Fast
        R-CNN, whose losses are those of the RoI head alone. P may be 0.

        Decided by the arguments alone, so a validation loss needs no train() and predictions no
        eval(); train() and eval() only tell batch norm which statistics to use. Raises ValueError
        when there are not N targets, or not N proposals.
        """
        for what, given in (("targets", targets), ("proposals", proposals)):
            if given is not None and len(given) != len(images):
                raise ValueError(f"{len(images)} images but {what} for {len(given)}")
        features = self.features(images)
        losses = Losses({}, {})
        if proposals is None:
            proposals, losses = self.rpn(features, images, targets)
        if targets is None:
            logits, deltas = self.roi_head(features, proposals, images.sizes)
            return self.roi_head.postprocess(logits, deltas, proposals, images.sizes)
        return losses | self.roi_head.losses(features, proposals, images, targets)

    def propose(self, images: ImageBatch, counts: ProposalCounts) -> list[tuple[Tensor, Tensor]]:
        """Return for each of N images what its RPN proposes, (P, 4) xyxy px of the batch, best
        first, and their logits (P,); P may be 0.
        """
        return self.rpn.propose(self.rpn.on_maps(self.features(images)), images, counts)

    def features(self, images: ImageBatch) -> dict[str, FeatureMap]:
        """Return the shared maps by stage, strides in `backbone.strides`, or by level of the
        pyramid; an image's cells do not depend on what it shares the batch with.
        """
        compiled = self.compiled if torch.is_grad_enabled() else None
        maps = shared_maps(
            images,
            self.normalizer,
            self.backbone,
            self.stages,
            multiple_of=self.multiple_of,
            compiled=compiled,
        )
        return maps if self.fpn is None else self.fpn(maps)

    def checkpoint_activations(self) -> None:
        """Keep fewer activations of the backbone, and of a conv5 that goes over regions, in
        training, computing them again in the backward; `backbone` is one of backbones.
        """
        self.backbone.checkpoint_activations(tuple(self.backbone.channels))
        if isinstance(self.roi_head.box_head, Conv5BoxHead):
            self.roi_head.box_head.checkpointed = True

    def compile_training(self) -> None:
        """Compile backbone, RPN head and box head for images and regions of any number and size;
        batches with padding, and evaluation, go through the plain backbone.

        The first steps then take a minute or so. Weights and their names do not change.
        """
        self.compiled = torch.compile(self.backbone.feature_maps, dynamic=True)
        self.rpn.head.compile(dynamic=True)
        self.roi_head.box_head.compile(dynamic=True)


def shared_maps(
    images: ImageBatch,
    normalizer: PixelNormalizer,
    backbone: FeatureExtractor,
    stages: Sequence[str],
    *,
    multiple_of: int | None = None,
    compiled: Callable[..., dict[str, Tensor]] | None = None,
) -> dict[str, FeatureMap]:
    """Return the maps of a batch by stage, each with the cells that are an image's own;
    multiple_of: as of FasterRCNN; compiled: what takes the place of the backbone's feature_maps
    where no image is padded.
    """
    pixels, sizes = normalizer(images.pixels, images.sizes), images.sizes
    if multiple_of is not None:
        sizes = tuple(_lengthened(size, multiple_of) for size in sizes)
        height, width = _lengthened(pixels.shape[2:], multiple_of)
        pixels = F.pad(pixels, (0, width - pixels.shape[3], 0, height - pixels.shape[2]))
    whole = all(tuple(size) == tuple(pixels.shape[2:]) for size in sizes)
    if compiled is not None and whole:
        maps = compiled(pixels, stages=stages, sizes=None)
    else:
        maps = backbone.feature_maps(pixels, stages=stages, sizes=sizes)
    return {
        stage: FeatureMap(values, tuple(backbone.map_size(stage, size) for size in sizes))
        for stage, values in maps.items()
    }


def _lengthened(size: tuple[int, int], unit: int) -> tuple[int, int]:
    """Both sides up to the next multiple of `unit`."""
    return -(-size[0] // unit) * unit, -(-size[1] // unit) * unit


class FastRCNN(nn.Module):
    """A detector without its RPN (Girshick 2015): what it looks at are `images.proposals`, and what
    learns are the shared layers and the RoI head.
    """

    def __init__(self, detector: FasterRCNN) -> None:
        super().__init__()
        self.detector = detector
        detector.rpn.requires_grad_(False)

    def forward(
        self, images: ImageBatch, targets: list[Target] | None = None
    ) -> Losses | list[Detections]:
        """Return the losses of the RoI head when targets are given, else one Detections an image;
        raises ValueError for images without proposals.
        """
        if images.proposals is None:
            raise ValueError("the images come without proposals, which Fast R-CNN looks at")
        return self.detector(images, targets, list(images.proposals))


class ProposalNetwork(nn.Module):
    """A detector without its RoI head: its RPN on the shared layers, which are what learns."""

    def __init__(self, detector: FasterRCNN) -> None:
        super().__init__()
        self.detector = detector
        detector.roi_head.requires_grad_(False)

    def forward(self, images: ImageBatch, targets: list[Target]) -> Losses:
        """Return the losses of the RPN; proposals are not made for them."""
        rpn = self.detector.rpn
        maps = rpn.on_maps(self.detector.features(images))
        return rpn.losses(maps, images, targets)

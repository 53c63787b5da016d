"""Detectors of others and ours with the same weights, on the same pixels."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from detres.benchmarks.detector import NUM_CLASSES, model_config, settle, shapes_batch
from detres.benchmarks.pyramid import same_as, torchvisions_model
from detres.benchmarks.torchvision_parts import TorchvisionParts
from detres.detection.build import build_detector
from detres.detection.config import ModelConfig
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.detection.structures import ImageBatch, Target

FROZEN = 2
"""Stages that do not learn in a training step: conv1 and conv2_x, as in published ones."""

TRAIN_ROIS = 128
"""Regions an image that the RoI head learns from."""


@dataclass(frozen=True)
class Peer:
    """One detector twice: `ours`, and `theirs` of the library `name`.

    job: what it is, in words. images, targets: what both look at. infer, losses: of theirs: what
    runs it on the images, and its total loss on them.
    """

    name: str
    job: str
    ours: FasterRCNN
    theirs: nn.Module
    images: ImageBatch
    targets: list[Target]
    infer: Callable[[], object]
    losses: Callable[[], Tensor]


def peers_of(
    network: str, short_side: int, rois: int | None, device: torch.device, batch: int
) -> list[Peer]:
    """Return ours beside each library's that has `network`: one of NETWORKS.

    short_side: px. rois: proposals an image in inference; None: 300, of a pyramid 1,000. batch:
    images. Layers are frozen as
    published detectors have them; what learns has no statistics of the batch.
    """
    if rois is None:
        rois = 1000 if network == "r50-fpn" else 300
    return [
        make(short_side, rois, device, batch) for make in NETWORKS[network]() if make is not None
    ]


def images_of(
    config: ModelConfig, batch: int, device: torch.device
) -> tuple[ImageBatch, list[Target]]:
    one, targets = shapes_batch(config)
    images = ImageBatch(
        one.pixels.repeat(batch, 1, 1, 1),
        one.sizes * batch,
        one.original_sizes * batch,
        tuple(range(1, batch + 1)),
    )
    return images.to(device), [target.to(device) for target in targets * batch]


def _torchvision_c4(backbone: str, placement: str, pool: str = "roi_align") -> Callable[..., Peer]:
    def make(short_side: int, rois: int, device: torch.device, batch: int) -> Peer:
        config = model_config(backbone, short_side, rois)
        frozen = {"norm": "frozen", "freeze_at": FROZEN}
        own = config.backbone.model_copy(update={"stride_placement": placement, **frozen})
        head = config.roi.model_copy(update={"pool": pool, "batch_size": TRAIN_ROIS})
        config = config.model_copy(update={"backbone": own, "roi": head})
        return _torchvision(
            config, f"{backbone}-C4, stride in the {_PLACES[placement]}", device, batch
        )

    return make


_PLACES = {"original": "1x1", "torchvision": "3x3"}


def _torchvision_vgg(short_side: int, rois: int, device: torch.device, batch: int) -> Peer:
    config = model_config("resnet18", short_side, rois)
    own = config.backbone.model_copy(
        update={"name": "vgg16", "norm": None, "stride_placement": None, "freeze_at": FROZEN}
    )
    rpn = config.rpn.model_copy(update={"width": 512})
    head = config.roi.model_copy(update={"pool_size": 7, "batch_size": TRAIN_ROIS})
    config = config.model_copy(update={"backbone": own, "rpn": rpn, "roi": head})
    return _torchvision(config, "vgg16", device, batch)


def _torchvision(config: ModelConfig, what: str, device: torch.device, batch: int) -> Peer:
    ours = build_detector(config, NUM_CLASSES)
    settle(ours)
    theirs = TorchvisionParts(config, NUM_CLASSES)
    theirs.copy_weights(ours)
    images, targets = images_of(config, batch, device)
    theirs = theirs.to(device)
    height, width = images.sizes[0]
    job = f"{what}, {config.roi.pool}, {height}x{width} px"
    return Peer(
        "torchvision",
        job,
        ours.to(device),
        theirs,
        images,
        targets,
        infer=lambda: theirs(images),
        losses=lambda: theirs(images, targets).total(),
    )


def _torchvision_pyramid(short_side: int, rois: int, device: torch.device, batch: int) -> Peer:
    theirs = torchvisions_model(short_side, rois)
    ours = same_as(theirs).to(device)
    theirs = theirs.to(device)
    images, targets = images_of(model_config("resnet50", short_side, rois), batch, device)
    tensors = [pixels.float() / 255 for pixels in images.pixels]
    wanted = [{"boxes": target.boxes, "labels": target.labels} for target in targets]
    height, width = images.sizes[0]
    return Peer(
        "torchvision",
        f"resnet50-FPN, {rois} RoIs, {height}x{width} px",
        ours,
        theirs,
        images,
        targets,
        infer=lambda: theirs(tensors),
        losses=lambda: sum(theirs(tensors, wanted).values()),
    )


def _detectron2_c4() -> Callable[..., Peer] | None:
    """What makes detectron2's, None where it is not installed."""
    if importlib.util.find_spec("detectron2") is None:
        return None
    return importlib.import_module("detres.benchmarks.detectron2_peer").detectron2_c4


NETWORKS: dict[str, Callable[[], list[Callable[..., Peer] | None]]] = {
    "r50-c4": lambda: [_detectron2_c4(), _torchvision_c4("resnet50", "original")],
    "r50-c4-3x3": lambda: [_torchvision_c4("resnet50", "torchvision")],
    "r50-c4-roi-pool": lambda: [_torchvision_c4("resnet50", "original", "roi_pool")],
    "r101-c4": lambda: [_torchvision_c4("resnet101", "original")],
    "r18-c4": lambda: [_torchvision_c4("resnet18", "torchvision")],
    "r50-fpn": lambda: [_torchvision_pyramid],
    "vgg16": lambda: [_torchvision_vgg],
}

"""A detector on a feature pyramid against torchvision's own model, with the same weights."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.misc import FrozenBatchNorm2d

from detres.benchmarks.detector import NUM_CLASSES, model_config, shapes_batch
from detres.benchmarks.timing import Timing
from detres.detection.import_weights import import_detector

ROIS = 1000
"""Proposals an image that torchvision's model has, where there are as many."""


def benchmark_pyramid(timing: Timing, short_side: int) -> None:
    """Time what torchvision's fasterrcnn_resnet50_fpn is, and ours made of its file, on one image
    of `short_side` px: inference, and forward and backward with conv1 and conv2_x frozen.
    """
    theirs = torchvisions_model(short_side)
    ours = same_as(theirs)
    device = timing.device
    ours, theirs = ours.to(device).eval(), theirs.to(device).eval()
    images, targets = shapes_batch(model_config("resnet50", short_side, ROIS))
    images, targets = images.to(device), [target.to(device) for target in targets]
    tensors = [images.pixels[0].float() / 255]
    wanted = [{"boxes": target.boxes, "labels": target.labels} for target in targets]
    height, width = images.sizes[0]
    job = f"resnet50-FPN, {height}x{width} px, {ROIS} RoIs"

    def infer_ours() -> None:
        with torch.inference_mode():
            ours(images)

    def infer_theirs() -> None:
        with torch.inference_mode():
            theirs(tensors)

    timing.row(f"inference, {job}", infer_ours, infer_theirs)
    ours.train()
    theirs.train()

    def step_ours() -> None:
        ours(images, targets).total().backward()
        ours.zero_grad(set_to_none=True)

    def step_theirs() -> None:
        sum(theirs(tensors, wanted).values()).backward()
        theirs.zero_grad(set_to_none=True)

    timing.row(f"forward + backward, resnet50-FPN, {height}x{width} px", step_ours, step_theirs)


def same_as(theirs: nn.Module) -> nn.Module:
    """Return our detector with the weights and settings of torchvision's model, by its file."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "theirs.pth"
        torch.save(theirs.state_dict(), file)
        return import_detector(file).detector


def torchvisions_model(short_side: int) -> FasterRCNN:
    """Return torchvision's model with random weights whose activations and scores are of a trained
    network's size; it resizes images to `short_side` px.
    """
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    model = FasterRCNN(backbone, NUM_CLASSES + 1, min_size=short_side, max_size=short_side * 5 // 3)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.fill_(0.5)
    nn.init.normal_(model.rpn.head.cls_logits.weight, std=0.05)
    return model

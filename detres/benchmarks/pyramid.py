"""A detector on a feature pyramid as torchvision's own model is, and ours with its weights."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.misc import FrozenBatchNorm2d

from detres.benchmarks.detector import NUM_CLASSES
from detres.detection.import_weights import import_detector


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

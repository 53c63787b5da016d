"""A detector on a feature pyramid as torchvision's own model is, and ours with its weights."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.misc import FrozenBatchNorm2d

from detres.benchmarks.detector import NUM_CLASSES
from detres.detection.import_weights import import_detector


def same_as(theirs: FasterRCNN) -> nn.Module:
    """Return our detector with the weights of torchvision's model, by its file, and its settings,
    the number of proposals among them.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "theirs.pth"
        torch.save(theirs.state_dict(), file)
        ours = import_detector(file).detector
    own = ours.rpn.settings
    counts = replace(own.test_counts, post_nms=theirs.rpn._post_nms_top_n["testing"])
    ours.rpn.settings = replace(own, test_counts=counts)
    return ours


def torchvisions_model(short_side: int, rois: int = 1000) -> FasterRCNN:
    """Return torchvision's model with random weights whose activations and scores are of a trained
    network's size; it resizes images to `short_side` px, and takes `rois` proposals of each.
    """
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3
    )
    model = FasterRCNN(
        backbone,
        NUM_CLASSES + 1,
        min_size=short_side,
        max_size=short_side * 5 // 3,
        rpn_post_nms_top_n_test=rois,
    )
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.weight.fill_(0.5)
    nn.init.normal_(model.rpn.head.cls_logits.weight, std=0.05)
    return model

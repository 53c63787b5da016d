"""The tensors of detectron2's Faster R-CNN under its names and in its shapes, random."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}


def norm_of(channels: int) -> dict[str, Tensor]:
    return {
        "weight": torch.rand(channels) + 0.5,
        "bias": torch.randn(channels) / 10,
        "running_mean": torch.randn(channels) / 10,
        "running_var": torch.rand(channels) + 0.5,
    }


def resnet_of(name: str, *, pyramid: bool) -> dict[str, Tensor]:
    """A ResNet's tensors under detectron2's names, random."""
    root = "backbone.bottom_up." if pyramid else "backbone."
    found = {f"{root}stem.conv1.weight": torch.randn(64, 3, 7, 7) / 20}
    found |= {f"{root}stem.conv1.norm.{k}": v for k, v in norm_of(64).items()}
    channels = 64
    for stage, blocks in enumerate(BLOCKS[name], start=2):
        place = "roi_heads." if stage == 5 and not pyramid else root
        width, out = 64 * 2 ** (stage - 2), 256 * 2 ** (stage - 2)
        for block in range(blocks):
            layers = {"conv1": (width, channels, 1), "conv2": (width, width, 3)}
            layers["conv3"] = (out, width, 1)
            if block == 0:
                layers["shortcut"] = (out, channels, 1)
            for layer, (to, of, kernel) in layers.items():
                at = f"{place}res{stage}.{block}.{layer}"
                found[f"{at}.weight"] = torch.randn(to, of, kernel, kernel) * (of**-0.5) / kernel
                found |= {f"{at}.norm.{k}": v for k, v in norm_of(to).items()}
            channels = out
    return found


def layer_of(name: str, *shape: int) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.randn(shape) / 50, f"{name}.bias": torch.randn(shape[0]) / 50}


def detectron2_state(name: str, *, pyramid: bool, num_classes: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    found = resnet_of(name, pyramid=pyramid)
    width, anchors = (256, 3) if pyramid else (1024, 15)
    if pyramid:
        for level in range(2, 6):
            found |= layer_of(f"backbone.fpn_lateral{level}", 256, 256 * 2 ** (level - 2), 1, 1)
            found |= layer_of(f"backbone.fpn_output{level}", 256, 256, 3, 3)
        found |= layer_of("roi_heads.box_head.fc1", 1024, 256 * 49)
        found |= layer_of("roi_heads.box_head.fc2", 1024, 1024)
    rpn = "proposal_generator.rpn_head"
    found |= layer_of(f"{rpn}.conv", width, width, 3, 3)
    found |= layer_of(f"{rpn}.objectness_logits", anchors, width, 1, 1)
    found |= layer_of(f"{rpn}.anchor_deltas", 4 * anchors, width, 1, 1)
    features = 1024 if pyramid else 2048
    found |= layer_of("roi_heads.box_predictor.cls_score", num_classes + 1, features)
    found |= layer_of("roi_heads.box_predictor.bbox_pred", 4 * num_classes, features)
    return found

"""Residual networks with published weights, for any project that has torch: `from backbones import resnet50`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from backbones.norm import FrozenBatchNorm2d, NormKind, freeze_batch_norm
from backbones.resnet import ResNet, StridePlacement, resnet18, resnet34, resnet50, resnet101, resnet152
from backbones.weights import PUBLISHED, LoadReport, WeightsError, load_weights

BACKBONES: dict[str, Callable[..., ResNet]] = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "resnet152": resnet152,
}

__all__ = [
    "BACKBONES",
    "PUBLISHED",
    "FrozenBatchNorm2d",
    "LoadReport",
    "ResNet",
    "WeightsError",
    "create_backbone",
    "freeze_batch_norm",
    "list_backbones",
    "load_weights",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
]


def list_backbones() -> list[str]:
    """Return the names that create_backbone knows."""
    return list(BACKBONES)


def create_backbone(
    name: str,
    *,
    stride_placement: StridePlacement = "torchvision",
    norm: NormKind = "batch",
    in_channels: int = 3,
    num_classes: int = 1000,
    freeze_at: int = 0,
    weights: str | Path | None = None,
) -> ResNet:
    """Return the network called `name`; the arguments are those of its constructor.

    Raises ValueError for an unknown name, giving the nearest ones; WeightsError when the weights cannot be used.
    """
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(BACKBONES)}"
        raise ValueError(f"unknown backbone '{name}', {hint}")
    return BACKBONES[name](
        stride_placement=stride_placement,
        norm=norm,
        in_channels=in_channels,
        num_classes=num_classes,
        freeze_at=freeze_at,
        weights=weights,
    )

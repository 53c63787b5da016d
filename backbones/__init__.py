"""The networks of He et al. 2016 with published weights, for any project that has torch:
`from backbones import resnet50`.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from backbones.backbone import Backbone, LoadReport
from backbones.catalogue import PUBLISHED, InputSpec, normalize_pixels
from backbones.norm import (
    FrozenBatchNorm2d,
    NormKind,
    fold_batch_norm,
    freeze_batch_norm,
    recompute_batch_norm,
)
from backbones.resnet import (
    RESNETS,
    Pool1,
    ResNet,
    StridePlacement,
    plain18,
    plain34,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
)
from backbones.resnet_cifar import (
    CIFAR_DEPTHS,
    PLAIN_CIFAR_DEPTHS,
    CifarResNet,
    plain_cifar,
    resnet_cifar,
)
from backbones.shortcuts import PaddingSide, ShortcutKind
from backbones.vgg import VGG, vgg16, vgg16_bn, vgg19, vgg19_bn
from backbones.weights import WeightsError, load_weights, read_metadata, save_weights

BACKBONES: dict[str, Callable[..., Backbone]] = {
    **RESNETS,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "vgg16_bn": vgg16_bn,
    "vgg19_bn": vgg19_bn,
    **{f"resnet{depth}": functools.partial(resnet_cifar, depth) for depth in CIFAR_DEPTHS},
    **{f"plain{depth}": functools.partial(plain_cifar, depth) for depth in PLAIN_CIFAR_DEPTHS},
}

__all__ = [
    "BACKBONES",
    "PUBLISHED",
    "RESNETS",
    "VGG",
    "Backbone",
    "CifarResNet",
    "FrozenBatchNorm2d",
    "InputSpec",
    "LoadReport",
    "ResNet",
    "WeightsError",
    "create_backbone",
    "fold_batch_norm",
    "freeze_batch_norm",
    "list_backbones",
    "load_weights",
    "normalize_pixels",
    "plain18",
    "plain34",
    "plain_cifar",
    "read_metadata",
    "recompute_batch_norm",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet_cifar",
    "save_weights",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
]


def list_backbones(pattern: str = "") -> list[str]:
    """Return the names that create_backbone knows; with `pattern`, those that contain it."""
    return [name for name in BACKBONES if pattern in name]


def require_known(name: str) -> None:
    """Raise ValueError unless a backbone is called `name`, giving the nearest ones."""
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(BACKBONES)}"
        raise ValueError(f"unknown backbone {name!r:.60}, {hint}")


def create_backbone(
    name: str,
    *,
    shortcut: ShortcutKind | None = None,
    shortcut_padding: PaddingSide | None = None,
    stride_placement: StridePlacement | None = None,
    width: float | None = None,
    pool1: Pool1 | None = None,
    fc_width: int | None = None,
    norm: NormKind | Literal["none"] | None = None,
    in_channels: int = 3,
    num_classes: int | None = None,
    freeze_at: int = 0,
    zero_init_residual: bool | None = None,
    weights: str | Path | None = None,
) -> Backbone:
    """Return the network called `name`; the arguments are those of its constructor, None means its
    default.

    num_classes: None takes the number from the classifier of `weights`, without one the data set's
    (ImageNet 1000, CIFAR 10); 0 leaves the classifier out; another number than the file's starts a
    new one, as `net.load_report` then says.

    Raises ValueError for an unknown name, giving the nearest ones, and for an argument this network
    does not have; WeightsError when the weights cannot be used.
    """
    require_known(name)
    options = {
        "shortcut": shortcut,
        "shortcut_padding": shortcut_padding,
        "stride_placement": stride_placement,
        "width": width,
        "pool1": pool1,
        "fc_width": fc_width,
        "norm": norm,
        "num_classes": num_classes,
        "zero_init_residual": zero_init_residual,
    }
    given = {option: value for option, value in options.items() if value is not None}
    known = inspect.signature(BACKBONES[name]).parameters
    foreign = [option for option in given if option not in known]
    if foreign:
        raise ValueError(
            f"{name} has no {', '.join(foreign)}; it takes "
            f"{', '.join(option for option in known if option != 'depth')}"
        )
    return BACKBONES[name](**given, in_channels=in_channels, freeze_at=freeze_at, weights=weights)

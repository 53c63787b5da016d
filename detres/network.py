"""Which network of `backbones` a model is built on: one description for both wings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from backbones import PUBLISHED, Backbone, WeightsError, create_backbone, require_known
from backbones.weights import published_path
from detres.config import Section, UserPath


class NetworkWeightsError(WeightsError):
    """Weights of another network than the settings describe; `keys` are the settings, key -> value,
    that describe theirs.
    """

    def __init__(self, error: WeightsError, at: str) -> None:
        super().__init__(str(error), error.settings)
        self.keys = {f"{at}.{name}": value for name, value in error.settings.items()}


class NetworkConfig(Section):
    """A network of `backbones`; None means the network's own default (paper, section 4.1: shortcut
    B for ResNets, A on CIFAR).
    """

    at: ClassVar[str] = "model.network"  # the key under which it stands

    name: str = "resnet50"  # see `python -m backbones`
    # kind of shortcut (paper, section 3.3 and Table 3)
    shortcut: Literal["A", "B", "C"] | None = None
    # of shortcut A: where channels of zeros are added
    shortcut_padding: Literal["end", "both"] | None = None
    # stride 2 in the 1x1 (the paper) or the 3x3 of a bottleneck
    stride_placement: Literal["original", "torchvision"] | None = None
    # what the channels of a ResNet's blocks are multiplied by
    width: Annotated[float, Field(gt=0, le=16)] | None = None
    # a ResNet's max pooling: padded by a cell, or (the authors' own networks) not, and rounded up
    pool1: Literal["torch", "caffe"] | None = None
    fc_width: Annotated[int, Field(ge=1, le=65_536)] | None = None  # of a VGG's fc6 and fc7
    # batch norm that learns, is frozen or synchronised, or group norm
    norm: Literal["batch", "frozen", "sync", "group"] | None = None
    zero_init_residual: bool | None = None  # not in the paper
    weights: UserPath | None = None  # a file, or a published name such as torchvision/resnet101.v1

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        require_known(name)
        return name


def build_network(
    settings: NetworkConfig,
    *,
    num_classes: int | None,
    freeze_at: int = 0,
    weights: str | Path | None = None,
) -> Backbone:
    """Return the network of `settings`, with `weights`, not those of the settings, where given.

    The arguments, and what is raised, are those of backbones.create_backbone; where other settings
    would fit the weights, the error is a NetworkWeightsError.
    """
    with settings_named(settings):
        return create_backbone(
            settings.name,
            shortcut=settings.shortcut,
            shortcut_padding=settings.shortcut_padding,
            stride_placement=settings.stride_placement,
            width=settings.width,
            pool1=settings.pool1,
            fc_width=settings.fc_width,
            norm=settings.norm,
            num_classes=num_classes,
            freeze_at=freeze_at,
            zero_init_residual=settings.zero_init_residual,
            weights=weights,
        )


@contextlib.contextmanager
def settings_named(settings: NetworkConfig) -> Iterator[None]:
    """Turn a WeightsError inside the block that knows better settings into a NetworkWeightsError,
    which has their keys.
    """
    try:
        yield
    except WeightsError as error:
        if not error.settings:
            raise
        raise NetworkWeightsError(error, settings.at) from None


def require_downloaded(weights: object, *, offline: bool) -> None:
    """Raise WeightsError where `weights`, of a backbone or a classifier, is a published name whose
    file would have to be downloaded, and `offline` says that nothing is.
    """
    named = isinstance(weights, str) and weights in PUBLISHED
    if offline and named and not published_path(weights).is_file():
        raise WeightsError(
            f"{weights} is not here, and offline nothing is downloaded: it would be "
            f"{published_path(weights)}; put the file of {PUBLISHED[weights].url} there"
        )

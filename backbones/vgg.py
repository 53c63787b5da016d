"""VGG-16 and VGG-19 (Simonyan and Zisserman 2015), the paper's baseline, with and without batch
norm.

Stages: conv1 ... conv5, groups of 3x3 convolutions at 1/1, 1/2, 1/4, 1/8 and 1/16 of the image; a
stage's map is the one before its max pooling, so conv5 is conv5_3 (VGG-16) at stride 16, what
Faster R-CNN builds on. Parameters are named as torchvision names them: features.N, classifier.0
(fc6), classifier.3 (fc7), classifier.6 (fc8).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from backbones.backbone import Backbone, new_linear
from backbones.catalogue import IMAGENET
from backbones.convolve import call
from backbones.norm import NormKind, conv_norm, make_norm
from backbones.padding import Padding, zero_padding_
from backbones.resnet import initialize_convolutions
from backbones.weights import load_weights

_WIDTHS = (64, 128, 256, 512, 512)
FC_GRID = 7
"""Cells a side of the map that fc6 reads."""


class VGG(Backbone):
    """A VGG network that classifies (`forward`) or gives feature maps by stage name
    (`feature_maps`).

    depths: convolutions in conv1..conv5. norm: "none" (the original), or one of make_norm's.
    fc_width: outputs of fc6 and fc7; weights of another width are skipped there, and reported.
    num_classes: 0 leaves fc8 out, so that forward gives fc7; None is that of the weights' fc8, else
    1000. freeze_at: see `freeze`. weights: see load_weights; without, convolutions start from He's
    normal distribution, fan out, and linear layers from N(0, 0.01), biases 0, as torchvision's do.

    Raises ValueError for an unknown norm, WeightsError for weights that cannot be used.
    """

    head_prefix = "classifier."

    def __init__(
        self,
        depths: tuple[int, int, int, int, int],
        *,
        norm: NormKind | Literal["none"],
        fc_width: int,
        in_channels: int,
        num_classes: int | None,
        freeze_at: int,
        weights: str | Path | None,
    ) -> None:
        super().__init__(in_channels=in_channels, input_spec=IMAGENET, traits={})
        layers: list[nn.Module] = []
        self._layers_of_stage: dict[str, tuple[int, int]] = {}
        channels = in_channels
        for number, (width, depth) in enumerate(zip(_WIDTHS, depths, strict=True), start=1):
            start = len(layers)
            for _ in range(depth):
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1),
                    *([] if norm == "none" else [make_norm(norm, width)]),
                    nn.ReLU(inplace=True),
                ]
                channels = width
            stage = f"conv{number}"
            self._layers_of_stage[stage] = (start, len(layers))
            self.channels[stage], self.strides[stage] = width, 1 << (number - 1)
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(FC_GRID)
        self.classifier: nn.Sequential | None = nn.Sequential(
            nn.Linear(channels * FC_GRID**2, fc_width), nn.ReLU(inplace=True), nn.Dropout(),
            nn.Linear(fc_width, fc_width), nn.ReLU(inplace=True), nn.Dropout(),
        )  # fmt: skip
        self.last_stage, self.num_features = "conv5", fc_width
        initialize_convolutions(self)
        for fc in (self.fc6, self.fc7):
            _initialize_linear(fc)
        self.reset_classifier(1000 if num_classes is None else num_classes)
        if weights is not None:
            load_weights(self, weights, resize_classifier=num_classes is None)
        self.freeze(freeze_at)

    def map_size(self, stage: str, size: tuple[int, int]) -> tuple[int, int]:
        """Return the cells (h', w') of the map of `stage` for an image of `size` (h, w) px; the
        2x2 poolings leave out an odd last row or column.

        An image below a cell has one, where a padded batch gives it room.
        """
        stride = self.strides[stage]
        return max(1, size[0] // stride), max(1, size[1] // stride)

    def run_stage(
        self,
        stage: str,
        x: Tensor,
        before: Padding | None = None,  # noqa: ARG002
        after: Padding | None = None,
    ) -> Tensor:
        """Return the map (N, C', H', W') of `stage` for `x`, (N, C, H, W)."""
        start, end = self._layers_of_stage[stage]
        if start:
            # the pooling between the stages
            x = zero_padding_(self.features[start - 1](x), after)
        layers = list(self.features[start:end])
        blocks = []
        while layers:
            conv = layers.pop(0)
            norm = None if isinstance(layers[0], nn.ReLU) else layers.pop(0)
            blocks.append(functools.partial(_convolve, conv, norm, layers.pop(0), after))
        return self.run_blocks(stage, blocks, x)

    def stage_modules(self, stage: str) -> list[nn.Module]:
        """Return the layers of `stage`, its pooling left out."""
        return list(self.features[slice(*self._layers_of_stage[stage])])

    @property
    def fc6(self) -> nn.Linear:
        """The first fully connected layer, (fc_width, 512 x 7 x 7); raises ValueError after
        `pop_head`.
        """
        return self._head()[0]

    @property
    def fc7(self) -> nn.Linear:
        """The second fully connected layer, (fc_width, fc_width); raises ValueError after
        `pop_head`.
        """
        return self._head()[3]

    def _head(self) -> nn.Sequential:
        if self.classifier is None:
            raise ValueError("the fully connected layers were taken out of this network")
        return self.classifier

    def get_classifier(self) -> nn.Linear | None:
        """Return fc8, None without."""
        return (
            self.classifier[6] if self.classifier is not None and len(self.classifier) > 6 else None
        )

    def reset_classifier(self, num_classes: int) -> None:
        """Replace fc8 by a new, random one for `num_classes`; 0 leaves it out."""
        head = list(self._head())[:6]
        if num_classes:
            head.append(new_linear(self.num_features, num_classes, like=self.fc7.weight))
            _initialize_linear(head[6])
        self.classifier = nn.Sequential(*head)

    def output_module(self, stage: str) -> str:
        """Return the path of the last ReLU of `stage`."""
        return f"features.{self._layers_of_stage[stage][1] - 1}"

    def forward_head(self, x: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Return logits (N, num_classes) for conv5's map (N, 512, H, W), or fc7's output (N,
        fc_width).

        Raises ValueError for maps that are too small, and after `pop_head`.
        """
        head = self._head()
        if x.shape[2] < 2 or x.shape[3] < 2:
            raise ValueError(
                f"a map of {x.shape[2]}x{x.shape[3]} cells is too small for the last pooling: give "
                "images of at least 32x32 px"
            )
        x = torch.flatten(self.avgpool(self.features[-1](x)), 1)
        return (head[:6] if pre_logits else head)(x)

    def pop_head(self) -> nn.Sequential:
        """Take fc6 and fc7, each with ReLU and dropout, out of the network and return them; fc8 is
        dropped.

        A Faster R-CNN makes its RoI head of them: (R, 512 * 7 * 7) flattened RoI maps -> (R,
        fc_width). Raises ValueError the second time. The network still gives feature maps.
        """
        head = self._head()[:6]
        self.classifier = None
        return head


def _initialize_linear(layer: nn.Linear) -> None:
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)


def _convolve(
    conv: nn.Conv2d, norm: nn.Module | None, relu: nn.ReLU, padding: Padding | None, x: Tensor
) -> Tensor:
    y = call(conv, x) if norm is None else conv_norm(conv, norm, x, padding)
    return relu(zero_padding_(y, padding))


def vgg16(
    *,
    fc_width: int = 4096,
    in_channels: int = 3,
    num_classes: int | None = None,
    freeze_at: int = 0,
    weights: str | Path | None = None,
) -> VGG:
    """Return VGG-16 (138.4 M parameters). Arguments: see VGG."""
    return VGG(
        (2, 2, 3, 3, 3),
        norm="none",
        fc_width=fc_width,
        in_channels=in_channels,
        num_classes=num_classes,
        freeze_at=freeze_at,
        weights=weights,
    )


def vgg19(
    *,
    fc_width: int = 4096,
    in_channels: int = 3,
    num_classes: int | None = None,
    freeze_at: int = 0,
    weights: str | Path | None = None,
) -> VGG:
    """Return VGG-19 (143.7 M parameters). Arguments: see VGG."""
    return VGG(
        (2, 2, 4, 4, 4),
        norm="none",
        fc_width=fc_width,
        in_channels=in_channels,
        num_classes=num_classes,
        freeze_at=freeze_at,
        weights=weights,
    )


def vgg16_bn(
    *,
    norm: NormKind = "batch",
    fc_width: int = 4096,
    in_channels: int = 3,
    num_classes: int | None = None,
    freeze_at: int = 0,
    weights: str | Path | None = None,
) -> VGG:
    """Return VGG-16 with a norm after every convolution (138.4 M parameters). Arguments: see
    VGG.
    """
    return VGG(
        (2, 2, 3, 3, 3),
        norm=norm,
        fc_width=fc_width,
        in_channels=in_channels,
        num_classes=num_classes,
        freeze_at=freeze_at,
        weights=weights,
    )


def vgg19_bn(
    *,
    norm: NormKind = "batch",
    fc_width: int = 4096,
    in_channels: int = 3,
    num_classes: int | None = None,
    freeze_at: int = 0,
    weights: str | Path | None = None,
) -> VGG:
    """Return VGG-19 with a norm after every convolution (143.7 M parameters). Arguments: see
    VGG.
    """
    return VGG(
        (2, 2, 4, 4, 4),
        norm=norm,
        fc_width=fc_width,
        in_channels=in_channels,
        num_classes=num_classes,
        freeze_at=freeze_at,
        weights=weights,
    )

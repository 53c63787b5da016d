"""What published weights are: where they lie, what input they expect, what they are known to
score.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

_EARLIER_NAMES = {"resize": "short_side", "crop": "crop_side"}
"""Of fields of an InputSpec, in files written before they had these names."""


@dataclass(frozen=True)
class InputSpec:
    """The images a network was trained on; it travels with the network as `net.input_spec`.

    channel_order: of the tensor the network sees. mean, std: on the 0..255 scale, in that order.
    short_side, crop_side: px of the short side and of the centre square of the usual test image.
    mean_image: (3, crop_side, crop_side) float32, the mean of every pixel over the training set
    (the paper subtracts it), used instead of `mean` for images of its size; None: there is none.
    """

    channel_order: Literal["rgb", "bgr"] = "rgb"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    short_side: int = 256
    crop_side: int = 224
    mean_image: Tensor | None = field(default=None, compare=False, repr=False)

    def normalize(self, images: Tensor) -> Tensor:
        """Return RGB images (N, 3, H, W), uint8 or float on the 0..255 scale, as the float32 the
        network expects.

        Raises ValueError for another shape.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"expected RGB images (N, 3, H, W), got {tuple(images.shape)}")
        mean, std = (
            torch.tensor(values, device=images.device).view(3, 1, 1)
            for values in (self.mean, self.std)
        )
        mean_image = None if self.mean_image is None else self.mean_image.to(images.device)
        return normalize_pixels(images, self.channel_order, mean, std, mean_image)

    def to_json(self) -> str:
        """Return the fields as a JSON object, without the mean image."""
        return json.dumps(
            {name: value for name, value in vars(self).items() if name != "mean_image"}
        )

    @classmethod
    def from_json(cls, text: str) -> InputSpec:
        """Rebuild from `to_json`; raises ValueError for anything else."""
        fields = json.loads(text)
        wrong = ValueError(f"not an input specification: {text}")
        if not isinstance(fields, dict):
            raise wrong
        names = sorted(_EARLIER_NAMES.get(name, name) for name in fields)
        if names != ["channel_order", "crop_side", "mean", "short_side", "std"]:
            raise wrong
        fields = {_EARLIER_NAMES.get(name, name): value for name, value in fields.items()}
        for triple in (fields["mean"], fields["std"]):
            if not isinstance(triple, list) or len(triple) != 3 or not all(map(_is_number, triple)):
                raise wrong
        sides = (fields["short_side"], fields["crop_side"])
        if not all(type(side) is int and side > 0 for side in sides):
            raise wrong
        if min(fields["std"]) <= 0 or fields["channel_order"] not in ("rgb", "bgr"):
            raise wrong
        mean, std = (tuple(map(float, fields[name])) for name in ("mean", "std"))
        return cls(**{**fields, "mean": mean, "std": std})


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def normalize_pixels(
    images: Tensor,
    channel_order: Literal["rgb", "bgr"],
    mean: Tensor,
    std: Tensor,
    mean_image: Tensor | None,
) -> Tensor:
    """Return RGB images (N, 3, H, W), on the 0..255 scale, as float32 (x - mean) / std in
    `channel_order`, in a new tensor of the same memory format.

    mean, std: (3, 1, 1). mean_image: (3, H', W'), which takes the place of `mean` for images of
    exactly its size.
    """
    ordered = images.flip(1) if channel_order == "bgr" else images
    if mean_image is not None and mean_image.shape == images.shape[1:]:
        mean = mean_image
    return ordered.to(torch.float32, copy=True).sub_(mean).div_(std)


IMAGENET = InputSpec()
"""torchvision, timm's tv_in1k files and fb.resnet.torch."""

CIFAR = InputSpec(short_side=32, crop_side=32)
"""The widely used CIFAR port: the same means and deviations on 32 px images."""

CAFFE = InputSpec(channel_order="bgr", mean=(103.53, 116.28, 123.675), std=(1.0, 1.0, 1.0))
"""The authors' own networks, and detectron2's conversions of them: the deviation is inside conv1.
"""

CAFFE_VGG = InputSpec(channel_order="bgr", mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0))
"""The authors' VGG-16 and VGG-19."""

DETECTRON = InputSpec(channel_order="bgr", mean=(102.9801, 115.9465, 122.7717), std=(1.0, 1.0, 1.0))
"""The mean py-faster-rcnn and Detectron subtract for the same networks."""

_BASE_URL = "https://download.pytorch.org/models/"
_BSD = (
    "BSD 3-Clause (torchvision); trained on ImageNet, whose images are for non-commercial research"
)


@dataclass(frozen=True)
class PublishedWeights:
    """One published ImageNet file; its name carries the first 8 hex digits of its sha256.

    traits: what the tensors do not show and the network must agree on. top1_error, top5_error:
    percent, one centre crop, as published; None where the file has no classifier.
    """

    architecture: str
    file: str
    top1_error: float | None
    top5_error: float | None
    input_spec: InputSpec = IMAGENET
    traits: tuple[tuple[str, str], ...] = (("stride_placement", "torchvision"), ("pool1", "torch"))
    licence: str = _BSD

    @property
    def url(self) -> str:
        """Where the file is published."""
        return _BASE_URL + self.file

    @property
    def sha256_prefix(self) -> str:
        """The first hex digits of the file's sha256, which its name carries."""
        return self.file.removesuffix(".pth").rsplit("-", 1)[1]


_V2 = InputSpec(short_side=232)
_VGG_FEATURES = InputSpec(mean=(123.0, 117.0, 104.0), std=(1.0, 1.0, 1.0))

PUBLISHED = {
    "torchvision/resnet18.v1": PublishedWeights(
        "resnet18", "resnet18-f37072fd.pth", 30.242, 10.922
    ),
    "torchvision/resnet34.v1": PublishedWeights("resnet34", "resnet34-b627a593.pth", 26.686, 8.580),
    "torchvision/resnet50.v1": PublishedWeights("resnet50", "resnet50-0676ba61.pth", 23.870, 7.138),
    "torchvision/resnet50.v2": PublishedWeights(
        "resnet50", "resnet50-11ad3fa6.pth", 19.142, 4.566, _V2
    ),
    "torchvision/resnet101.v1": PublishedWeights(
        "resnet101", "resnet101-63fe2227.pth", 22.626, 6.454
    ),
    "torchvision/resnet101.v2": PublishedWeights(
        "resnet101", "resnet101-cd907fc2.pth", 18.114, 4.220, _V2
    ),
    "torchvision/resnet152.v1": PublishedWeights(
        "resnet152", "resnet152-394f9c45.pth", 21.688, 5.954
    ),
    "torchvision/resnet152.v2": PublishedWeights(
        "resnet152", "resnet152-f82ba261.pth", 17.716, 3.998, _V2
    ),
    "torchvision/vgg16.v1": PublishedWeights(
        "vgg16", "vgg16-397923af.pth", 28.408, 9.618, traits=()
    ),
    "torchvision/vgg16.features": PublishedWeights(
        "vgg16", "vgg16_features-amdegroot-88682ab5.pth", None, None, _VGG_FEATURES, ()
    ),
    "torchvision/vgg16_bn.v1": PublishedWeights(
        "vgg16_bn", "vgg16_bn-6c64b313.pth", 26.640, 8.484, traits=()
    ),
    "torchvision/vgg19.v1": PublishedWeights(
        "vgg19", "vgg19-dcbb9e9d.pth", 27.624, 9.124, traits=()
    ),
    "torchvision/vgg19_bn.v1": PublishedWeights(
        "vgg19_bn", "vgg19_bn-c79401a0.pth", 25.782, 8.158, traits=()
    ),
}
"""By name. v1 is the recipe nearest to the paper's, v2 a newer, longer one; vgg16.features has no
usable fc6, fc7, fc8.
"""

PUBLISHED |= {
    f"timm/resnet{depth}.{tag}_in1k": PUBLISHED[f"torchvision/resnet{depth}.{version}"]
    for tag, version, depths in (
        ("tv", "v1", (18, 34, 50, 101, 152)),
        ("tv2", "v2", (50, 101, 152)),
    )
    for depth in depths
}
"""timm's names for the same files."""

_EARLIER_FILES = {
    "resnet18-5c106cde.pth": "torchvision/resnet18.v1",
    "resnet34-333f7ec4.pth": "torchvision/resnet34.v1",
    "resnet50-19c8e357.pth": "torchvision/resnet50.v1",
    "resnet101-5d3b4d8f.pth": "torchvision/resnet101.v1",
    "resnet152-b121ed2d.pth": "torchvision/resnet152.v1",
}
"""How torchvision published its v1 weights before version 0.9 -> their name now."""


def _known_files() -> list[PublishedWeights]:
    earlier = (replace(PUBLISHED[name], file=file) for file, name in _EARLIER_FILES.items())
    return [*PUBLISHED.values(), *earlier]


def known_file(digest: str) -> PublishedWeights | None:
    """Return the published file whose sha256 is `digest`, whatever it is called."""
    return next((entry for entry in _known_files() if digest.startswith(entry.sha256_prefix)), None)


def file_named(name: str) -> PublishedWeights | None:
    """Return the published file called `name`, which carries its checksum."""
    return next((entry for entry in _known_files() if entry.file == name), None)


def known_by_name(path: Path) -> tuple[dict[str, str], InputSpec] | None:
    """Return traits and input of a ResNet's or VGG's file by the convention of its name, or of a
    folder that timm's files lie in, None where there is none.

    The authors' own networks, which "caffe" or "msra" marks, have the stride of a bottleneck in the
    1x1; all of timm's (resnet50.a1_in1k) and mmpretrain's own (resnet50_8xb32_in1k) in the 3x3.
    """
    if re.search(r"caffe|msra", path.name, re.IGNORECASE):
        return {"stride_placement": "original"}, CAFFE
    folders = " ".join(part.name for part in list(path.parents)[:3])
    if _IN_THE_3X3.search(path.name) or _OF_TIMM.search(folders):
        return {"stride_placement": "torchvision"}, IMAGENET
    return None


_OF_TIMM = re.compile(r"(?<![a-z])resnet\d+\.(\w+_)?in\d+k")
_IN_THE_3X3 = re.compile(
    rf"{_OF_TIMM.pattern}|(?<![a-z])resnet\d+_(\w+_in\d+k|(8xb|b|batch)\d+(x\d+)?_(in1k|imagenet))"
)


OPEN_NSFW = InputSpec(channel_order="bgr", mean=(104.0, 117.0, 123.0), std=(1.0, 1.0, 1.0))
"""Yahoo's half-width ResNet-50, a Caffe model."""

_CONV1 = {
    "2ec1e7459f47d35dbcd8650856adcf801f05c42cd732d2624109c193a1f5f5c3": (
        {"stride_placement": "original", "pool1": "caffe"},
        OPEN_NSFW,
    ),
}
"""sha256 of the float32 values of conv1 -> traits and input, of networks that are passed on in many
conversions, whose files neither name nor describe them.
"""


def known_by_conv1(weight: Tensor) -> tuple[dict[str, str], InputSpec] | None:
    """Return traits and input of the network whose first convolution is `weight`, (64, 3, 7, 7)
    float32, None where it is none of those that are known by it.
    """
    if weight.shape != (64, 3, 7, 7):
        return None
    return _CONV1.get(hashlib.sha256(weight.contiguous().numpy().tobytes()).hexdigest())


PAPER_ERRORS = {
    "plain18": "27.94 top-1, 10 crops",
    "plain34": "28.54 / 10.02, 10 crops",
    "resnet18 A": "27.88 top-1, 10 crops",
    "resnet34": "24.52 / 7.46, 10 crops",
    "resnet34 A": "25.03 / 7.76, 10 crops",
    "resnet34 C": "24.19 / 7.40, 10 crops",
    "resnet50 original": "22.85 / 6.71, 10 crops",
    "resnet101 original": "21.75 / 6.05, 10 crops",
    "resnet152 original": "21.43 / 5.71, 10 crops",
    "vgg16": "28.07 / 9.33, 10 crops",
    "resnet20": "8.75 CIFAR-10",
    "resnet32": "7.51 CIFAR-10",
    "resnet44": "7.17 CIFAR-10",
    "resnet56": "6.97 CIFAR-10",
    "resnet110": "6.43 CIFAR-10, best of 5",
    "resnet1202": "7.93 CIFAR-10",
}
"""Errors the paper reports, percent: tables 2, 3 (ImageNet validation, top-1 / top-5) and 6
(CIFAR-10 test).
"""

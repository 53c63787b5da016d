"""From the names other projects give a network's tensors to ours, which are torchvision's.

Every reader takes a mapping of foreign names, and returns None when it does not know them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from backbones.catalogue import CAFFE, CAFFE_VGG, DETECTRON, IMAGENET, InputSpec

NORM_EPS = 1e-5


@dataclass(frozen=True)
class Named:
    """Tensors under our names, and what the naming tells of the network they were trained in.

    naming: whose names they had. traits: what the network must agree on. input_spec: None where the
    names do not tell.
    """

    naming: str
    tensors: dict[str, Tensor]
    traits: dict[str, str] = field(default_factory=dict)
    input_spec: InputSpec | None = None


def to_own_names(tensors: Mapping[str, Tensor], author: str | None = None) -> Named:
    """Return `tensors` under our names; names that nobody's reader knows stay as they are.

    author: what detectron2's own files state beside the tensors. The bias of a convolution that a
    norm follows (MSRA's conv1) goes into that norm's mean, which gives the same outputs.
    """
    bare = dict(tensors)
    named = (
        _caffe_resnet(bare)
        or _caffe_vgg(bare)
        or _detectron(bare)
        or _detectron2(bare, author)
        or _cifar_port(bare)
        or _timm_vgg(bare)
        or _transformers(bare)
        or Named("torchvision", bare)
    )
    return Named(named.naming, _without_conv_biases(named.tensors), named.traits, named.input_spec)


def _caffe_resnet(tensors: dict[str, Tensor]) -> Named | None:
    """The authors' ResNet-50, 101 and 152: layers res4b11_branch2a, a norm as BatchNorm (sums and
    what to divide them by) and Scale, stride in the 1x1, the max pooling without padding.
    """
    if "res2a_branch2a.0" not in tensors:
        return None
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        layer, _, blob = name.rpartition(".")
        match = re.fullmatch(
            r"(res|bn|scale)(\d)([a-z])(\d*)_branch(1|2[a-c])|(|bn_|scale_)(conv1)", layer
        )
        if layer == "fc1000":
            found[f"fc.{_of_blob(blob)}"] = _matrix(tensor) if blob == "0" else tensor.flatten()
        elif match is None:
            found[name] = tensor
        else:
            kind = (match[1] or match[6]).strip("_") or "res"
            own = "conv1" if match[7] else _caffe_block(*match.group(2, 3, 4, 5))
            norm = own.replace("conv", "bn").replace("downsample.0", "downsample.1")
            if kind == "bn" and blob in ("0", "1"):
                total = tensors.get(f"{layer}.2", tensor.new_ones(1)).flatten()[:1].sum()
                statistic = tensor.flatten() / total if total else torch.zeros_like(tensor)
                found[f"{norm}.running_{('mean', 'var')[int(blob)]}"] = statistic.flatten()
            elif kind == "scale":
                found[f"{norm}.{_of_blob(blob)}"] = tensor.flatten()
            elif kind == "res":
                found[f"{own}.{_of_blob(blob)}"] = tensor if blob == "0" else tensor.flatten()
    return Named("Caffe", found, {"stride_placement": "original", "pool1": "caffe"}, CAFFE)


def _of_blob(number: str) -> str:
    """What the blob of a layer is called; one beyond weight and bias, which no layer of ours has,
    by its number.
    """
    return {"0": "weight", "1": "bias"}.get(number, number)


def _caffe_block(stage: str, letter: str, number: str, branch: str) -> str:
    """Our name of a convolution: blocks are a, b, c, ... or, in long stages, a, b1, b2, ...."""
    block = f"layer{int(stage) - 1}.{int(number) if number else ord(letter) - ord('a')}"
    return f"{block}.downsample.0" if branch == "1" else f"{block}.conv{' abc'.index(branch[1])}"


def _caffe_vgg(tensors: dict[str, Tensor]) -> Named | None:
    """The authors' VGG-16 and VGG-19: conv1_1 ... conv5_3, fc6, fc7, fc8."""
    if "conv1_1.0" not in tensors or "conv5_1.0" not in tensors:
        return None
    found, place, stage = {}, 0, "1"
    convolutions = sorted(
        {match[0] for name in tensors if (match := re.match(r"conv[1-5]_[1-9](?=\.)", name))}
    )
    for layer in convolutions:
        place += layer[4] != stage  # the pooling between stages
        stage = layer[4]
        found[f"features.{place}.weight"] = tensors[f"{layer}.0"]
        if f"{layer}.1" in tensors:
            found[f"features.{place}.bias"] = tensors[f"{layer}.1"].flatten()
        place += 2
    for layer, own in (("fc6", 0), ("fc7", 3), ("fc8", 6)):
        if f"{layer}.0" in tensors:
            found[f"classifier.{own}.weight"] = _matrix(tensors[f"{layer}.0"])
        if f"{layer}.1" in tensors:
            found[f"classifier.{own}.bias"] = tensors[f"{layer}.1"].flatten()
    known = re.compile(r"(conv[1-5]_[1-9]|fc[678])\.[01]")
    found |= {name: tensor for name, tensor in tensors.items() if not known.fullmatch(name)}
    return Named("Caffe", found, {}, CAFFE_VGG)


def _matrix(tensor: Tensor) -> Tensor:
    """The weights of a linear layer (outputs, inputs), which were (1, 1, outputs, inputs), or those
    of the convolution it was made, (outputs, channels, height, width).
    """
    if tensor.dim() == 4 and tensor.shape[:2] == (1, 1):
        return tensor[0, 0]
    return tensor.flatten(1) if tensor.dim() > 2 else tensor


def _detectron(tensors: dict[str, Tensor]) -> Named | None:
    """Detectron's R-50.pkl and R-101.pkl: Caffe names, a norm as scale s and shift b, stride in the
    1x1.
    """
    if "res_conv1_bn_s" not in tensors:
        return None
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        own = _detectron_name(name)
        found[own] = tensor
        if own.endswith(".weight") and name.endswith("_bn_s"):
            norm = own.removesuffix(".weight")
            found[f"{norm}.running_mean"] = torch.zeros_like(tensor)
            # so that the scale is exactly s
            found[f"{norm}.running_var"] = torch.full_like(tensor, 1 - NORM_EPS)
    return Named("Detectron", found, {"stride_placement": "original"}, DETECTRON)


def _detectron_name(name: str) -> str:
    if match := re.fullmatch(r"res_conv1_bn_([sb])", name):
        return f"bn1.{_AFFINE[match[1]]}"
    if match := re.fullmatch(r"(conv1|fc1000)_([wb])", name):
        return f"{match[1].replace('fc1000', 'fc')}.{_LAYER[match[2]]}"
    if match := re.fullmatch(r"res(\d)_(\d+)_branch(1|2[abc])(_bn)?_([swb])", name):
        stage, index, branch, norm, kind = match.groups()
        block = f"layer{int(stage) - 1}.{index}"
        number = "abc".find(branch[1:]) + 1
        layer = (
            f"downsample.{1 if norm else 0}"
            if branch == "1"
            else f"{'bn' if norm else 'conv'}{number}"
        )
        return f"{block}.{layer}.{(_AFFINE if norm else _LAYER)[kind]}"
    return name


_AFFINE = {"s": "weight", "b": "bias", "w": "weight"}
_LAYER = {"w": "weight", "b": "bias", "s": "weight"}


def _detectron2(tensors: dict[str, Tensor], author: str | None) -> Named | None:
    """detectron2's names: stem, res2..res5, a norm inside its convolution.

    Its files are MSRA's networks (BGR, stride in the 1x1), but for those its converter marks as
    torchvision's.
    """
    if "stem.conv1.weight" not in tensors:
        return None
    found = {}
    for name, tensor in tensors.items():
        own = re.sub(r"^(stem|linear)\.", lambda match: "fc." if match[1] == "linear" else "", name)
        own = re.sub(r"^res(\d)\.", lambda match: f"layer{int(match[1]) - 1}.", own)
        own = re.sub(r"\bconv(\d)\.norm\.", r"bn\1.", own)
        own = own.replace("shortcut.norm.", "downsample.1.").replace(
            "shortcut.weight", "downsample.0.weight"
        )
        found[own] = tensor
    if author == "torchvision":
        return Named("detectron2", found, {"stride_placement": "torchvision"}, IMAGENET)
    return Named("detectron2", found, {"stride_placement": "original"}, CAFFE)


def _cifar_port(tensors: dict[str, Tensor]) -> Named | None:
    """The widely used CIFAR port: `linear` for fc, `shortcut` for a projection, shortcut A with
    zeros on both sides.
    """
    if "linear.weight" not in tensors or "layer3.0.conv1.weight" not in tensors:
        return None
    found = {
        re.sub(r"^linear\.", "fc.", name).replace(".shortcut.", ".downsample."): tensor
        for name, tensor in tensors.items()
    }
    projected = any(".downsample." in name for name in found)
    return Named(
        "CIFAR port", found, {} if projected else {"shortcut": "A", "shortcut_padding": "both"}
    )


def _timm_vgg(tensors: dict[str, Tensor]) -> Named | None:
    """timm's VGG: fc6 and fc7 as convolutions called pre_logits, fc8 as head.fc."""
    if "pre_logits.fc1.weight" not in tensors:
        return None
    found = {}
    for name, tensor in tensors.items():
        own = (
            name.replace("pre_logits.fc1.", "classifier.0.")
            .replace("pre_logits.fc2.", "classifier.3.")
            .replace("head.fc.", "classifier.6.")
        )
        found[own] = (
            tensor.flatten(1) if own.startswith("classifier.") and tensor.dim() == 4 else tensor
        )
    return Named("timm", found)


def _transformers(tensors: dict[str, Tensor]) -> Named | None:
    """transformers' ResNet: stages and layers from 0, stride in the 3x3."""
    if "embedder.embedder.convolution.weight" not in tensors:
        return None
    found = {}
    for name, tensor in tensors.items():
        own = re.sub(
            r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.",
            lambda match: f"layer{int(match[1]) + 1}.{match[2]}.",
            name,
        )
        own = re.sub(r"\.shortcut\.(convolution|normalization)\.", _downsample, own)
        own = re.sub(r"\.layer\.(\d)\.(convolution|normalization)\.", _numbered, own)
        own = own.replace("embedder.embedder.convolution.", "conv1.")
        own = own.replace("embedder.embedder.normalization.", "bn1.")
        found[own] = tensor
    return Named("transformers", found, {"stride_placement": "torchvision"}, IMAGENET)


def _downsample(match: re.Match) -> str:
    return f".downsample.{0 if match[1] == 'convolution' else 1}."


def _numbered(match: re.Match) -> str:
    return f".{'conv' if match[2] == 'convolution' else 'bn'}{int(match[1]) + 1}."


def _without_conv_biases(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the bias of every convolution that a batch norm follows into that norm's mean: conv +
    bias - mean = conv - (mean - bias).
    """
    found = dict(tensors)
    for name in tensors:
        match = re.fullmatch(r"(|.*\.)(conv(\d)|downsample\.0)\.bias", name)
        norm = match and match[1] + (f"bn{match[3]}" if match[3] else "downsample.1")
        mean = found.get(f"{norm}.running_mean") if norm else None
        if mean is not None and mean.shape == found[name].shape:
            found[f"{norm}.running_mean"] = mean - found.pop(name)
    return found

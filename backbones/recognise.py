"""Which network of this package a state dict is of, told by its names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Looks:
    """What a state dict looks like.

    words: "resnet34 with shortcut C". settings: the arguments of `create_backbone` that make it,
    the residual one where a plain net has the same tensors; empty where this package makes none.
    """

    words: str
    settings: dict[str, str | float] = field(default_factory=dict)


_DEPTHS = {
    ((2, 2, 2, 2), 2): "18",
    ((3, 4, 6, 3), 2): "34",
    ((3, 4, 6, 3), 3): "50",
    ((3, 4, 23, 3), 3): "101",
    ((3, 8, 36, 3), 3): "152",
}
"""(blocks of conv2_x..conv5_x, convolutions of a block) -> layers (paper, table 1)."""

_VGG_CONVOLUTIONS = {13: "vgg16", 16: "vgg19"}


def recognise(tensors: Mapping[str, Tensor]) -> Looks | None:
    """Return the network whose tensors, of any shape (...,), these are, or None."""
    if any(name.startswith("features.") and t.dim() == 4 for name, t in tensors.items()):
        return _vgg(tensors)
    blocks = {
        match.group(1, 2) for name in tensors if (match := re.match(r"layer([1-4])\.(\d+)\.", name))
    }
    depths = tuple(sum(layer == str(number) for layer, _ in blocks) for number in range(1, 5))
    if not blocks or "conv1.weight" not in tensors:
        return None
    return _of_cifar(tensors, depths) if depths[3] == 0 else _residual(tensors, depths)


def _vgg(tensors: Mapping[str, Tensor]) -> Looks | None:
    features = [name for name in tensors if name.startswith("features.")]
    name = _VGG_CONVOLUTIONS.get(sum(tensors[name].dim() == 4 for name in features))
    if name is None:
        return None
    name += "_bn" if any(key.endswith("running_mean") for key in features) else ""
    return Looks(name, {"name": name})


def _of_cifar(tensors: Mapping[str, Tensor], depths: tuple[int, ...]) -> Looks | None:
    if tensors["conv1.weight"].shape[2:] != (3, 3) or len(set(depths[:3])) > 1:
        return None
    name, projections = f"resnet{6 * depths[0] + 2}", _projections(tensors)
    if tensors["conv1.weight"].shape[0] != 16:
        width = tensors["conv1.weight"].shape[0]
        return Looks(f"{name} with {width} channels in conv1, where the paper's have 16")
    if not projections:
        return Looks(f"{name} or {name.replace('resnet', 'plain')}", {"name": name})
    shortcut = "C" if projections > 2 else "B"
    return Looks(f"{name} with shortcut {shortcut}", {"name": name, "shortcut": shortcut})


def _residual(tensors: Mapping[str, Tensor], depths: tuple[int, ...]) -> Looks | None:
    in_block = sum(f"layer1.0.conv{number}.weight" in tensors for number in (1, 2, 3))
    number = _DEPTHS.get((depths, in_block))
    if number is None:
        if in_block not in (2, 3) or 0 in depths:
            return None
        return Looks(
            f"a residual network of {', '.join(map(str, depths))} blocks of {in_block} "
            "convolutions, which is none of the paper's"
        )
    name, projections = f"resnet{number}", _projections(tensors)
    groups, width = _groups_and_width(tensors, in_block)
    if groups != 1:
        return Looks(
            f"{name} with its convolutions in {groups} groups (ResNeXt), which is none of the "
            "paper's"
        )
    if width is None:
        inner = len(tensors["layer1.0.conv1.weight"])
        return Looks(
            f"{name} of {inner / 64:g} times the width ({inner} channels where it has 64) inside "
            "its blocks alone, which is none of the paper's"
        )
    settings: dict[str, str | float] = {"name": name}
    words = [name]
    if width != 1:
        settings["width"] = width
        words.append(f"of {width:g} times the width")
    if projections == 0:
        plain = f", or plain{number}" if in_block == 2 else ""
        return Looks(f"{' '.join(words)} with shortcut A{plain}", {**settings, "shortcut": "A"})
    if projections > (4 if in_block == 3 or width != 1 else 3):
        return Looks(f"{' '.join(words)} with shortcut C", {**settings, "shortcut": "C"})
    return Looks(" ".join(words), settings)


def _groups_and_width(tensors: Mapping[str, Tensor], in_block: int) -> tuple[int, float | None]:
    """Groups of the 3x3 convolutions of the first block, and what its channels are multiplied by;
    None: not all by the same.
    """
    first, second, last = (
        tensors[f"layer1.0.conv{number}.weight"].shape for number in (1, 2, in_block)
    )
    if len(first) != 4 or len(second) != 4 or not second[1]:
        return 1, 1.0
    if first[0] != second[1] and first[0] % second[1] == 0:
        return first[0] // second[1], None
    width = first[0] / 64
    return 1, width if last[0] == first[0] * (4 if in_block == 3 else 1) else None


def _projections(tensors: Mapping[str, Tensor]) -> int:
    return sum(name.endswith("downsample.0.weight") for name in tensors)

"""Counts of a network and its layer table, as in Table 1 of He et al. 2016."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from backbones.backbone import Backbone, require_images
from backbones.norm import FrozenBatchNorm2d
from backbones.resnet import BasicBlock, Bottleneck


@dataclass(frozen=True)
class StageCount:
    """One row of the layer table.

    layers: in the paper's words; blocks whose stride or channels change are not told apart. size:
    (H, W) cells of the output. parameters: numbers that learn, norms included. multiply_adds: of
    convolutions and linear layers, for one image.
    """

    stage: str
    layers: str
    size: tuple[int, int]
    parameters: int
    multiply_adds: int


def count(net: Backbone, size: int | None = None) -> list[StageCount]:
    """Return a row for each stage and one for the head, for square images of `size` px (default:
    the network's own).

    Nothing is computed: a copy without values runs. Raises what `feature_maps` raises for a size
    below the stride.
    """
    size = net.input_spec.crop_side if size is None else size
    empty = _without_norms(copy.deepcopy(net).to("meta").eval())
    x = torch.empty((1, net.in_channels, size, size), device="meta")
    require_images(x, net.in_channels, net.last_stage, net.strides[net.last_stage])
    rows = []
    for stage in net.channels:
        x, multiply_adds = _run(lambda x, stage=stage: empty.run_stage(stage, x), x)
        modules = net.stage_modules(stage)
        rows.append(
            StageCount(
                stage,
                _layers_of_stage(net, stage),
                tuple(x.shape[2:]),
                sum(map(_parameters, modules)),
                multiply_adds,
            )
        )
    _, multiply_adds = _run(empty.forward_head, x)
    left = _parameters(net) - sum(row.parameters for row in rows)
    rows.append(StageCount("head", _head(net), (1, 1), left, multiply_adds))
    return rows


def totals(rows: list[StageCount]) -> tuple[int, int]:
    """Return the sums of parameters and multiply-adds."""
    return sum(row.parameters for row in rows), sum(row.multiply_adds for row in rows)


def table(rows: list[StageCount]) -> str:
    """Return the layer table as text."""
    lines = [("stage", "output", "layers", "parameters", "multiply-adds")]
    lines += [
        (
            row.stage,
            f"{row.size[0]}x{row.size[1]}",
            row.layers,
            f"{row.parameters:,}",
            f"{row.multiply_adds:,}",
        )
        for row in rows
    ]
    parameters, multiply_adds = totals(rows)
    lines.append(("total", "", "", f"{parameters:,}", f"{multiply_adds:,}"))
    return aligned(lines, right=(3, 4))


def aligned(lines: list[tuple[str, ...]], right: tuple[int, ...] = ()) -> str:
    """Return rows of cells as text in columns, those of `right` flush right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = [
        [
            cell.rjust(width) if n in right else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in cells)


def _run(step: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, int]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        x = step(x)
    return x, counter.get_total_flops() // 2  # a multiply and an add


def _without_norms(net: Backbone) -> Backbone:
    """`net` without what neither changes a shape nor counts, and takes most of the time on the
    meta device.
    """
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (FrozenBatchNorm2d, _BatchNorm, nn.GroupNorm)):
                setattr(parent, name, nn.Identity())
    return net


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _layers_of_stage(net: Backbone, stage: str) -> str:
    """The convolutions of a stage block by block, equal neighbours counted."""
    modules = net.stage_modules(stage)
    blocks = [
        block
        for module in modules
        for block in module.modules()
        if isinstance(block, (BasicBlock, Bottleneck))
    ]
    words = [_block(block) for block in blocks] or [
        _conv(module) for module in modules if isinstance(module, nn.Conv2d)
    ]
    counted = [(kind, len(list(group))) for kind, group in groupby(words)]
    pooling = (
        "3x3 max pool, stride 2; "
        if blocks and net.strides[stage] == 4 and stage == "conv2"
        else ""
    )
    return pooling + "; ".join(
        f"[{kind}] x {number}" if blocks or number > 1 else kind for kind, number in counted
    )


def _block(block: nn.Module) -> str:
    return ", ".join(
        _conv(child) for name, child in block.named_children() if name.startswith("conv")
    )


def _conv(conv: nn.Conv2d) -> str:
    side = conv.kernel_size[0]
    return f"{side}x{side}, {conv.out_channels}" + (", stride 2" if side == 7 else "")


def _head(net: Backbone) -> str:
    layers = [
        layer
        for name, layer in net.named_modules()
        if isinstance(layer, nn.Linear) and f"{name}.".startswith(net.head_prefix)
    ]
    pooling = "max pool" if len(layers) > 1 else "average pool"
    return ", ".join([pooling, *(f"{layer.out_features}-d fc" for layer in layers)])

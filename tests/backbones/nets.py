"""What the backbone tests share: random batch norm state, torchvision's networks, convolution and
norm written out, and what convolutions in tiles are held to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from backbones import FrozenBatchNorm2d
from backbones.onednn import has_onednn


def randomise_norms(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm its own statistics and affine terms, near 1 so that activations neither
    die nor explode.
    """
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            ranges = (
                (norm.weight, 0.5, 1.0),
                (norm.bias, -0.3, 0.3),
                (norm.running_mean, -0.3, 0.3),
                (norm.running_var, 0.5, 2.0),
            )
            for tensor, low, high in ranges:
                tensor.data.copy_(
                    torch.rand(tensor.shape, generator=generator) * (high - low) + low
                )
    return module


def torchvision_net(name: str, num_classes: int = 1000) -> nn.Module:
    """Return torchvision's own network with random batch norm state, in eval mode."""
    return randomise_norms(
        getattr(torchvision.models, name)(weights=None, num_classes=num_classes)
    ).eval()


def batch_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """The formula of batch norm with fixed statistics, over (N, C, H, W)."""
    mean, var, weight, bias = (
        t.view(1, -1, 1, 1) for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)
    )
    return (x - mean) / torch.sqrt(var + norm.eps) * weight + bias


def naive_maps(
    net: nn.Module,
    x: Tensor,
    *,
    shortcut: str = "B",
    stride_in_1x1: bool = False,
    zeros_before: float = 0.0,
) -> dict[str, Tensor]:
    """Any residual or plain network of the package, written as functions of its state dict in the
    order of the paper's figure 5.

    zeros_before: the share of shortcut A's zero channels that goes before the real ones.
    """
    state = net.state_dict()

    def conv_bn(x: Tensor, conv: str, norm: str, stride: int) -> Tensor:
        weight = state[f"{conv}.weight"]
        return batch_norm(
            F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2),
            net.get_submodule(norm),
        )

    is_imagenet = state["conv1.weight"].shape[-1] == 7
    x = conv_bn(x, "conv1", "bn1", 2 if is_imagenet else 1).relu()
    found = {"conv1": x}
    x = F.max_pool2d(x, 3, 2, 1) if is_imagenet else x
    blocks = sorted(
        {
            tuple(map(int, match.groups()))
            for name in state
            if (match := re.match(r"layer(\d)\.(\d+)\.", name))
        }
    )
    for number, index in blocks:
        name, stride = f"layer{number}.{index}", 2 if number > 1 and index == 0 else 1
        convolutions = [n for n in (1, 2, 3) if f"{name}.conv{n}.weight" in state]
        strided = 2 if len(convolutions) == 3 and not stride_in_1x1 else 1
        y = x
        for n in convolutions:
            y = conv_bn(y, f"{name}.conv{n}", f"{name}.bn{n}", stride if n == strided else 1)
            y = y if n == convolutions[-1] else y.relu()
        if f"{name}.downsample.0.weight" in state:
            x = conv_bn(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
        elif shortcut == "A" and y.shape != x.shape:
            new = y.shape[1] - x.shape[1]
            before = torch.zeros(y.shape[0], round(new * zeros_before), *y.shape[2:], dtype=y.dtype)
            x = torch.cat(
                (
                    before,
                    x[:, :, ::stride, ::stride],
                    before.new_zeros(y.shape[0], new - before.shape[1], *y.shape[2:]),
                ),
                1,
            )
        x = (y if shortcut == "none" else y + x).relu()
        found[f"conv{number + 1}"] = x
    return found


def check_gradients(
    found: Tensor, expected: Tensor, wanted: Sequence[Tensor], *, atol: float
) -> None:
    """Assert that two results give `wanted` the same gradients, from a random one of theirs."""
    down = torch.randn_like(expected)
    for mine, its in zip(
        torch.autograd.grad(found, wanted, down),
        torch.autograd.grad(expected, wanted, down),
        strict=True,
    ):
        torch.testing.assert_close(mine, its, rtol=0, atol=atol)


REGIONS = (100, 512, 7, 7)
"""Of which torch's convolution is slower."""

needs_onednn = pytest.mark.skipif(
    not has_onednn(torch.zeros(1)), reason="without oneDNN convolutions are torch's"
)


def torchs(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias, padding=1)


LOST = {torch.float32: 4e-6, torch.bfloat16: 0.03}
"""Of a number, by rounding; four to ten times what torch's convolutions lose, 1e-6 and 0.003."""


def lost(found: Tensor, exact: Tensor) -> float:
    """The error of numbers by their size, both as the root of their mean square."""
    exact = exact.double()
    return ((found.double() - exact).norm() / exact.norm()).item()

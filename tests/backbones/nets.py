"""What the backbone tests share: random batch norm state, torchvision's networks, convolution and norm written out."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn

from backbones import FrozenBatchNorm2d


def randomise_norms(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm its own statistics and affine terms, near 1 so that activations neither die nor explode."""
    generator = torch.Generator().manual_seed(seed)
    for norm in module.modules():
        if isinstance(norm, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            ranges = ((norm.weight, 0.5, 1.0), (norm.bias, -0.3, 0.3), (norm.running_mean, -0.3, 0.3), (norm.running_var, 0.5, 2.0))
            for tensor, low, high in ranges:
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)
    return module


def torchvision_net(name: str, num_classes: int = 1000) -> nn.Module:
    """Return torchvision's own network with random batch norm state, in eval mode."""
    return randomise_norms(getattr(torchvision.models, name)(weights=None, num_classes=num_classes)).eval()


def batch_norm(x: Tensor, norm: nn.Module) -> Tensor:
    """The formula of batch norm with fixed statistics, over (N, C, H, W)."""
    mean, var, weight, bias = (t.view(1, -1, 1, 1) for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return (x - mean) / torch.sqrt(var + norm.eps) * weight + bias

"""A backbone against torchvision's: as it is built, folded, in channels last, compiled, in
bfloat16.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor, nn

from backbones import create_backbone, fold_batch_norm
from detres.benchmarks.timing import Timing

SIDE = 224
"""Px of the images."""


def benchmark_backbone(timing: Timing, name: str, batch_size: int) -> None:
    """Time network `name` on `batch_size` images, each form against torchvision's as it is
    built.
    """
    ours = create_backbone(name)
    theirs = torchvision.models.get_model(name)
    theirs.load_state_dict(ours.state_dict())
    ours, theirs = ours.to(timing.device), theirs.to(timing.device)
    images = torch.randn((batch_size, 3, SIDE, SIDE), device=timing.device)
    labels = torch.zeros(batch_size, dtype=torch.long, device=timing.device)

    def step(net: nn.Module) -> None:
        nn.functional.cross_entropy(net(images), labels).backward()
        net.zero_grad(set_to_none=True)

    @torch.inference_mode()
    def reference() -> Tensor:
        return theirs(images)

    job = f"{name}, {batch_size} x {SIDE} px"
    timing.row(f"forward + backward, {job}", lambda: step(ours), lambda: step(theirs))
    ours.eval()
    theirs.eval()
    folded = fold_batch_norm(ours).to(memory_format=torch.channels_last)
    last = images.contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        error = (folded(last) - reference()).abs().max() / reference().abs().max()
        timing.row(f"forward, {job}", lambda: ours(images), reference)
        timing.row("  folded, channels last", lambda: folded(last), reference)
        compiled = torch.compile(folded)
        timing.row("  the same, compiled", lambda: compiled(last), reference)
        calls = convolutions_of(folded, last)
        timing.row("  its convolutions alone, the floor", lambda: run_calls(calls), reference)
        half, half_images = folded.bfloat16(), last.bfloat16()
        timing.row("  folded, channels last, bfloat16", lambda: half(half_images), reference)
    said = f"largest difference of the folded logits: {error:.1e} of the largest logit"
    timing.add({"job": "folded logits", "largest_difference": float(error)}, said)


def convolutions_of(net: nn.Module, images: Tensor) -> list[tuple[nn.Module, Tensor]]:
    """Return every convolution of a network with the input it gets for `images` (N, 3, H, W)."""
    calls = []
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, _: calls.append((module, inputs[0].clone()))
        )
        for module in net.modules()
        if isinstance(module, nn.Conv2d)
    ]
    net(images)
    for hook in hooks:
        hook.remove()
    return calls


def run_calls(calls: list[tuple[nn.Module, Tensor]]) -> None:
    """Run modules on their inputs, each (N, C, H, W)."""
    for module, x in calls:
        module(x)

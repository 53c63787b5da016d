"""How strongly the layers of a network respond (paper, figure 7)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from detres.eval_mode import evaluating


def layer_responses(net: nn.Module, batches: Iterable[Tensor]) -> dict[str, float]:
    """Return norm name -> standard deviation of its output over all values of all batches, in
    network order.

    Of the norm behind every 3x3 convolution, before the nonlinearity and the addition. net: with
    children convN and bnN, put in eval mode for the call; batches: what it takes, (N, 3, H, W).

    Raises ValueError when the network has no such pair, or for no batches.
    """
    names = [name for name, module in net.named_modules() if _follows_3x3(net, name, module)]
    if not names:
        raise ValueError("the network has no 3x3 convolution convN with a norm bnN behind it")
    sums = {
        name: torch.zeros(3, dtype=torch.float64) for name in names
    }  # count, sum, sum of squares

    def record(name: str) -> object:
        def hook(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
            values = output.double()
            sums[name] += torch.stack(
                (
                    torch.tensor(values.numel(), dtype=torch.float64),
                    values.sum().cpu(),
                    values.square().sum().cpu(),
                )
            )

        return net.get_submodule(name).register_forward_hook(hook)

    hooks = [record(name) for name in names]
    try:
        with evaluating(net):
            for batch in batches:
                net(batch)
    finally:
        for hook in hooks:
            hook.remove()
    if not all(count for count, _, _ in sums.values()):
        raise ValueError("no images to measure the responses on")
    return {
        name: float((squares / count - (total / count) ** 2).clamp(min=0).sqrt())
        for name, (count, total, squares) in sums.items()
    }


def _follows_3x3(net: nn.Module, name: str, module: nn.Module) -> bool:
    parent, _, own = name.rpartition(".")
    if not own.startswith("bn") or list(module.children()):
        return False
    conv = getattr(net.get_submodule(parent), own.replace("bn", "conv"), None)
    return isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3)

"""Whether somebody waits for a module to be called."""

from __future__ import annotations

from torch import nn


def has_hooks(module: nn.Module) -> bool:
    """Return whether something waits for `module` to be called."""
    return bool(hook_ids(module))


def hook_ids(module: nn.Module) -> tuple[int, ...]:
    """Return what torch numbers the hooks by that are called with `module`, forward or backward;
    no two are alike.
    """
    return (
        *module._forward_hooks,
        *module._forward_pre_hooks,
        *module._backward_hooks,
        *module._backward_pre_hooks,
    )

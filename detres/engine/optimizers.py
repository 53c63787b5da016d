"""Optimizers over the parameters that learn, grouped as the paper's solver has them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def sgd(
    model: nn.Module,
    *,
    momentum: float,
    weight_decay: float,
    norm_weight_decay: float = 0.0,
    bias_lr_scale: float = 2.0,
) -> torch.optim.SGD:
    """Return SGD over the parameters that learn; `set_rate` sets its rate.

    weight_decay: of weights and of biases alike; bias_lr_scale: how much faster the biases of
    layers learn. Both as in py-faster-rcnn's prototxt (lr_mult 2 on biases, one decay for all).
    norm_weight_decay: of the affine terms of batch and group norm, which the paper's detector keeps
    fixed and py-faster-rcnn does not have; they learn at the plain rate.

    Raises ValueError when nothing learns.
    """
    weights, biases, norms = _learning(model)
    groups = [
        {"params": weights, "weight_decay": weight_decay, "lr_scale": 1.0},
        {"params": biases, "weight_decay": weight_decay, "lr_scale": bias_lr_scale},
        {"params": norms, "weight_decay": norm_weight_decay, "lr_scale": 1.0},
    ]
    filled = [group for group in groups if group["params"]]
    return torch.optim.SGD(filled, lr=0.0, momentum=momentum, fused=True)


def adamw(model: nn.Module, *, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW (betas 0.9, 0.99) over the parameters that learn; only the weights of layers
    decay.

    Not the paper's: for short runs from random weights, where it learns several times as fast as
    SGD. `set_rate` sets its rate. Raises ValueError when nothing learns.
    """
    weights, biases, norms = _learning(model)
    groups = [
        {"params": weights, "weight_decay": weight_decay},
        {"params": biases + norms, "weight_decay": 0.0},
    ]
    filled = [group for group in groups if group["params"]]
    return torch.optim.AdamW(filled, lr=0.0, betas=(0.9, 0.99), fused=True)


_MOMENTS = {
    torch.optim.SGD: frozenset({"momentum_buffer"}),
    torch.optim.AdamW: frozenset({"step", "exp_avg", "exp_avg_sq"}),
}
"""What each optimizer keeps of a parameter: tensors of its shape, and "step", a scalar."""

_EXECUTION = {"params", "lr", "foreach", "fused", "capturable", "differentiable"}
"""Entries of a group that do not say what is computed, and the rate, which is set anew every step.
"""


NEVER_USED = "never_used"
"""Beside a state_dict: the numbers of the parameters that no step had a gradient for, of which
nothing is kept, so that what is missing of others is noticed.
"""


def saved_state(optimizer: torch.optim.Optimizer) -> dict:
    """Return what `restore` goes on from: the state_dict and NEVER_USED."""
    state = optimizer.state_dict()
    parameters = [index for group in state["param_groups"] for index in group["params"]]
    return {**state, NEVER_USED: [i for i in parameters if not _moments(state["state"], i)]}


def restore(optimizer: torch.optim.Optimizer, saved: dict, *, complete: bool = True) -> None:
    """Put `optimizer` where the one was of which `saved_state` gave `saved`.

    complete: False for a state_dict alone, as earlier versions kept it: what it does not hold had
    no gradient. Everything is checked first, for the fused kernels trust shapes and strides:
    groups, what is kept of each parameter, its shape and dtype, and that nothing is missing. Raises
    ValueError or KeyError saying what does not fit; `optimizer` is then unchanged.
    """
    own = optimizer.state_dict()["param_groups"]
    _require_same_groups(own, saved["param_groups"])
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    moments = _MOMENTS[type(optimizer)]
    state = {}
    for index in saved["state"]:
        if type(index) is not int or not 0 <= index < len(parameters):
            raise ValueError(f"state of parameter {index!r:.40}, expected 0..{len(parameters) - 1}")
        kept = _moments(saved["state"], index)
        if kept and kept.keys() != moments:
            raise ValueError(f"state of parameter {index}: {sorted(kept)}, not {sorted(moments)}")
        state[index] = {
            name: _like(parameters[index], value, name, index) for name, value in kept.items()
        }
    if complete:
        _require_complete(state, saved[NEVER_USED], len(parameters))
    optimizer.load_state_dict({"state": state, "param_groups": own})


def _moments(state: dict, index: int) -> dict:
    """What is kept of a parameter; SGD without momentum keeps a None."""
    return {name: value for name, value in state.get(index, {}).items() if value is not None}


def _require_complete(state: dict, never_used: list, number: int) -> None:
    used = {index for index, kept in state.items() if kept}
    wrong = sorted(set(range(number)) - used ^ set(never_used))
    if wrong:
        raise ValueError(f"the state of parameter {wrong[0]} is missing, or should be")


def _require_same_groups(own: list[dict], saved: list[dict]) -> None:
    if [group["params"] for group in own] != [group["params"] for group in saved]:
        raise ValueError("its groups of parameters are not those of this model")
    for number, (group, other) in enumerate(zip(own, saved, strict=True)):
        for name, value in group.items():
            if name in _EXECUTION or name not in other:
                continue
            if type(other[name]) not in (type(value), int, float) or other[name] != value:
                raise ValueError(f"{name} of group {number} is {other[name]!r:.40}, not {value}")


def _like(parameter: Tensor, value: Tensor, name: str, index: int) -> Tensor:
    """A copy of what was kept, laid out in memory as the parameter is."""
    step = name == "step"
    shape, dtype = ((), torch.float32) if step else (parameter.shape, parameter.dtype)
    if not isinstance(value, Tensor) or value.shape != shape or value.dtype != dtype:
        found = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else value
        raise ValueError(
            f"{name} of parameter {index} is {found!s:.60}, expected {dtype} {tuple(shape)}"
        )
    return value.clone() if step else torch.empty_like(parameter.detach()).copy_(value)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> float:
    """Set the rate of the next step, `lr` times a group's "lr_scale", where it has one; return
    `lr`.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    return lr


def gradient_norm(model: nn.Module) -> Tensor:
    """Return the 2-norm, a scalar, of all gradients together."""
    return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])


def clip_gradients(model: nn.Module, limit: float | None, norm: Tensor) -> None:
    """Scale all gradients so that `norm`, their 2-norm (a scalar), is at most `limit`; None: do
    nothing.
    """
    if limit is None:
        return
    # torch would multiply by 1; of a GPU the number would have to be waited for
    is_short = norm.device.type == "cpu" and bool(limit / (norm + 1e-6) >= 1.0)
    if not is_short:
        nn.utils.clip_grads_with_norm_(model.parameters(), limit, norm)


def _learning(
    model: nn.Module,
) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
    """The parameters that learn: weights of layers, biases of layers, affine terms of norms."""
    weights, biases, norms = [], [], []
    for module in model.modules():
        is_norm = isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm))
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                (norms if is_norm else biases if name == "bias" else weights).append(parameter)
    if not weights + biases + norms:
        raise ValueError("no parameter of the model learns: all are frozen")
    return weights, biases, norms

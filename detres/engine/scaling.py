"""What losses are multiplied by in fp16, whose smallest gradients would else be 0: torch's
GradScaler, kept in last.pt.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from detres.engine.probes import Precision

LEAST = 1.0
"""Of scales: gradients that are not finite at this one are so by themselves."""


def scaler_of(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Return what scales the losses of a training: for fp16 from 65,536 on, halved where gradients
    are not finite, in a step that is skipped, and doubled after 2,000 steps without; else nothing.
    """
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def only_scaled_too_far(scaler: torch.amp.GradScaler, total: Tensor) -> bool:
    """Return whether gradients that are not finite may come of the scale alone: their losses, a
    scalar tensor in all, are finite, and the scale can still be halved.
    """
    if not scaler.is_enabled() or not torch.isfinite(total):
        return False
    return scaler.get_scale() * scaler.get_backoff_factor() >= LEAST


def restore_scaler(scaler: torch.amp.GradScaler, saved: dict) -> None:
    """Go on from the state_dict() of a scaler; raises ValueError or KeyError where it is none."""
    if saved.keys() != scaler.state_dict().keys():
        raise ValueError(f"{sorted(saved)!s:.80} are no state of a loss scale")
    scale = saved["scale"]
    if type(scale) is not float or not LEAST <= scale < math.inf:
        raise ValueError(f"{scale!r:.40} is no scale")
    for name in ("growth_interval", "_growth_tracker"):
        if type(saved[name]) is not int or saved[name] < 0:
            raise ValueError(f"{saved[name]!r:.40} are no steps")
    for name in ("growth_factor", "backoff_factor"):
        if saved[name] != scaler.state_dict()[name]:
            raise ValueError(f"{saved[name]!r:.40} is no factor")
    scaler.load_state_dict(saved)

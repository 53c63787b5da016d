"""What of its settings a run that goes on may have otherwise."""

from __future__ import annotations

MAY_CHANGE = (
    *("data.workers", "data.damaged", "train.lr", "train.clip_grad_norm"),
    *("train.steps", "train.epochs", "train.milestones", "train.early_stopping"),
)
"""Where and how data are read, what helps where the loss became infinite, and where the run
ends.
"""

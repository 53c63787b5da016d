"""What of its settings a run that goes on may have otherwise, and how it is asked for."""

from __future__ import annotations

AUTO = "auto"
"""Of --resume: whatever the run folder holds, else a new run."""

MAY_CHANGE = (
    *("data.workers", "data.damaged", "train.lr", "train.clip_grad_norm"),
    *("train.steps", "train.epochs", "train.milestones", "train.early_stopping"),
)
"""Where and how data are read, what helps where the loss became infinite, and where the run
ends.
"""

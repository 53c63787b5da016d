"""What of its settings a run that goes on may have otherwise."""

from __future__ import annotations

MAY_CHANGE = ("data.workers", "data.damaged", "train.lr", "train.clip_grad_norm")
"""Where and how data are read, and what helps where the loss became infinite."""

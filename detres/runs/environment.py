"""env.json: where a run was done."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision

from detres.files import write_text


def write_environment(path: Path, device: torch.device, *, start_step: int = 0) -> None:
    """Add to the list in the file `path` where the steps from `start_step` on are done.

    Versions, machine, device and, when this code is a git checkout, its commit and changed files.
    """
    is_checkout = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    if not isinstance(earlier, list):  # a mapping before resumed runs added to it
        earlier = [earlier]
    changed = _git("status", "--porcelain", "--untracked-files=no") or ""
    facts = {
        "start_step": start_step,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": _device_name(device),
        "git_commit": _git("rev-parse", "HEAD") if is_checkout else None,
        "git_changed_files": changed.splitlines() if is_checkout else None,
    }
    write_text(path, json.dumps([*earlier, facts], indent=2) + "\n")


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()

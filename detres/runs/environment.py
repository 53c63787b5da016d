"""env.json: where a run was done."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
import torchvision

from detres.files import first_line, write_text


def facts_of(device: torch.device) -> dict[str, object]:
    """Return what the last digits of a run depend on beside its settings and data."""
    return {
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "threads": torch.get_num_threads(),
        "device": _device_name(device),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def other_facts(earlier: dict[str, object], now: dict[str, object]) -> str | None:
    """Return in words in what two `facts_of` differ; None where they do not."""
    if not isinstance(earlier, dict):
        raise TypeError(f"a {type(earlier).__name__}, expected facts by name")
    other = [name for name in now if name in earlier and earlier[name] != now[name]]
    changes = [f"{name} {now[name]} (before: {earlier[name]!s:.40})" for name in other]
    return ", ".join(changes) or None


def write_environment(path: Path, device: torch.device, *, start_step: int = 0) -> None:
    """Add to the list in the file `path` where the steps from `start_step` on are done.

    Command, versions, machine, device and, when this code is a git checkout, its commit and changed
    files. Raises ValueError naming the file when what is there is no such list.
    """
    is_checkout = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    earlier = _read(path) if path.is_file() else []
    changed = _git("status", "--porcelain", "--untracked-files=no") or ""
    facts = {
        "start_step": start_step,
        "arguments": sys.argv[1:],
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        **facts_of(device),
        "git_commit": _git("rev-parse", "HEAD") if is_checkout else None,
        "git_changed_files": changed.splitlines() if is_checkout else None,
    }
    write_text(path, json.dumps([*earlier, facts], indent=2) + "\n")


def first_arguments(path: Path) -> list[str] | None:
    """Return the command-line arguments that began the run whose environment is in the file `path`;
    None where it does not say them.
    """
    try:
        arguments = _read(path)[0]["arguments"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    is_plain = isinstance(arguments, list) and all(isinstance(each, str) for each in arguments)
    return arguments if is_plain else None


def _read(path: Path) -> list:
    """The list of a file; one mapping is a list of it, as before resumed runs added to it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({first_line(error)}): move it away, and a new one is begun"
        ) from None
    return found if isinstance(found, list) else [found]


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

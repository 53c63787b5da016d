"""The run folder and what is written into it while training goes on."""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import subprocess
import time
from collections.abc import Collection
from pathlib import Path
from typing import TextIO

import cv2
import numpy as np
import torch
import torchvision
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from detres.engine.checkpoint import write_text


class RunFolderError(ValueError):
    """A run folder that cannot be used as asked."""


def new_run_folder(name: str, out: str | None) -> Path:
    """Create and return the folder of a new run: `out`, or runs/<name>, or the first free
    runs/<name>-2, -3, ...

    Raises RunFolderError when `out` is a file or already holds a run; nothing in it is touched.
    """
    folder = Path(out) if out is not None else _next_free(Path("runs") / name)
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"--out {folder} is a file; give a folder that does not exist yet")
    if folder.exists() and any(folder.iterdir()):
        raise RunFolderError(
            f"--out {folder} already holds files and is left as it is; continue it with --resume "
            f"{folder}, or give another folder"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise RunFolderError(
            f"the run folder {folder} cannot be made: a part of its path is a file"
        ) from None
    return folder


def _next_free(folder: Path) -> Path:
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    return next(
        candidate for candidate in itertools.chain([folder], numbered) if not candidate.exists()
    )


def write_environment(folder: Path, device: torch.device, *, start_step: int = 0) -> None:
    """Add to env.json, a list, where the steps from `start_step` on are done.

    Versions, machine, device and, when this code is a git checkout, its commit and changed files.
    """
    is_checkout = _git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    path = folder / "env.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    earlier = (
        earlier if isinstance(earlier, list) else [earlier]
    )  # a mapping before resumed runs added to it
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
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine(),
        "git_commit": _git("rev-parse", "HEAD") if is_checkout else None,
        "git_changed_files": _git("status", "--porcelain", "--untracked-files=no").splitlines()
        if is_checkout
        else None,
    }
    write_text(path, json.dumps([*earlier, facts], indent=2) + "\n")


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


def without_nan(value: object) -> object:
    """Return `value` with NaN and infinities replaced by None, at any depth: JSON has neither."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class RunLog:
    """Writes metrics.jsonl (one JSON object a line), TensorBoard events and progress on the
    console.

    console: a terminal gets one progress bar, anything else plain lines. start_step: the steps
    already done; scored: those at which there was an evaluation. Records of other steps and
    evaluations, left by an interrupted run, are cut away so that none is there twice.
    """

    def __init__(
        self,
        folder: Path,
        *,
        console: TextIO,
        steps: int,
        start_step: int = 0,
        scored: Collection[int] = (),
    ) -> None:
        self.folder = folder
        self.console = console
        self.steps = steps
        self.start_step = start_step
        self.started = time.monotonic()
        path = folder / "metrics.jsonl"
        if path.exists():
            kept = [
                line
                for line in path.read_text(encoding="utf-8").splitlines()
                if _is_of(line, start_step, scored)
            ]
            write_text(path, "".join(f"{line}\n" for line in kept))
        self.metrics = path.open("a", encoding="utf-8")
        self.tensorboard = SummaryWriter(
            str(folder / "tensorboard"), purge_step=start_step + 1 if start_step else None
        )
        self.bar = (
            tqdm(total=steps, initial=start_step, file=console, dynamic_ncols=True)
            if console.isatty()
            else None
        )

    def advance(self, step: int) -> None:
        """Show that `step` steps are done: moves the progress bar, writes nothing."""
        if self.bar is not None:
            self.bar.update(step - self.bar.n)

    def first_step(self, loss: float) -> None:
        """Show that the first step is done, long before the first record is due; writes nothing."""
        if self.bar is None:
            self.line(
                f"step {self.start_step + 1}/{self.steps}  loss {loss:.3f}  "
                f"{time.monotonic() - self.started:.1f} s to start"
            )

    def train(self, step: int, record: dict[str, float]) -> None:
        """Log one training record after `step` steps are done."""
        self._write("train", step, record)
        losses = "  ".join(
            f"{name.removeprefix('loss_')} {value:.3f}"
            for name, value in record.items()
            if name.startswith("loss") or name.endswith("error")
        )
        if self.bar is not None:
            self.bar.set_postfix_str(losses)
        else:
            rate = (step - self.start_step) / (time.monotonic() - self.started)
            left = (self.steps - step) / rate
            self.line(
                f"step {step}/{self.steps}  {losses}  lr {record['lr']:.5f}  {1 / rate:.2f} "
                f"s/step  {_clock(left)} left"
            )

    def evaluation(self, step: int, record: dict[str, float | None]) -> None:
        """Log the numbers of an evaluation after `step` steps."""
        self._write("eval", step, record)

    def averaged(self, step: int, record: dict[str, float | None]) -> None:
        """Log the numbers of an evaluation with averaged batch norm statistics, after all steps."""
        self._write("averaged", step, record)

    def line(self, text: str) -> None:
        """Print one line (or several) without disturbing the progress bar."""
        if self.bar is not None:
            self.bar.write(text, file=self.console)
        else:
            self.console.write(text + "\n")
            self.console.flush()

    def close(self) -> None:
        """Flush and close everything; the log cannot be used afterwards."""
        if self.bar is not None:
            self.bar.close()
        self.metrics.close()
        self.tensorboard.close()

    def _write(self, kind: str, step: int, record: dict) -> None:
        self.metrics.write(json.dumps(without_nan({"step": step, "kind": kind, **record})) + "\n")
        self.metrics.flush()
        for name, value in record.items():
            if isinstance(value, (int, float)):
                self.tensorboard.add_scalar(f"{kind}/{name}", value, step)


def _is_of(line: str, start_step: int, scored: Collection[int]) -> bool:
    """Whether a record belongs to what a resumed run has done; a line cut off by a crash does
    not.
    """
    try:
        record = json.loads(line)
        return record["step"] <= start_step and (
            record["kind"] == "train" or (record["kind"] == "eval" and record["step"] in scored)
        )
    except (ValueError, KeyError, TypeError):
        return False


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

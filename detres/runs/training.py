"""What a wing gives a run, to be trained in it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from detres.engine.distributed import Group
from detres.engine.log import QuietLog, RunLog
from detres.engine.progress import Progress
from detres.engine.schedule import Schedule
from detres.engine.step import Batch
from detres.runs.fingerprint import Fingerprint
from detres.runs.judgement import Judgement
from detres.runs.settings import TrainConfig


class RunConfig(Protocol):
    """What the configurations of both wings have in common."""

    name: str
    seed: int
    train: TrainConfig


class RunSoFar(Protocol):
    """What a training sees of its run: where it is kept and how far it is.

    list_skipped: adds the names of images that could not be read to skipped.txt.
    """

    folder: Path
    schedule: Schedule
    progress: Progress
    log: RunLog | QuietLog

    def list_skipped(self, files: Iterable[str]) -> None: ...


class Training(Protocol):
    """What a wing gives a run: what learns, from what, how it is judged, and what is kept of it.

    wing: "detection" or "classification". group: of the processes that train it, all of which call
    `batches`, `judge` and `keep`. loaded: what was loaded into the network before the first step,
    in words; None: nothing.
    """

    wing: str
    group: Group
    config: RunConfig
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    num_images: int
    loaded: str | None

    def describe_data(self) -> str:
        """Return what is trained and judged on, in words."""

    def fingerprints(self) -> dict[str, Fingerprint]:
        """Return those of the data, by split."""

    def begin(self, folder: Path) -> None:
        """Write into a new run folder what it has from the start beside its settings."""

    def file_of(self, image_id: int | str) -> str:
        """Return the file that an image of a batch is from, or where else it is."""

    def state(self) -> dict:
        """Return what last.pt holds beside the STATE_KEYS that a run knows; "classes" at least."""

    def batches(self, run: RunSoFar) -> Iterable:
        """Return the batches of the run's steps that are not done yet."""

    def worst_batch(self, number: int) -> Batch:
        """Return a batch of `number` images that takes more memory than any of the data."""

    def judge(self, *, whole: bool) -> Judgement:
        """Judge the model as it is, on the `whole` of the held-out images or on the way; writes
        nothing.
        """

    def keep(self, run: RunSoFar, judgement: Judgement, *, improved: bool, whole: bool) -> None:
        """Write into the run folder what is kept of this evaluation; the first process does.

        improved: whether it compares better than all before. whole: whether it ends the run, and so
        is of all held-out images.
        """

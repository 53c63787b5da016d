"""A run that was stopped, of any scheme, and how it goes on; `detres.resume` in Python."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from detres.config import ConfigError, in_yaml
from detres.console import write_line
from detres.detection.alternating import (
    TRAININGS,
    AlternatingRun,
    SavedAlternating,
    read_saved,
)
from detres.detection.config import DetectionConfig
from detres.detection.detector import Detector
from detres.detection.weights_file import WING
from detres.engine.determinism import compute_alike
from detres.engine.distributed import Group
from detres.engine.writers import Writer, require_writers
from detres.runs.folder import newest_run
from detres.runs.resumable import MAY_CHANGE
from detres.runs.run import ResumeLine, TrainingRun
from detres.runs.saved import SavedRun
from detres.user_files import expanded


def resumed(
    saved: SavedRun | SavedAlternating,
    group: Group,
    *,
    device: torch.device,
    resume_line: ResumeLine,
    accept_data_change: bool = False,
    writers: Sequence[Writer] = (),
) -> TrainingRun | AlternatingRun:
    """Return the run, where it was left, by the processes of `group`; arguments and errors as those
    of TrainingRun.resume. Raises ValueError for alternating training on several processes.
    """
    if isinstance(saved, SavedAlternating):
        with group.together():
            if group.size > 1:
                raise ValueError(
                    f"{saved.folder} trains on one process: resume it without torchrun"
                )
        return AlternatingRun.resume(
            saved,
            device=device,
            resume_line=resume_line,
            accept_data_change=accept_data_change,
            writers=writers,
        )
    with group.together():
        training = TRAININGS[saved.config.train.scheme].resume(saved, device, group)
    return TrainingRun.resume(
        saved,
        training,
        device=device,
        resume_line=resume_line,
        accept_data_change=accept_data_change,
        writers=writers,
    )


def resume(
    run: str | Path,
    *,
    settings: Mapping[str, object] | None = None,
    data: str | Path | None = None,
    device: torch.device | str | None = None,
    accept_data_change: bool = False,
    deterministic: bool | None = None,
    writers: Sequence[Writer] = (),
) -> Detector:
    """Go on with a detector's training that was stopped, as `detres train-det --resume RUN` does,
    and return the detector, on the CPU.

    run: its folder, or its name under runs/. settings: those that a resumed run may have otherwise,
    MAY_CHANGE, such as {"train.lr": 0.001}. data: where they are now. device: by default the GPU
    where there is one. accept_data_change: whether it may go on with other data than it has learned
    from. deterministic: whether torch, in this process, is made to compute equal results from equal
    inputs, see engine.determinism; None: as the run was. writers: told the numbers from here on, as
    those of `train` were.

    Raises ConfigError for other settings, TypeError for an object that is no writer, NoRunError and
    CheckpointError where there is nothing to go on from, DataChangedError, and what the readers
    raise; Ctrl-C saves the run and raises Interrupted.
    """
    require_writers(writers)
    settings = settings or {}
    if other := [key for key in settings if key not in MAY_CHANGE]:
        raise ConfigError(
            f"{other[0]} cannot be otherwise in a run that goes on, only {', '.join(MAY_CHANGE)}"
        )
    folder = Path(expanded(str(run)))
    if not folder.exists() and folder.name == str(folder):
        folder = newest_run(folder.name)
    saved = read_saved(
        folder,
        DetectionConfig,
        wing=WING,
        overrides=[f"{key}={in_yaml(value)}" for key, value in settings.items()],
        root=None if data is None else str(data),
    )
    if deterministic or (deterministic is None and saved.computes_alike):
        compute_alike()
        write_line(f"note: {saved.folder} goes on deterministically")
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    with resumed(
        saved,
        Group(),
        device=chosen,
        resume_line=resume_line_with(writers),
        accept_data_change=accept_data_change,
        writers=writers,
    ) as going_on:
        going_on.train()
    return Detector.load(folder)


def resume_line_with(writers: Sequence[Writer]) -> ResumeLine:
    """Return what gives the line that goes on with a run: a command where detres is installed, a
    call in Python where it has `writers`, which no command can be given.
    """
    return _call if writers else _command


def _command(folder: Path, settings: dict[str, float]) -> str:
    changed = "".join(f" {key}={value:g}" for key, value in settings.items())
    line = f"detres train-det --resume {shlex.quote(str(folder))}"
    return f"{line} --set{changed}" if changed else line


def _call(folder: Path, settings: dict[str, float]) -> str:
    changed = f"settings={settings!r}, " if settings else ""
    return f"detres.resume({str(folder)!r}, {changed}writers=[...])"

"""The command lines that measure a cell, whole or what is left of them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detres.reproduction.found import Runs, has_state, numbers_file, weights_name
from detres.reproduction.tables import Cell, Training
from detres.runs.folder import METRICS, RUNS

Command = tuple[str, ...]
"""A file of tools/ without its ending, and its arguments."""


@dataclass(frozen=True)
class Place:
    """Where commands work. data: the folder that holds the data folders, or is the one that is
    wanted; None: the working directory. runs: where run folders are; device: None: the best.
    """

    data: Path | None = None
    runs: Path = RUNS
    device: str | None = None

    def flags(self, training: Training, *, needed: bool) -> Command:
        """Return --data, where it is `needed` or a folder was given, and --device."""
        device = () if self.device is None else ("--device", self.device)
        if training.data is None or not (needed or self.data):
            return device
        inside = (self.data or Path()) / training.data
        folder = inside if self.data is None or inside.is_dir() else self.data
        return ("--data", str(folder), *device)


def shown(command: Command) -> str:
    """Return a command as it is pasted into a shell, in a checkout."""
    return shlex.join(["python", f"tools/{command[0]}.py", *command[1:]])


def train(training: Training, place: Place, weights_of: Callable[[Training], Path]) -> Command:
    """Return what trains a run in a new folder; weights_of: of the runs that it needs."""
    command = [training.command.replace("-", "_"), "--cfg", f"configs/{training.config}.yaml"]
    command += place.flags(training, needed=True)
    if training.init_from is not None:
        command += ["--init-from", str(weights_of(training.init_from))]
    if training.settings:
        needed = "" if training.needs is None else str(weights_of(training.needs))
        command += ["--set", *(each.replace("{needs}", needed) for each in training.settings)]
    if place.runs != RUNS:
        command += ["--out", str(free_folder(place.runs / training.name))]
    return tuple(command)


def evaluate(cell: Cell, place: Place, weights_of: Callable[[Training], Path]) -> Command:
    """Return what evaluates the finished runs of a cell; weights_of: of each."""
    how, weights = cell.evaluation, [weights_of(training) for training in cell.runs]
    file = numbers_file(weights[0].parent, cell)
    command = ["eval", "--weights", *map(str, weights), *place.flags(cell.runs[0], needed=False)]
    if how.classifiers:
        command += ["--classifier", *(str(weights_of(each)) for each in how.classifiers)]
    if how.settings:
        command += ["--set", *how.settings]
    if how.server:
        return (*command, "--split", "test", "--submission", str(file.with_suffix("")))
    return (*command, "--json", str(file))


def all_of(cell: Cell, place: Place) -> list[Command]:
    """Return the commands that measure a cell from nothing; none for one that cannot be."""

    def weights_of(training: Training) -> Path:
        return place.runs / training.name / weights_name(training.command)

    commands = [train(training, place, weights_of) for training in cell.in_order()]
    return commands + ([evaluate(cell, place, weights_of)] if cell.evaluation else [])


def next_of(cell: Cell, place: Place, runs: Runs) -> Command | None:
    """Return the first command of a cell that is still to be run, an unfinished run's being
    resumed; None: all are done.
    """

    def weights_of(training: Training) -> Path:
        return runs.finished(training, cell).weights

    for training in cell.in_order():
        if runs.finished(training, cell) is not None:
            continue
        for run in runs.of(training, cell):
            if run.can_go_on and run.config.name == training.name:
                device = Place(device=place.device).flags(training, needed=False)
                return (training.command.replace("-", "_"), "--resume", str(run.folder), *device)
        return train(training, place, weights_of)
    if cell.evaluation is None:
        return None
    first = runs.finished(cell.runs[0], cell)
    if runs.fault_of(cell, first) is None:
        return None
    if cell.evaluation.server and numbers_file(first.folder, cell).with_suffix("").is_dir():
        return None
    return evaluate(cell, place, weights_of)


def free_folder(folder: Path) -> Path:
    """Return `folder`, or the first of -2, -3, ... in which no run has saved anything."""
    number, free = 1, folder
    while has_state(free) or (free / METRICS).exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free

"""Run folders, and which of them measure a cell: by their configuration, not by their name."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from detres.classification.config import is_classification
from detres.config import Section, load_config, read_tree
from detres.files import first_line
from detres.reproduction.evaluated import fault_of, numbers_of
from detres.reproduction.measured import Record
from detres.reproduction.settings import (
    KINDS,
    config_of,
    differences,
    digest_of,
    mattering,
    run_name,
)
from detres.reproduction.tables import KEEPS_WEIGHTS, TRAINED, Cell, Training
from detres.runs import folder as names
from detres.runs.environment import first_arguments
from detres.user_files import is_hidden, read_json


@dataclass(frozen=True)
class Run:
    """A run folder. start: name of the run whose detector it started from; done: its last step;
    finished: whether its training and the evaluation at the end are done.
    """

    folder: Path
    command: str
    config: Section
    start: str | None
    done: int
    finished: bool

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read a run folder; raises ConfigError naming the file."""
        path = folder / names.CONFIG
        if is_classification(path):
            command = "train-cls"
        else:
            command = "train-loc" if "views" in read_tree(path).get("eval", {}) else "train-det"
        config = load_config(path, KINDS[command])
        parser = argparse.ArgumentParser(add_help=False)
        parser.add_argument("--init-from")
        given, _ = parser.parse_known_args(first_arguments(folder / names.ENVIRONMENT) or [])
        start = None if given.init_from is None else run_name(given.init_from)
        return cls(folder, command, config, start, *_progress(folder, config))

    @property
    def weights(self) -> Path:
        """The file of its weights."""
        return self.folder / weights_name(self.command)

    @property
    def can_go_on(self) -> bool:
        """Whether there is a state from which it can be resumed."""
        return has_state(self.folder)

    def made_by(self) -> tuple[str | None, str]:
        """Return the commit and the machine, as env.json has them; None: no commit is known."""
        try:
            found = read_json(self.folder / names.ENVIRONMENT)
            facts = found if isinstance(found, list) else [found]
            commits = [_commit(each) for each in facts if each["git_commit"]]
            machines = [
                f"{each['device']}, {each['cpu_count']} CPUs, torch {each['torch']}"
                for each in facts
            ]
        except (ValueError, OSError, LookupError, TypeError):
            machines = []
        if not machines:
            return None, "machine not recorded"
        machine = f"{' then '.join(dict.fromkeys(machines))}, {self.config.train.precision}"
        return " then ".join(dict.fromkeys(commits)) or None, machine


def has_state(folder: Path) -> bool:
    """Return whether a run in `folder` has saved something to go on from."""
    states = (names.STATE, names.PREVIOUS, names.PHASE)
    return any((folder / name).is_file() for name in states)


def weights_name(command: str) -> str:
    """Return the name of the weights file that a command writes."""
    return names.CLASSIFIER_WEIGHTS if command == "train-cls" else names.DETECTOR_WEIGHTS


def _commit(facts: dict) -> str:
    changed = " with changes" if facts.get("git_changed_files") else ""
    return f"{facts['git_commit'][:10]}{changed}"


def _progress(folder: Path, config: Section) -> tuple[int, bool]:
    """The last step that a run has logged, and whether it has done all."""
    if (folder / names.PHASE).is_file():  # its steps have folders of their own
        done = (folder / names.METRICS).is_file()
        return (config.train.steps or 0) * done, done
    path, last, finished = folder / names.RECORDS, 0, False
    end = "averaged" if getattr(config.train, "recompute_batches", 0) else "eval"
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
            step, kind = int(record["step"]), record["kind"]
        except (ValueError, LookupError, TypeError, RecursionError):
            continue  # cut off by a crash
        last = max(last, step)
        finished = finished or (kind == end and step == config.train.steps)
    return last, finished


class Runs:
    """The run folders below `folder`, judged by the configurations in `configs`; notes: those that
    cannot be read, and why.
    """

    def __init__(self, folder: Path, configs: Path) -> None:
        self.folder, self.configs = folder, configs
        self.notes: list[str] = []
        self.all: list[Run] = []
        self._wanted: dict[Training, dict[str, object]] = {}
        for path in sorted(folder.glob(f"*/{names.CONFIG}")):
            if is_hidden(path.parent.name):
                continue
            try:
                self.all.append(Run.read(path.parent))
            except (ValueError, OSError) as error:
                self.notes.append(f"{path.parent} is left out: {first_line(error)}")

    def of(self, training: Training, cell: Cell, *, any_seed: bool = False) -> list[Run]:
        """Return those, finished or not, that are this training of a cell: with its own seed where
        the cell has several, or any.
        """
        several = len(cell.runs) > 1 and not any_seed
        seeds = {config_of(training, self.configs).seed} if several else None
        return [
            run
            for run in self.all
            if (seeds is None or run.config.seed in seeds)
            and self.why_not(run, training, cell) == []
        ]

    def finished(self, training: Training, cell: Cell) -> Run | None:
        """Return the first that is finished."""
        return next((run for run in self.of(training, cell) if run.finished), None)

    def why_not(self, run: Run, training: Training, cell: Cell) -> list[str] | None:
        """Return in words in what a run is not this training of a cell, but for its end and its
        seed; None: it is of another command.

        Where tools/eval.py evaluates it, only what keeps weights matters of `eval`.
        """
        if run.command != training.command:
            return None
        if training not in self._wanted:
            config = config_of(training, self.configs)
            self._wanted[training] = mattering(config.model_dump(mode="json"))
        found, wanted = mattering(run.config.model_dump(mode="json")), self._wanted[training]
        if cell.evaluation is not None or training not in cell.runs:
            found, wanted = (
                {key: value for key, value in each.items() if _is_of_training(key)}
                for each in (found, wanted)
            )
        start = None if training.init_from is None else training.init_from.name
        other = [f"--init-from is of {run.start}, not of {start}"] if run.start != start else []
        return differences(found, wanted) + other

    def not_counted(self, cell: Cell) -> Iterator[str]:
        """Give a line for every run that has the name of one of the cell's, or its configuration,
        and does not count for it.
        """
        for training in dict.fromkeys(cell.runs):
            for run in self.all:
                why = self.why_not(run, training, cell)
                if why is None or (why and run.config.name != training.name):
                    continue
                if not run.finished:
                    why = [*why, f"it is at step {run.done} of {run.config.train.steps}"]
                elif not why and training == cell.runs[0] and run in self._judged(cell):
                    why = [fault] if (fault := self.fault_of(cell, run)) else []
                if why:
                    yield f"{run.folder}: {'; '.join(why)}"

    def fault_of(self, cell: Cell, run: Run) -> str | None:
        """Return why a finished run, the cell's first, does not give its numbers; None: it does."""
        how = cell.evaluation
        path = numbers_file(run.folder, cell)
        if not path.is_file():
            return f"there is no {path.name} in it"
        try:
            numbers_of(path, cell.paper)
            if how is None or how.server:
                return None
            others = [*cell.runs[1:], *how.classifiers]
            found = [self.finished(training, cell) for training in others]
            if None in found:
                return f"what {path.name} was evaluated with is not there"
            weights = [run.weights, *(other.weights for other in found)]
            return fault_of(path, weights, config_of(cell.runs[0], self.configs, how.settings))
        except (ValueError, OSError) as error:
            return first_line(error)

    def records(self, cell: Cell) -> Iterator[Record]:
        """Give what finished runs measure of a cell."""
        for run in self._judged(cell):
            if not run.finished or self.fault_of(cell, run) is not None:
                continue
            commit, machine = run.made_by()
            path = numbers_file(run.folder, cell)
            yield Record(
                run=run.folder.name,
                config=cell.runs[0].config,
                settings=cell.runs[0].changes,
                digest=digest_of(cell.runs[0], self.configs),
                seed=run.config.seed,
                steps=run.config.train.steps,
                commit=commit,
                machine=machine,
                results={path.stem: numbers_of(path, cell.paper)},
            )

    def _judged(self, cell: Cell) -> list[Run]:
        """Those in whose folders a cell's numbers are: of runs that are not evaluated together, of
        any seed.
        """
        return self.of(cell.runs[0], cell, any_seed=cell.evaluation is None) if cell.runs else []


def numbers_file(folder: Path, cell: Cell) -> Path:
    """Return where in a run folder the numbers of a cell are."""
    return folder / f"{TRAINED if cell.evaluation is None else cell.evaluation.label}.json"


def _is_of_training(key: str) -> bool:
    return not key.startswith("eval.") or key in KEEPS_WEIGHTS

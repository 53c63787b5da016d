"""The reproduction ledger: `reproduce --table 7` lists the cells of a table of the paper, `--run`
measures what is missing, and both keep docs/measured.json and docs/reproduction.md up to date.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from pathlib import Path

from detres.cli.flags import CONFIGS, notice, say
from detres.reproduction.commands import Command, Place, next_of, shown
from detres.reproduction.found import Runs, numbers_file
from detres.reproduction.ledger import Entry, console, section, with_section, write_section
from detres.reproduction.measured import merged, read_measured, write_measured
from detres.reproduction.tables import CELLS, Cell
from detres.runs.folder import RUNS

TOOLS = CONFIGS.parent / "tools"
MEASURED, RESULTS = "measured.json", "reproduction.md"


class FailedCommandError(ValueError):
    """A command of the ledger that did not do what it was run for."""


class Ledger:
    """The records, the runs that are found, and the cells that are asked for; raises what
    read_measured and with_section raise.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        docs = Path(arguments.docs)
        self.measured, self.results = docs / MEASURED, docs / RESULTS
        self.writes = not arguments.dry_run
        data = None if arguments.data is None else Path(arguments.data)
        device = None if arguments.device is None else str(arguments.device)
        self.place = Place(data, Path(arguments.runs or RUNS), device)
        self.cells = [cell for cell in CELLS if cell.table in arguments.table]
        if self.writes:
            with_section(self.results, "")  # before anything is run for it
        self.refresh()

    def unfinished(self, cell: Cell) -> int:
        """Return how many of the runs that a cell needs are not finished."""
        return sum(self.runs.finished(training, cell) is None for training in cell.in_order())

    def refresh(self) -> None:
        """Look for runs, and keep what they measured."""
        self.runs = Runs(self.place.runs, CONFIGS)
        earlier = read_measured(self.measured)
        found = [record for cell in CELLS for record in self.runs.records(cell)]
        self.records = merged(earlier, found)
        if not self.writes:
            return
        if self.records != earlier:
            write_measured(self.measured, self.records)
            say(f"{self.measured}: {len(self.records)} runs")
        text = section([self.entry(cell) for cell in CELLS], CONFIGS)
        if write_section(self.results, text):
            say(f"{self.results}: its tables are those of {self.measured.name}")

    def entry(self, cell: Cell) -> Entry:
        """Return a cell with what measures it."""
        return Entry.of(cell, self.records, CONFIGS)


def reproduce(arguments: argparse.Namespace) -> None:
    """List the cells, and run what is missing when asked; raises NotADirectoryError for a folder
    that is none.
    """
    for flag in ("data", "runs", *(() if arguments.dry_run else ("docs",))):
        folder = getattr(arguments, flag)
        if folder is not None and not Path(folder).is_dir():
            raise NotADirectoryError(f"--{flag} {folder} is no folder")
    ledger = Ledger(arguments)
    for line in ledger.runs.notes:
        notice(line)
    for cell in ledger.cells:
        if arguments.run and not arguments.dry_run:
            measure(ledger, cell)
        entry = ledger.entry(cell)
        say(console(entry, ledger.place, CONFIGS, list(ledger.runs.not_counted(cell))) + "\n")
        left = next_of(cell, ledger.place, ledger.runs) if entry.missing and cell.runs else None
        if arguments.run and arguments.dry_run and left is not None:
            say(f"would run first: {shown(left)}\n")


def measure(ledger: Ledger, cell: Cell) -> None:
    """Run what is missing of a cell, a command at a time; raises FailedCommandError at the first
    that fails.
    """
    while cell.runs and ledger.entry(cell).missing:
        command, before = next_of(cell, ledger.place, ledger.runs), ledger.unfinished(cell)
        if command is None:
            break
        say(f"$ {shown(command)}")
        run(command)
        ledger.refresh()
        training = command[0] != "eval"
        if ledger.unfinished(cell) == before and (
            training or next_of(cell, ledger.place, ledger.runs) == command
        ):
            why = "; ".join(ledger.runs.not_counted(cell)) or "there is no new run"
            raise FailedCommandError(f"nothing that counts came of it ({why}): {shown(command)}")
    if cell.evaluation and cell.evaluation.server and ledger.entry(cell).missing:
        first = ledger.runs.finished(cell.runs[0], cell)
        file = numbers_file(first.folder, cell)
        example = ", ".join(f'"{name}": 0.5' for name in list(cell.paper)[:2])
        say(
            f"{file.with_suffix('')} is for the test's server; put what it answers into {file}, as "
            f"fractions: {{{example}}}"
        )


def run(command: Command) -> None:
    """Run a command of tools/ to its end; raises FailedCommandError, KeyboardInterrupt where it was
    stopped by Ctrl-C, which it got too, and has saved where it was.
    """
    name, *arguments = command
    process = subprocess.Popen([sys.executable, str(TOOLS / f"{name}.py"), *arguments])
    status = None
    while status is None:
        with contextlib.suppress(KeyboardInterrupt):
            status = process.wait()
    if status == 130:
        raise KeyboardInterrupt
    if status:
        raise FailedCommandError(f"ended with status {status}: {shown(command)}")

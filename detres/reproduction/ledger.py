"""The ledger as text: for a console, and as the section of docs/reproduction.md that is its own."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from detres.files import write_text
from detres.reproduction.commands import Place, all_of, shown
from detres.reproduction.measured import Record
from detres.reproduction.settings import config_of, digest_of
from detres.reproduction.tables import METRICS, TITLES, TRAINED, Cell
from detres.user_files import read_text

BEGIN, END = "<!-- tables: written by tools/reproduce.py -->", "<!-- end -->"

NOT_MEASURED = "not measured"


class NoSectionError(ValueError):
    """A file without a place for the ledger; the message names it."""


@dataclass(frozen=True)
class Entry:
    """A cell, the records that measure it, and those of its words that were configured otherwise
    then.
    """

    cell: Cell
    records: tuple[Record, ...]
    outdated: tuple[Record, ...]

    @classmethod
    def of(cls, cell: Cell, records: Iterable[Record], configs: Path) -> Entry:
        """Return the entry of a cell among all `records`."""
        if not cell.runs:
            return cls(cell, (), ())
        training, label = cell.runs[0], cell.evaluation.label if cell.evaluation else TRAINED
        digest = digest_of(training, configs)
        found = [record for record in records if record.results.get(label)]
        own = [
            record
            for record in found
            if record.digest == digest or (record.digest is None and record.is_of(training))
        ]
        others = [record for record in found if record.is_of(training) and record not in own]
        return cls(cell, tuple(own), tuple(others))

    @property
    def missing(self) -> int:
        """How many of its numbers are still to be measured."""
        wanted = 1 if self.cell.evaluation else len(self.cell.runs)
        return max(0, wanted - len(self.records))

    def values(self, metric: str) -> list[float]:
        """Return what was measured of a metric, in percent."""
        label = self.cell.evaluation.label if self.cell.evaluation else TRAINED
        found = [record.results[label].get(metric) for record in self.records]
        return [100 * value for value in found if value is not None]

    def paper(self) -> str:
        """Return the paper's numbers in words."""
        known = {name: value for name, value in self.cell.paper.items() if value is not None}
        return ", ".join(f"{called(name)} {number(name, value)}" for name, value in known.items())

    def ours(self) -> str:
        """Return ours in words, each beside its band."""
        measured = {name: self.values(name) for name in self.cell.paper if self.values(name)}
        return ", ".join(self._ours(name, values) for name, values in measured.items())

    def _ours(self, name: str, values: list[float]) -> str:
        best = min(values) if name.endswith("error") else max(values)
        text = f"{called(name)} {number(name, best)}"
        if len(values) > 1:
            mean, deviation = statistics.mean(values), statistics.stdev(values)
            text += f" (best of {len(values)}; mean {mean:.2f} +- {deviation:.2f})"
        if (band := self.band(name)) is None:
            return text
        low, high = band
        inside = low <= round(best, 2) <= high
        return f"{text}, {'in' if inside else 'below' if best < low else 'above'} the band"

    def band(self, metric: str) -> tuple[float, float] | None:
        """Return between what it is expected, in percent: the paper's number and all re-runs; None
        without re-runs.
        """
        found = [each[metric] for each in self.cell.reruns.values() if metric in each]
        known = [value for value in (*found, self.cell.paper[metric]) if value is not None]
        return (min(known), max(known)) if found else None

    def bands(self) -> str:
        """Return all bands with the sources they have beside the paper."""
        bands = {name: self.band(name) for name in self.cell.paper}
        said = [
            f"{called(name)} {number(name, band[0])} to {number(name, band[1])}"
            for name, band in bands.items()
            if band is not None
        ]
        sources = [
            f"{source} {' / '.join(number(name, value) for name, value in numbers.items())}"
            for source, numbers in self.cell.reruns.items()
        ]
        return f"{', '.join(said)} ({'; '.join(sources)})" if said else "no re-run is known"

    def origin(self) -> str:
        """Return what the records say of where the numbers are from."""
        return "; ".join(
            f"seed {record.seed}, {record.steps:,} steps, {record.machine}, "
            + (f"commit {record.commit}" if record.commit else "commit not recorded")
            + (f", settings {record.digest}" if record.digest else ", settings not recorded")
            for record in self.records
        )

    def not_counted(self) -> list[str]:
        """Return a line for each outdated record."""
        return [
            f"{record.run or record.config}, seed {record.seed}: its settings were "
            f"{record.digest}, other than today's"
            for record in self.outdated
        ]

    def hours(self, configs: Path) -> str:
        """Return how long training takes, by device."""
        hours: dict[str, float] = {}
        for training in self.cell.in_order():
            if (cost := training.cost) is not None:
                settings = config_of(training, configs).train
                images = settings.steps * settings.images_per_step
                hours[cost.device] = hours.get(cost.device, 0) + images * cost.seconds / 3600
        return ", ".join(
            f"{total:,.{0 if total >= 10 else 1}f} h of {device}" for device, total in hours.items()
        )


def sources_of(cells: Iterable[Cell]) -> str:
    """Return by what estimates of hours are made."""
    costs = [each.cost for cell in cells for each in cell.in_order() if each.cost is not None]
    return "; ".join(dict.fromkeys(f"{cost.device}: {cost.source}" for cost in costs))


def called(metric: str) -> str:
    """Return what a table calls a metric."""
    return METRICS.get(metric, metric)


def number(metric: str, value: float) -> str:
    """Return a percentage with as many digits as the paper gives of the metric."""
    return f"{value:.2f}" if metric in ("top1_error", "top5_error") else f"{value:.1f}"


def console(entry: Entry, place: Place, configs: Path, not_counted: Sequence[str]) -> str:
    """Return a cell for a console; not_counted: a line for every run that is none of its."""
    cell, hours = entry.cell, entry.hours(configs)
    known = "; ".join(cell.deviations)
    lines = {
        "paper": [entry.paper() or "no number"],
        "ours": [entry.ours() or NOT_MEASURED, entry.origin()],
        "band": [entry.bands() if cell.runs else ""],
        "differs": [f"{known} (docs/deviations.md)" if known else ""],
        "note": [cell.note],
        "needs": [", ".join(data_of(cell))],
        "training": [f"{hours} ({sources_of([cell])})" if hours else ""],
        "run": [shown(command) for command in all_of(cell, place)],
        "not counted": [*not_counted, *entry.not_counted()],
    }
    texts = [
        f"  {name if row == 0 else '':<12} {text}"
        for name, of_name in lines.items()
        for row, text in enumerate(filter(None, of_name))
    ]
    return "\n".join([f"Table {cell.table}: {cell.row}", *texts])


def data_of(cell: Cell) -> list[str]:
    """Return the names of the data folders that a cell needs."""
    return list(dict.fromkeys(each.data for each in cell.in_order() if each.data))


def section(entries: Sequence[Entry], configs: Path) -> str:
    """Return the tables of `entries` as markdown."""
    parts = []
    for table in dict.fromkeys(entry.cell.table for entry in entries):
        of_table = [entry for entry in entries if entry.cell.table == table]
        parts.append(_table(table, of_table, configs))
    return "\n".join(parts)


def _table(table: int, entries: Sequence[Entry], configs: Path) -> str:
    rows = [
        [
            entry.cell.row + (f" ({entry.cell.note})" if entry.cell.note else ""),
            entry.paper() or "none",
            _ours(entry),
            entry.bands() if entry.cell.runs else "",
            entry.hours(configs),
        ]
        for entry in entries
    ]
    header = ["row", "paper, %", "ours, %", "band, %", "training takes"]
    lines = [f"### Table {table}: {TITLES[table]}", ""]
    lines += [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
    listed: set[str] = set()
    block = []
    for entry in entries:
        commands = [shown(command) for command in all_of(entry.cell, Place())]
        new = [command for command in commands if command not in listed]
        listed.update(new)
        block += [f"# {entry.cell.row}", *new] if new else []
    if block:
        lines += ["", "```sh", *block, "```"]
    if sources := sources_of(entry.cell for entry in entries):
        lines += ["", f"Hours: {sources}."]
    known = list(dict.fromkeys(row for entry in entries for row in entry.cell.deviations))
    if known:
        lines += ["", f"Known differences ([deviations.md](deviations.md)): {'; '.join(known)}."]
    return "\n".join([*lines, ""])


def _ours(entry: Entry) -> str:
    measured = f"**{entry.ours()}** ({entry.origin()})" if entry.records else NOT_MEASURED
    return "; not counted: ".join([measured, *entry.not_counted()])


def with_section(path: Path, text: str) -> str:
    """Return what a file holds with its section of the ledger replaced by `text`; raises
    NoSectionError naming it when it does not have one, and as read_text does.
    """
    whole = read_text(path, "file of results")
    before, begin, rest = whole.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(f"{END}\n")
    if not begin or not end or BEGIN in rest or END in before:
        raise NoSectionError(
            f"{path} has no place for the tables: one line {BEGIN}, and one {END} below it"
        )
    return f"{before}{BEGIN}\n\n{text}\n{END}\n{after}"


def write_section(path: Path, text: str) -> bool:
    """Replace the section of a file; returns whether that changed it. Raises as with_section."""
    whole = with_section(path, text)
    if whole == read_text(path):
        return False
    write_text(path, whole)
    return True

"""The records of a run, read back from its folder."""

from __future__ import annotations

import json
import math
import operator
from dataclasses import dataclass
from pathlib import Path

from detres.runs.folder import RECORDS

Series = list[tuple[int, float]]
"""(step, value) in the order of the records; values that are missing or not finite are left out."""


class RecordsError(ValueError):
    """A folder without the records of a run, or with damaged ones; the message names the file."""


@dataclass(frozen=True)
class RunRecords:
    """What a run has measured.

    path: of the file. series: kind of record ("train", "eval", ...) -> name of a value ("loss",
    "lr", "AP", ...) -> its values, both in the order in which they first appear.
    """

    path: Path
    series: dict[str, dict[str, Series]]

    @property
    def name(self) -> str:
        """That of the run folder."""
        return self.path.resolve().parent.name

    def of_kind(self, kind: str) -> dict[str, Series]:
        """Return name -> values of one kind of record, {} where there is none."""
        return self.series.get(kind, {})


def read_records(folder: Path) -> RunRecords:
    """Return what the run in `folder` has measured; raises RecordsError where there is no file of
    records, naming the line where one is damaged.
    """
    path = folder / RECORDS
    if not path.is_file():
        raise RecordsError(f"{path} is missing: {folder} is no run folder")
    series: dict[str, dict[str, Series]] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            record = json.loads(line)
            of_kind = series.setdefault(record.pop("kind"), {})
            step = operator.index(record.pop("step"))
            values = {
                name: float(value)
                for name, value in record.items()
                if value is not None and not name.endswith("_digest")
            }
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            raise RecordsError(f"{path}, line {number} is no record of a run ({error})") from None
        except RecursionError:
            raise RecordsError(f"{path}, line {number} is no record of a run") from None
        for name, value in values.items():
            if math.isfinite(value):
                of_kind.setdefault(name, []).append((step, value))
    return RunRecords(path, series)


def table_of(runs: list[RunRecords]) -> list[tuple]:
    """Return the records of runs as the rows of a table, its head first: run, set (the kind of
    record), step, then a column for every value, "" where a record has none.
    """
    names = list(
        dict.fromkeys(name for run in runs for of_kind in run.series.values() for name in of_kind)
    )
    rows: list[tuple] = [("run", "set", "step", *names)]
    for run in runs:
        for kind, of_kind in run.series.items():
            values = {name: dict(series) for name, series in of_kind.items()}
            steps = sorted({step for series in values.values() for step in series})
            rows += [
                (run.name, kind, step, *(values.get(name, {}).get(step, "") for name in names))
                for step in steps
            ]
    return rows

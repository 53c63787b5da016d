"""docs/measured.json: what runs measured, kept when their folders are gone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from detres.config import Count, Fraction, Positive, Section, check
from detres.files import write_text
from detres.reproduction.tables import Training
from detres.user_files import JsonError, read_json


class Record(Section):
    """A measured run. run: its folder's name; settings: what --set changed of what matters; digest:
    of its configuration, settings.digest_of; results: label -> metric or class -> fraction. None:
    not known.
    """

    run: str | None = None
    config: str
    settings: tuple[str, ...] = ()
    digest: str | None = None
    seed: Count
    steps: Positive
    commit: str | None = None
    machine: str
    results: dict[str, dict[str, Fraction]]

    @property
    def identity(self) -> tuple:
        """What tells runs apart."""
        return self.run, self.config, self.digest, self.seed, self.commit, self.machine

    def is_of(self, training: Training) -> bool:
        """Whether it was configured by the words of `training`, whatever they meant then."""
        return (self.config, set(self.settings)) == (training.config, set(training.changes))


class Measured(Section):
    """The whole file."""

    records: tuple[Record, ...] = ()


def read_measured(path: Path) -> tuple[Record, ...]:
    """Return the records of a file, () where there is none; raises JsonError or ConfigError naming
    the file and the record at fault.
    """
    if not path.exists():
        return ()
    tree = read_json(path, "file of records")
    if not isinstance(tree, dict):
        raise JsonError(f'{path}: expected {{"records": [...]}}, got a {type(tree).__name__}')
    return check(Measured, tree, str(path)).records


def write_measured(path: Path, records: Sequence[Record]) -> None:
    """Write records as `read_measured` reads them."""
    tree = Measured(records=tuple(records)).model_dump(mode="json")
    write_text(path, json.dumps(tree, indent=2) + "\n")


def merged(records: Iterable[Record], found: Iterable[Record]) -> tuple[Record, ...]:
    """Return `records` with those `found`, whose results are added to those of the same run."""
    runs = {record.identity: record for record in records}
    for record in found:
        results = dict(runs.get(record.identity, record).results)
        for label, numbers in record.results.items():
            results[label] = {**results.get(label, {}), **numbers}
        runs[record.identity] = record.model_copy(update={"results": results})
    return tuple(runs.values())

"""Where the numbers of a run go beside its own records: the three methods of a writer, and what
becomes of one that fails.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from detres.console import one_line

_METHODS = ("started", "numbers", "closed")


class Writer(Protocol):
    """What is told the numbers of a run while it is trained.

    What it raises stops no training: it is said, and the writer is left out from there on.
    """

    def started(self, config: Mapping[str, object], folder: Path, step: int) -> None:
        """Begin, before the first number.

        config: every setting, of plain values. folder: of the run, where a writer may keep a file.
        step: after which it goes on, 0 for a new run. Numbers of steps up to it are not told again;
        those of later steps, which a run that was killed may have told, are.
        """

    def numbers(self, kind: str, step: int, record: Mapping[str, float | None]) -> None:
        """Take one record of metrics.jsonl, once it is there.

        kind: "train", "eval" or "averaged". step: how many are done. record: name -> value, None
        for what could not be measured or is not finite.
        """

    def closed(self) -> None:
        """End: the run is over, was stopped, or failed; nothing is told afterwards."""


def require_writers(writers: Sequence[object]) -> None:
    """Raise TypeError for the first object that is no Writer."""
    for index, writer in enumerate(writers):
        lacks = [name for name in _METHODS if not callable(getattr(writer, name, None))]
        if isinstance(writer, type):
            name = writer.__name__
            raise TypeError(f"writers[{index}] is the class {name}: give an object, {name}(...)")
        if lacks:
            raise TypeError(
                f"writers[{index}], a {type(writer).__name__}, has no {lacks[0]}(): a writer has "
                f"{', '.join(_METHODS)}"
            )


def kinds_of(writers: Sequence[object]) -> list[str]:
    """Return the classes of writers by name, as a state keeps them."""
    return [type(writer).__name__ for writer in writers]


def lacking(before: object, now: Sequence[str]) -> list[str]:
    """Return the kinds that a state had before and that are not among those of now; raises
    ValueError for what is no list of names.
    """
    if not isinstance(before, list) or not all(isinstance(kind, str) for kind in before):
        raise ValueError(f"{before!r:.40} are no names of writers")
    return [kind for kind in dict.fromkeys(before) if kind not in now]


def told_no_more(kinds: Sequence[str]) -> str:
    """Return in words that a run goes on without writers that it had before."""
    return (
        f"its numbers went to {', '.join(kinds)} too, and no more from here on: in Python, resume "
        "takes writers"
    )


class Writers:
    """Several writers that are told the same, as a Writer is; say: called with a line about one
    that fails.
    """

    def __init__(self, writers: Sequence[Writer], say: Callable[[str], None]) -> None:
        self._writers, self._say = list(writers), say

    def started(self, config: Mapping[str, object], folder: Path, step: int) -> None:
        """Tell all that still work."""
        self._tell(lambda writer: writer.started(config, folder, step))

    def numbers(self, kind: str, step: int, record: Mapping[str, float | None]) -> None:
        """Tell all that still work, each a record of its own."""
        self._tell(lambda writer: writer.numbers(kind, step, dict(record)))

    def closed(self) -> None:
        """Tell all that still work."""
        self._tell(lambda writer: writer.closed())

    def _tell(self, tell: Callable[[Writer], None]) -> None:
        for writer in tuple(self._writers):
            try:
                tell(writer)
            except Exception as error:
                self._writers.remove(writer)
                said = one_line(f"{type(error).__name__}: {error}")
                self._say(
                    f"{type(writer).__name__} failed and is left out from here on, all numbers are "
                    f"in metrics.jsonl: {said}"
                )

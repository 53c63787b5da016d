"""skipped.txt: the images of a run that could not be read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from detres.engine.distributed import Group
from detres.files import write_text

NAMED = 4
"""Of images that could not be read, so many are named in a line."""

Say = Callable[[str], None]
"""Called with a line for the user."""


class SkippedImages:
    """The list at `path`, each name once, of the images that the processes of `group` could not
    read; the first process writes it.
    """

    def __init__(self, path: Path, group: Group) -> None:
        self.path, self.group = path, group
        self.listed: set[str] | None = None  # as the file has them, once it was read
        self.unlisted: list[str] = []  # of this process

    def add(self, files: Iterable[str], say: Say) -> None:
        """Write the names of `files` down, and say which are new; of several processes that waits
        for `list_of_all`.
        """
        if self.group.size > 1:
            self.unlisted += files
        else:
            self._list(files, say)

    def list_of_all(self, say: Say) -> None:
        """Write down what waits in all processes, which call this together."""
        for unlisted in self.group.gather(self.unlisted):
            self._list(unlisted, say)
        self.unlisted = []

    def _list(self, files: Iterable[str], say: Say) -> None:
        if not self.group.is_first:
            return
        if self.listed is None:
            there = self.path.is_file()
            self.listed = set(self.path.read_text(encoding="utf-8").splitlines() if there else ())
        new = [name for name in files if name not in self.listed]
        if new:
            self.listed.update(new)
            write_text(self.path, "".join(f"{name}\n" for name in sorted(self.listed)))
            more = f" and {len(new) - NAMED} more" if len(new) > NAMED else ""
            say(
                f"damaged, skipped: {', '.join(new[:NAMED])}{more} "
                f"({len(self.listed)} so far, listed in {self.path})"
            )

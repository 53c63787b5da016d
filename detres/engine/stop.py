"""Stopping between steps, on Ctrl-C or SIGTERM."""

from __future__ import annotations

import signal
import sys

from detres.console import write_line
from detres.engine.distributed import Group


class Interrupted(Exception):
    """Training was stopped by Ctrl-C or SIGTERM; the state after `step` steps is saved."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after step {step}")
        self.step = step


class StopSignals:
    """Turns SIGINT and SIGTERM into a request read between steps, of one process of `group` into
    one of all; a second Ctrl-C stops at once.
    """

    def __init__(self, group: Group) -> None:
        self.asked, self.group = False, group

    def __enter__(self) -> StopSignals:
        self.previous = {}
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self._ask)
        except ValueError:  # not the main thread: signals stay with whoever has them
            pass
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)

    def asked_anywhere(self) -> bool:
        """Return whether a stop was asked of any process of the group, all of which must ask."""
        self.asked = self.group.any(self.asked)
        return self.asked

    def raise_if_asked(self, step: int) -> None:
        """Raise Interrupted when a stop was asked of any process; `step` steps are done and
        saved.
        """
        if self.asked_anywhere():
            raise Interrupted(step)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        if not self.group.is_first:
            return
        write_line(
            "\nstopping when this step (and the evaluation, if one is under way) is done and saved;"
            " once more stops at once",
            sys.stderr,
        )

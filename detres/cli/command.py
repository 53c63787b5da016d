"""From arguments to work: what a command needs is imported once they are read, so that --help and
a wrong flag are answered at once.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterable

from detres.cli.flags import LONGEST_MESSAGE
from detres.cli.paths import missing
from detres.console import accept_any_text, shortened, write_line

WORK = "detres.commands"
"""Where the modules are that do what the commands are for."""


def carry_out(
    work: str,
    parser: argparse.ArgumentParser,
    arguments: argparse.Namespace,
    there: Iterable[str] = (),
) -> int:
    """Import what a command does, and do it; returns the exit status.

    there: flags whose paths must be there, see `missing`; one that is not is said, and nothing is
    imported.

    work: module of detres.commands and function, "train_det:train", called with the arguments.
    parser: of the command.
    """
    if fault := missing(arguments, there):
        accept_any_text()
        write_line(f"error: {shortened(fault, LONGEST_MESSAGE)}", sys.stderr)
        return 2
    module, _, function = work.partition(":")
    if os.environ.get("WORLD_SIZE"):  # what torch says in C++ of processes that wait is said here
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        ending = importlib.import_module(f"{WORK}.ending")
        does = getattr(importlib.import_module(f"{WORK}.{module}"), function)
    except KeyboardInterrupt:  # the libraries take seconds
        write_line("\nstopped", sys.stderr)
        return 130
    return ending.carried_out(does, parser, arguments)

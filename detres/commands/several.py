"""A command that several processes carry out together, started by torchrun."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from detres.engine.determinism import compute_alike
from detres.engine.distributed import WAITS_S, Group, LaunchError, is_launched, joined
from detres.runs.folder import NoRunError, is_saved, newest_run
from detres.runs.resumable import AUTO


@contextlib.contextmanager
def several(arguments: argparse.Namespace) -> Iterator[Group]:
    """Give the group that this process is of; --device becomes its own, and all but the first print
    nothing but errors. --deterministic takes effect.
    """
    if arguments.deterministic:
        compute_alike()
    group, arguments.device = joined(arguments.device, arguments.timeout or WAITS_S)
    with contextlib.ExitStack() as stack:
        if not group.is_first:
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield group
    group.close()


def require_one_process(command: str) -> None:
    """Raise LaunchError where `command`, which one process carries out, is one of several."""
    if is_launched():
        raise LaunchError(f"{command} runs on one process: start it without torchrun")


def settle_resume(arguments: argparse.Namespace, name: Callable[[], str], group: Group) -> None:
    """Put in the place of --resume auto the run folder to go on with, whose own settings then hold;
    None where nothing was saved in --out, or of a run called what `name` gives.

    What the first process of the group sees is what all do.
    """
    if arguments.resume != AUTO:
        return
    with group.together():
        folder = _saved(arguments.out, name()) if group.is_first else None
    folder = group.broadcast(folder)
    arguments.resume = None if folder is None else str(folder)
    if folder is not None:
        arguments.set, arguments.seed, arguments.out = [], None, None


def _saved(out: str | None, name: str) -> Path | None:
    if out is not None:
        return Path(out) if is_saved(Path(out)) else None
    with contextlib.suppress(NoRunError):
        return newest_run(name)
    return None

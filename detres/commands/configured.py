"""What the flags of a configuration come to: the settings, and the run to go on with."""

from __future__ import annotations

import argparse
import contextlib
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from detres.cli.flags import called_as, notice, resume_line_of
from detres.cli.paths import config_path
from detres.config import Section, load_config, with_overrides
from detres.detection.named_weights import weights_called
from detres.engine.determinism import compute_alike
from detres.runs.environment import first_arguments
from detres.runs.folder import (
    ENVIRONMENT,
    STATE,
    NoRunError,
    NothingSavedError,
    newest_run,
    saved_runs,
)
from detres.runs.place import RUNS, folders_called
from detres.runs.saved import OtherWingError, SavedRun
from detres.runs.settings import with_data_root

AnyConfig = TypeVar("AnyConfig", bound=Section)
AnySaved = TypeVar("AnySaved")

WINGS = {
    "detection": "train-det",
    "classification": "train-cls",
    "localisation": "train-loc",
}
"""Wing of a run -> the command that trains it."""


def read_config(path: Path, kind: type[AnyConfig], overrides: list[str]) -> AnyConfig:
    """Return a checked configuration; keys that have a new name are said, each in a line on
    stderr.
    """
    return load_config(path, kind, overrides, notice=notice)


def evaluated_by(arguments: argparse.Namespace, own: AnyConfig) -> AnyConfig:
    """Return the configuration to evaluate weights by, that of --cfg or their `own`, with --set."""
    if arguments.cfg:
        return read_config(config_path(arguments.cfg), type(own), arguments.set)
    if arguments.set:
        return with_overrides(own, arguments.set, arguments.weights[0], notice=notice)
    return own


def require_settings_of(arguments: argparse.Namespace, *sections: str) -> None:
    """Raise ValueError for a --set of another section of the configuration than these."""
    foreign = [setting for setting in arguments.set if not setting.startswith(sections)]
    if foreign:
        raise ValueError(
            f"--set {foreign[0]}: only {', '.join(f'{section}*' for section in sections)} say how "
            "weights are evaluated"
        )


def overrides_of(arguments: argparse.Namespace) -> list[str]:
    """Return the settings KEY=VALUE of the flags."""
    seed = [f"seed={arguments.seed}"] if arguments.seed is not None else []
    return [*arguments.set, *seed]


def config_from(arguments: argparse.Namespace, kind: type[AnyConfig], default: Path) -> AnyConfig:
    """Return the checked configuration of the flags, the data root settled."""
    config = read_config(config_path(arguments.cfg, default), kind, overrides_of(arguments))
    return config.model_copy(update={"data": with_data_root(config.data, arguments.data)})


def configured_name(arguments: argparse.Namespace, kind: type[Section], default: Path) -> str:
    """Return the name that the configuration of the flags gives a run."""
    return read_config(config_path(arguments.cfg, default), kind, arguments.set).name


def saved_run(
    arguments: argparse.Namespace,
    kind: type[Section],
    wing: str,
    *more: str,
    read: Callable[..., AnySaved] = SavedRun.read,
    name: str | None = None,
) -> AnySaved:
    """Return the run of --resume, with --set and --data where given; of a name, or for --resume
    alone, the one saved last, which is said: of those of that name, or called `name`, or as the
    configuration of --cfg, else of all.

    A run that was deterministic is so from here on, see _as_alike. wing: that it must be of. more:
    keys that its last.pt must have beside those of every run. read: what reads its folder.

    Raises what newest_run and SavedRun.read raise, with the command that does what was wanted;
    NoRunError where no run of the wing was saved.
    """
    if name is None and arguments.cfg:
        name = read_config(config_path(arguments.cfg), kind, []).name
    given = arguments.resume or ""
    if given and _is_name(given):
        given, name = "", given
    folder = Path(given)

    def read_run(folder: Path) -> AnySaved:
        return read(
            folder, kind, wing=wing, keys=more, overrides=arguments.set, root=arguments.data
        )

    try:
        if not given and name is None:
            return _as_alike(_saved_last(read_run, wing), arguments)
        if not given:
            folder = newest_run(name)
            notice(f"resuming {folder}")
        return _as_alike(read_run(folder), arguments)
    except NothingSavedError as error:
        begun = first_arguments(error.folder / ENVIRONMENT)
        again = "the command that began it"
        if begun is not None:
            again = shlex.join([*shlex.split(called_as(WINGS[wing])), *begun])
        raise ValueError(f"{error}; start again with {again}, which uses the same folder") from None
    except OtherWingError as error:
        if error.wing not in WINGS:
            raise
        line = resume_line_of(WINGS[error.wing])(folder, {})
        raise ValueError(f"{error}; it goes on with: {line}") from None


def _as_alike(saved: AnySaved, arguments: argparse.Namespace) -> AnySaved:
    """The run; what is computed from here on is deterministic where it was, which is said, unless
    --deterministic or --no-deterministic is given.
    """
    if arguments.deterministic is None and saved.computes_alike:
        compute_alike()
        notice(f"{saved.folder} goes on with --deterministic; --no-deterministic ends that")
    return saved


def _is_name(given: str) -> bool:
    """Whether --resume gives no path but the name of a run."""
    path = Path(given)
    return path.name == given and not path.exists() and bool(folders_called(given))


def require_free(out: Path, names: Iterable[str]) -> None:
    """Raise ValueError where --out is a file, or a folder with one of `names` in it."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    taken = [name for name in names if (out / name).exists()]
    if taken:
        raise ValueError(
            f"--out {out} already holds {taken[0]}; give another folder, nothing is overwritten"
        )


def _saved_last(read_run: Callable[[Path], AnySaved], wing: str) -> AnySaved:
    """The run of a wing that was saved last."""
    for folder in saved_runs():
        with contextlib.suppress(OtherWingError):
            saved = read_run(folder)
            notice(f"resuming {folder}, the newest run of {wing}")
            return saved
    raise NoRunError(f"no run of {wing} to resume: no {STATE} in the folders of {RUNS}")


def weights_of(given: str, *, offline: bool) -> str:
    """Return the weights file of --weights; of a run folder, a run by its name, or a published
    detector, the one that weights_called gives, which is then said. offline: nothing is downloaded.
    Raises what weights_called raises.
    """
    chosen = weights_called(given, offline=offline, notice=notice)
    if str(chosen) != str(Path(given)):
        notice(f"{given}: {chosen}")
        return str(chosen)
    return given

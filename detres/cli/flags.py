"""What the commands share: their common flags, and how they end."""

from __future__ import annotations

import argparse
import contextlib
import errno
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

import torch

from detres.config import Section, load_config, with_overrides
from detres.console import accept_any_text, one_line, printable, shortened, write_line
from detres.detection.annotations import NoTruthError
from detres.detection.data.read import NoSplitError
from detres.engine.flight_recorder import NonFiniteLossError
from detres.engine.stop import Interrupted
from detres.files import TakenFolderError
from detres.images.locate import OutsideFolderError
from detres.network import NetworkWeightsError
from detres.runs.environment import first_arguments
from detres.runs.fingerprint import DataChangedError
from detres.runs.folder import (
    ENVIRONMENT,
    NoRunError,
    NothingSavedError,
    RunFolderError,
    newest_run,
    weights_in,
)
from detres.runs.run import ResumeLine
from detres.runs.saved import MAY_CHANGE, OtherWingError, SavedRun
from detres.runs.settings import DataRootError, ShapesRootError, with_data_root
from detres.user_files import expanded

AnyConfig = TypeVar("AnyConfig", bound=Section)
AnySaved = TypeVar("AnySaved")

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = next(
    folder
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs")  # installed, in a checkout
    if folder.is_dir()
)
DETECTION_CONFIG = CONFIGS / "shapes_r18.yaml"
CLASSIFICATION_CONFIG = CONFIGS / "cls_shapes_r18.yaml"
LOCALISATION_CONFIG = CONFIGS / "shapes_loc_r18.yaml"

_LONGEST_MESSAGE = 1000
"""Characters."""

_FLAG = re.compile(r"--[a-z-]+")

_LESS_MEMORY = (
    "a smaller train.batch_size (eval.batch_size where it evaluates), smaller images or fewer "
    "data.workers need less"
)
_FULL = "free some space, or give another folder"
_BY_ERRNO = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "the file system or a limit allows no larger file: give another folder",
    errno.EROFS: "give a folder that can be written",
    errno.EACCES: "give one that this user may use, or its rights",
    errno.EPERM: "give one that this user may use, or its rights",
    errno.EIO: "the disk, or the network behind it, does not answer",
    errno.ESTALE: "the disk, or the network behind it, does not answer",
    errno.EMFILE: "more files are open than `ulimit -n` allows: raise it, or data.workers=0",
    errno.ENOMEM: _LESS_MEMORY,
}
"""What can be done about what the system says of a file."""

WINGS = {
    "detection": "train-det",
    "classification": "train-cls",
    "localisation": "train-loc",
}
"""Wing of a run -> the command that trains it."""

HINTS = {
    RunFolderError: (
        "give another folder with --out; --resume DIR continues a run",
        "give another folder with --out",
    ),
    NoRunError: ("give the folder, --resume DIR",),
    DataChangedError: (
        "put them back as they were, or give --resume DIR --accept-data-change to go on with them "
        "as they are now",
    ),
    MemoryError: (_LESS_MEMORY,),
    torch.OutOfMemoryError: (_LESS_MEMORY,),
    DataRootError: (
        "give --data FOLDER, or data.root in the configuration, or the environment variable "
        "DETRES_DATA",
    ),
    ShapesRootError: (
        "leave --data out, or name a configuration of your data with --cfg",
        "leave --data out",
    ),
    NoTruthError: (
        "with --weights, --split test --submission DIR writes what its test server takes",
    ),
    NoSplitError: ("a configuration that says where it is goes with --cfg, or --set",),
    TakenFolderError: (
        "give another folder with --submission",
        "give another folder with --out",
    ),
    OutsideFolderError: (
        "--set data.outside=allow reads such files all the same",
        "data.outside=allow in the configuration reads such files all the same",
    ),
    NonFiniteLossError: (
        "a smaller train.lr or train.clip_grad_norm, both of which --resume --set takes, or a "
        "longer train.warmup_steps usually cures it",
        "a smaller train.lr, a train.clip_grad_norm or a longer train.warmup_steps usually cures "
        "it",
    ),
}
"""What flags can do about an error of the library, which knows none; the first hint whose flags the
command has.
"""


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors repeat what the user gave as `write_line` would, and no more of it than
    a few lines hold.
    """

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and end with status 2."""
        accept_any_text()
        super().error(printable(shortened(one_line(message), _LONGEST_MESSAGE)))


def add_config_flags(parser: argparse.ArgumentParser, default: Path = DETECTION_CONFIG) -> None:
    """Add --cfg, --set, --data and --device."""
    parser.add_argument(
        "--cfg", type=expanded, metavar="FILE", help=f"YAML configuration (default: {default.name})"
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        default=[],
        help="override configuration keys, e.g. train.lr=0.01",
    )
    parser.add_argument(
        "--data",
        type=expanded,
        metavar="DIR",
        help="data folder (default: data.root of the configuration, then $DETRES_DATA)",
    )
    add_device_flag(parser)


def add_training_flags(parser: argparse.ArgumentParser, default: Path) -> None:
    """Add the flags of a configuration, --seed, --out and --resume."""
    add_config_flags(parser, default)
    add_seed_flag(parser)
    parser.add_argument(
        "--out",
        type=expanded,
        metavar="DIR",
        help="run folder (default: runs/NAME, else the next free runs/NAME-2, ...)",
    )
    parser.add_argument(
        "--resume",
        type=expanded,
        metavar="DIR",
        nargs="?",
        const="",
        help="continue a run (default: the newest of runs/NAME, -2, ...)",
    )
    parser.add_argument(
        "--accept-data-change",
        action="store_true",
        help="with --resume: go on although the data are not those that the run was trained on",
    )


def add_seed_flag(parser: argparse.ArgumentParser) -> None:
    """Add --seed."""
    parser.add_argument("--seed", type=int, help="overrides seed of the configuration")


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument(
        "--device",
        type=usable_device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="default: %(default)s",
    )


def usable_device(name: str) -> torch.device:
    """Return the device; raises argparse.ArgumentTypeError where there is none of that name."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" makes tensors, without values
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise argparse.ArgumentTypeError(
            f"{name} cannot be used: {str(error).splitlines()[0]}"
        ) from None
    return device


def require_resumable(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, *more: str
) -> None:
    """End with a usage error where flags of a new run are given to a resumed one.

    more: such flags beside --seed and --out.
    """
    if arguments.resume is None:
        if arguments.accept_data_change:
            parser.error("--accept-data-change goes with --resume")
        return
    given = ("--seed", "--out", *more)
    flags = given_of(arguments, given)
    changed = [setting for setting in arguments.set if setting.partition("=")[0] not in MAY_CHANGE]
    flags += [f"--set {setting}" for setting in changed]
    if flags:
        parser.error(
            f"--resume continues with the run's own settings, all but {', '.join(MAY_CHANGE)}; "
            f"{', '.join(flags)} starts a new run"
        )
    if arguments.resume and arguments.cfg:
        parser.error(
            "--resume DIR continues with the run's own settings; --cfg goes with --resume alone, "
            "to say which run's name"
        )


def config_path(cfg: str | None, default: Path = DETECTION_CONFIG) -> Path:
    """Return the file of --cfg, or `default`; .yaml may be left out, and those that come with the
    toolkit are found from any directory.
    """
    path = Path(cfg) if cfg else default
    for named in (path, path.with_name(f"{path.name}.yaml")):
        if named.exists():
            return named
        if (CONFIGS / named.name).exists() and path.parent.name in ("", "configs"):
            return CONFIGS / named.name
    return path


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


def given_of(arguments: argparse.Namespace, flags: Iterable[str]) -> list[str]:
    """Return those of `flags` that were given."""
    values = {flag: getattr(arguments, flag.removeprefix("--").replace("-", "_")) for flag in flags}
    return [flag for flag, value in values.items() if value is not None and value != []]


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


def saved_run(
    arguments: argparse.Namespace,
    kind: type[Section],
    default: Path,
    wing: str,
    *more: str,
    read: Callable[..., AnySaved] = SavedRun.read,
    name: str | None = None,
) -> AnySaved:
    """Return the run of --resume, with --set and --data where given.

    name: of the runs among which --resume alone takes the newest; by default the configuration's.

    wing: that it must be of. more: keys that its last.pt must have beside those of every run. read:
    what reads its folder. Raises what newest_run and SavedRun.read raise, with the command that
    does what was wanted.
    """
    folder, root = Path(arguments.resume or ""), arguments.data
    try:
        if not arguments.resume:
            if name is None:
                name = read_config(config_path(arguments.cfg, default), kind, []).name
            folder = newest_run(name)
        return read(folder, kind, wing=wing, keys=more, overrides=arguments.set, root=root)
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


def called_as(command: str) -> str:
    """Return `command` (train-det) in the form the user called it: "python tools/train_det.py",
    however that file was named, or "detres train-det".
    """
    program = sys.argv[0]
    if Path(program).name == f"{command.replace('-', '_')}.py":
        return f"python {shlex.quote(program)}"
    return f"detres {command}"


def resume_line_of(command: str) -> ResumeLine:
    """Return what gives the command line that goes on with a run folder, in the form the user
    called `command` (train-det).
    """
    program = called_as(command)

    def line(folder: Path, settings: dict[str, float]) -> str:
        changed = " ".join(f"{key}={value:g}" for key, value in settings.items())
        resumed = f"{program} --resume {shlex.quote(str(folder))}"
        return f"{resumed} --set {changed}" if changed else resumed

    return line


class Ending:
    """How a command ended; status: its exit status."""

    status = 0


@contextlib.contextmanager
def ending(parser: argparse.ArgumentParser) -> Iterator[Ending]:
    """Turn how the block ends into an exit status, and an error into a line on stderr.

    parser: of the command; hints name no flag that it does not have. Status 0, 2 after bad input, 1
    after a non-finite loss, the end of the memory or of a worker, 130 after Ctrl-C. Any other error
    is a fault of ours and goes on, with a line that asks for a report.
    """
    end = Ending()
    accept_any_text()
    try:
        yield end
    except Interrupted:  # what to do next was printed where the run folder is known
        end.status = 130
    except KeyboardInterrupt:
        write_line("\nstopped", sys.stderr)
        end.status = 130
    except (ValueError, OSError) as error:
        write_line(f"error: {_message(error, parser)}", sys.stderr)
        end.status = 2
    except (NonFiniteLossError, MemoryError, torch.OutOfMemoryError) as error:
        write_line(f"error: {_message(error, parser)}", sys.stderr)
        end.status = 1
    except RuntimeError as error:
        if "DataLoader worker" in str(error):
            write_line(
                f"error: {error}. Too little memory is the usual cause: try a smaller data.workers",
                sys.stderr,
            )
        elif _NO_MEMORY in str(error):
            write_line(f"error: {_message(MemoryError(_asked_for(error)), parser)}", sys.stderr)
        else:
            error.add_note(_REPORT)
            raise
        end.status = 1
    except Exception as error:
        error.add_note(_REPORT)
        raise


_REPORT = (
    "This is a fault of detres, not of what it was given: please report it with the lines above."
)

_NO_MEMORY = "DefaultCPUAllocator"
"""In the RuntimeError that PyTorch has for a processor without memory."""


def _asked_for(error: RuntimeError) -> str:
    """How much memory PyTorch's allocator did not get."""
    asked = re.search(r"allocate (\d+) bytes", str(error))
    return f"{int(asked[1]) / 2**30:.1f} GiB were asked for" if asked else ""


def _message(error: Exception, parser: argparse.ArgumentParser) -> str:
    """The message, with what flags can do about it; of an error in a loader's worker, whose
    traceback PyTorch puts into it, the message the worker raised.
    """
    text = str(error)
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].partition(": ")[2]
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        said = next(iter(text.splitlines()), "")
        text = "the memory is used up" + (f" ({said.rstrip('.')})" if said else "")
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    text = "\n".join(shortened(line, _LONGEST_MESSAGE) for line in text.splitlines())
    hints = next((HINTS[kind] for kind in type(error).__mro__ if kind in HINTS), ())
    if isinstance(error, OSError) and not hints and error.errno in _BY_ERRNO:
        hints = (_BY_ERRNO[error.errno],)
    flags = set(_FLAG.findall(parser.format_help()))
    if isinstance(error, NetworkWeightsError) and "--set" in flags:
        settings = " ".join(f"{key}={value}" for key, value in error.keys.items())
        return f"{text.removesuffix('.')}. Give --set {settings}"
    hint = next((hint for hint in hints if flags >= set(_FLAG.findall(hint))), None)
    return f"{text}: {hint}" if hint else text


def weights_of(given: str) -> str:
    """Return the weights file of --weights, of a run folder the one that weights_in chooses, which
    is then said; raises CheckpointError for a folder without one.
    """
    chosen = weights_in(Path(given))
    if str(chosen) != str(Path(given)):
        notice(f"{given}: its {chosen.name}")
        return str(chosen)
    return given


def say(line: str) -> None:
    """Print a line at once."""
    write_line(line)


def notice(line: str) -> None:
    """Print a line for the user to know, on stderr."""
    write_line(f"note: {line}", sys.stderr)

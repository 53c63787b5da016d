"""What the commands share: their parser, their common flags, and what they say."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from detres import __version__
from detres.cli import SHORT
from detres.cli.advice import CLASSIFICATION, DETECTION, LOCALISATION, Advice, Settings
from detres.console import accept_any_text, one_line, printable, shortened, write_line
from detres.runs.resumable import AUTO, MAY_CHANGE
from detres.user_files import expanded

_PACKAGE = Path(__file__).resolve().parents[1]
CONFIGS = next(
    folder
    for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs")  # installed, in a checkout
    if folder.is_dir()
)
DETECTION_CONFIG = CONFIGS / "shapes_r18.yaml"
CLASSIFICATION_CONFIG = CONFIGS / "cls_shapes_r18.yaml"
LOCALISATION_CONFIG = CONFIGS / "shapes_loc_r18.yaml"

OF_THE_DATA = f"with --data chosen from the data, else {DETECTION_CONFIG.name}"
"""What is taken without --cfg where a folder is enough."""

_WORDS = {
    DETECTION_CONFIG: DETECTION,
    CLASSIFICATION_CONFIG: CLASSIFICATION,
    LOCALISATION_CONFIG: LOCALISATION,
}

LONGEST_MESSAGE = 1000
"""Characters."""

_NUMBER = re.compile(r"-\.?\d")
_ANSWERED = {"-h", "--help", "--version"}
"""Flags that are answered whatever else is given."""


class _Unknown(NamedTuple):
    """What a command does not have: its name, its value if it has one, and both as given."""

    name: str
    value: str | None
    given: str


class CommandParser(argparse.ArgumentParser):
    """A parser whose errors repeat what the user gave as `write_line` would, and no more of it than
    a few lines hold; of a flag that it does not have they say what was probably meant.

    Flags are not abbreviated: one that is added later would make two of one. settings: of
    detres.cli.advice, what its --set takes.
    """

    def __init__(self, **options: object) -> None:
        super().__init__(allow_abbrev=False, **options)
        self.settings = Settings()
        self.add_argument("--version", action="version", version=f"detres {__version__}")

    def error(self, message: str) -> NoReturn:
        """Print the message, in a line, and end with status 2."""
        accept_any_text()
        line = printable(shortened(one_line(message), LONGEST_MESSAGE))
        self.exit(2, f"{self.prog}: error: {line}\n")

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Return the arguments; flags that there are not end with an error before others, which may
        come of them.
        """
        given = sys.argv[1:] if args is None else [*args]
        if unknown := self._unknown_flags(given):
            self._end_with(unknown)
        arguments, unused = self.parse_known_args(given, namespace)
        if unused:
            self.unexpected(*unused)
        return arguments

    def flags(self) -> set[str]:
        """Return all that it has, as "--data"."""
        return {flag for flag in self._option_string_actions if flag.startswith("--")}

    def unexpected(self, *values: str) -> NoReturn:
        """End with an error: no flag and no argument takes these values."""
        self._end_with([_Unknown(*_named(value), value) for value in values])

    def _unknown_flags(self, given: list[str]) -> list[_Unknown]:
        given = given[: given.index("--")] if "--" in given else given
        if _ANSWERED & {*given}:
            return []
        unknown = []
        for token, following in zip(given, [*given, "--"][1:], strict=True):
            name, value = _split(token)
            if not _is_flag(token) or name in self._option_string_actions:
                continue
            if value is None and not _is_flag(following):
                unknown.append(_Unknown(name, following, f"{token} {following}"))
            else:
                unknown.append(_Unknown(name, value, token))
        return unknown

    def _end_with(self, unknown: list[_Unknown]) -> NoReturn:
        """End with an error that says what was meant, where that can be told."""
        takes_values = any(not action.option_strings for action in self._actions)
        flags = [*self._option_string_actions, *(["{}"] if takes_values else [])]
        advice = Advice(flags, self.settings)
        meant = [advice.meant_by(each.name, each.value) for each in unknown]
        answers = " ".join(dict.fromkeys(filter(None, meant)))
        given = shortened(" ".join(each.given for each in unknown), LONGEST_MESSAGE // 2)
        said = f"did you mean {answers}?" if answers else "--help lists the flags"
        self.error(f"unrecognized arguments: {given}; {said}")


def _is_flag(token: str) -> bool:
    """Whether argparse takes it for a flag, not for a value."""
    return len(token) > 1 and token.startswith("-") and not _NUMBER.match(token)


def _named(value: str) -> tuple[str, str | None]:
    """What a value that stands alone is for, "" where that is not seen, and its value."""
    if "=" in value:
        return _split(value)
    path = Path(value)
    return "--weights" if path.is_file() else "--data" if path.is_dir() else "", value


def _split(token: str) -> tuple[str, str | None]:
    """The name of --flag=value or name=value and the value, None without."""
    name, equals, value = token.partition("=")
    return name, value if equals else None


def add_config_flags(
    parser: argparse.ArgumentParser,
    default: Path = DETECTION_CONFIG,
    *,
    without: str | None = None,
) -> None:
    """Add --cfg, --set, --data and --device; without: what is taken where --cfg is not given."""
    add_data_flags(parser, default, without=without)
    add_device_flag(parser)


def add_data_flags(
    parser: argparse.ArgumentParser,
    default: Path = DETECTION_CONFIG,
    *,
    without: str | None = None,
) -> None:
    """Add --cfg, --set and --data; without: as add_config_flags has it."""
    parser.settings = _WORDS[default]
    parser.add_argument(
        "--cfg",
        type=expanded,
        metavar="FILE",
        help=f"YAML configuration (default: {without or default.name})",
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="override configuration keys, e.g. train.lr=0.01",
    )
    files = "folder, data.yaml or COCO JSON" if default == DETECTION_CONFIG else "folder"
    parser.add_argument(
        "--data",
        type=expanded,
        metavar="PATH",
        help=f"data {files} (default: data.root of the configuration, then $DETRES_DATA)",
    )


def add_training_flags(
    parser: argparse.ArgumentParser, default: Path, *, without: str | None = None
) -> None:
    """Add the flags of a configuration, --seed, --out and --resume; without: as add_config_flags
    has it.
    """
    add_config_flags(parser, default, without=without)
    add_data_argument(parser)
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
        metavar="RUN",
        nargs="?",
        const="",
        help="continue a run, its folder or name (default: the one saved last; with --cfg or "
        "--data, of those of its name); auto: whatever the run folder holds, --out or of that "
        "name, else start",
    )
    parser.add_argument(
        "--timeout",
        type=seconds_given,
        metavar="S",
        help="seconds that several processes (torchrun) wait for each other before the late one is "
        "named (default 1800)",
    )
    parser.add_argument(
        "--deterministic",
        action=argparse.BooleanOptionalAction,
        help="equal weights for equal seeds, on a GPU too, or an error that names the operation "
        "(default: no; with --resume: as the run was)",
    )
    parser.add_argument(
        "--accept-data-change",
        action="store_true",
        help="with --resume: go on although the data are not those that the run was trained on",
    )


def add_probe_flag(parser: argparse.ArgumentParser) -> None:
    """Add --probe-memory."""
    parser.add_argument(
        "--probe-memory",
        action="store_true",
        help="before the first step, say how much memory the largest batch takes",
    )


def seconds_given(text: str) -> float:
    """Return the seconds of --timeout; raises argparse.ArgumentTypeError."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 10**9:
        raise argparse.ArgumentTypeError(f"{text!r:.40}: expected seconds, such as 1800")
    return seconds


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    """Add DATA, for `settle_data`."""
    parser.add_argument(
        "data_first", metavar="DATA", type=expanded, nargs="?", help="the same as --data DATA"
    )


def add_seed_flag(parser: argparse.ArgumentParser) -> None:
    """Add --seed."""
    parser.add_argument("--seed", type=int, help="overrides seed of the configuration")


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """Add --device, a name; `carry_out` makes a device of it."""
    parser.add_argument(
        "--device", default="auto", help="default: cuda where there is one, else cpu"
    )


def add_precision_flag(parser: argparse.ArgumentParser) -> None:
    """Add --precision, None where it is not given."""
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "auto"),
        help="of a detector's networks; bf16 takes about half the time where the processor or GPU "
        "has instructions for it, which auto finds out (default: the run's eval.precision, fp32)",
    )


def add_offline_flag(parser: argparse.ArgumentParser) -> None:
    """Add --offline."""
    parser.add_argument(
        "--offline",
        action="store_true",
        help="download nothing: of published weights, only take what was downloaded before",
    )


def settle_data(parser: CommandParser, arguments: argparse.Namespace) -> None:
    """Put DATA where --data is; end with a usage error where both are given, and for a setting
    written as DATA, `epochs=3`.
    """
    given = arguments.data_first
    if given is None:
        return
    if arguments.data is not None:
        parser.error(f"DATA, {given}, and --data {arguments.data} say the same: give one of them")
    if "=" in given and not Path(given).exists():
        parser.unexpected(given)
    arguments.data = given


def data_to_be_there(arguments: argparse.Namespace) -> list[str]:
    """Return --data where it must be there: shapes are drawn into a folder that may be new, and the
    data of a run to resume may be of either kind.
    """
    is_drawn = arguments.cfg is not None or any(
        setting.replace(" ", "") == "data.format=shapes" for setting in arguments.set
    )
    return [] if is_drawn or getattr(arguments, "resume", None) is not None else ["--data"]


def require_resumable(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, *more: str
) -> None:
    """End with a usage error where flags of a new run are given to a resumed one.

    more: such flags beside --seed and --out.
    """
    if arguments.resume in (None, AUTO):
        if arguments.accept_data_change and arguments.resume is None:
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


def given_of(arguments: argparse.Namespace, flags: Iterable[str]) -> list[str]:
    """Return those of `flags` that were given."""
    values = {flag: getattr(arguments, flag.removeprefix("--").replace("-", "_")) for flag in flags}
    return [flag for flag, value in values.items() if value is not None and value != []]


def called_as(command: str) -> str:
    """Return `command` (train-det) in the form the user called it: "python tools/train_det.py",
    however that file was named, "detres train" or "detres train-det".
    """
    program = sys.argv[0]
    if Path(program).name == f"{command.replace('-', '_')}.py":
        return f"python {shlex.quote(program)}"
    if SHORT.get(program.removeprefix("detres ")) == command:
        return program
    return f"detres {command}"


def resume_line_of(command: str) -> Callable[[Path, dict[str, float]], str]:
    """Return what gives the command line that goes on with a run folder, in the form the user
    called `command` (train-det).
    """
    program = called_as(command)

    def line(folder: Path, settings: dict[str, float]) -> str:
        changed = " ".join(f"{key}={value:g}" for key, value in settings.items())
        resumed = f"{program} --resume {shlex.quote(str(folder))}"
        return f"{resumed} --set {changed}" if changed else resumed

    return line


def say(line: str) -> None:
    """Print a line at once."""
    write_line(line)


def notice(line: str) -> None:
    """Print a line for the user to know, on stderr."""
    write_line(f"note: {line}", sys.stderr)

"""List the settings with what they take, their defaults and what they mean: `settings train.lr`."""

from __future__ import annotations

import difflib

from detres.cli import train_cls, train_det, train_loc
from detres.cli.command import carry_out
from detres.cli.flags import CommandParser
from detres.cli.setting_names import keys_of
from detres.console import shown

SECTIONS = {
    "train-det": "DetectionConfig",
    "train-cls": "ClassificationConfig",
    "train-loc": "LocalisationConfig",
}
"""Command -> the Section that configures it."""

OF = tuple(SECTIONS)

_PARSERS = {"train-det": train_det, "train-cls": train_cls, "train-loc": train_loc}


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, and list; returns the exit status."""
    parser = CommandParser(
        description="list what --set and configurations take: values, default, meaning"
    )
    parser.add_argument(
        "keys",
        metavar="KEY",
        nargs="*",
        help="whole or a part, such as train.lr, model.roi or weight (default: all)",
    )
    parser.add_argument("--of", choices=OF, default=OF[0], help="default: %(default)s")
    parser.add_argument(
        "--markdown", action="store_true", help="those of all three as docs/settings.md has them"
    )
    arguments = parser.parse_args(argv)
    if arguments.markdown and arguments.keys:
        parser.error("--markdown writes all settings: leave out KEY")
    for key in arguments.keys:
        if not any(key in name for name in keys_of(SECTIONS[arguments.of])):
            hint = _what_was_meant(key, arguments.of)
            parser.error(f"no setting of {arguments.of} has {shown(key)} in its name{hint}")
    return carry_out("settings:show", parser, arguments)


def _what_was_meant(key: str, of: str) -> str:
    """A hint to the command that has such a setting, or a flag of that name, or to the setting of
    `of` that is nearest to it.
    """
    for name, section in SECTIONS.items():
        if any(key in known for known in keys_of(section)):
            return f"; {name} has: --of {name}"
    for name, command in _PARSERS.items():
        if f"--{key}" in command.make_parser().flags():
            return f"; --{key} is a flag of {name}, see its --help"
    keys = keys_of(SECTIONS[of])
    last = {name.rpartition(".")[2]: name for name in reversed(keys)}
    near = difflib.get_close_matches(key, [*keys, *last], n=1)
    return f"; did you mean {last.get(near[0], near[0])}?" if near else ""

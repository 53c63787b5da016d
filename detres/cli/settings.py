"""List the settings with what they take, their defaults and what they mean: `settings train.lr`."""

from __future__ import annotations

from detres.cli.command import carry_out
from detres.cli.flags import CommandParser

OF = ("train-det", "train-cls", "train-loc")
"""The commands whose configurations differ."""


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
    return carry_out("settings:show", parser, arguments)

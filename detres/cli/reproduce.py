"""The reproduction ledger: `reproduce --table 7` lists the cells of a table of the paper, `--run`
measures what is missing, and both keep docs/measured.json and docs/reproduction.md up to date.
"""

from __future__ import annotations

from detres.cli.command import carry_out
from detres.cli.flags import CONFIGS, CommandParser
from detres.reproduction.tables import TITLES
from detres.user_files import expanded


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, list, run; returns the exit status."""
    parser = CommandParser(
        description="list the paper's tables: its numbers, ours, what measures them and what is "
        "still to be measured"
    )
    parser.add_argument(
        "--table",
        type=int,
        choices=TITLES,
        nargs="+",
        default=list(TITLES),
        metavar="N",
        help=f"of the paper, {min(TITLES)} to {max(TITLES)} (default: all)",
    )
    parser.add_argument(
        "--data",
        type=expanded,
        metavar="ROOT",
        help="folder that holds the data folders (VOCdevkit, COCO, ...), or the one of a table "
        "(default: the working directory)",
    )
    parser.add_argument(
        "--runs",
        type=expanded,
        metavar="DIR",
        help="where run folders are looked for and made (default: runs)",
    )
    parser.add_argument(
        "--docs",
        type=expanded,
        metavar="DIR",
        default=str(CONFIGS.parent / "docs"),
        help="folder of measured.json and reproduction.md (default: the checkout's)",
    )
    parser.add_argument("--run", action="store_true", help="run what is missing, or unfinished")
    parser.add_argument("--dry-run", action="store_true", help="run nothing and write nothing")
    parser.add_argument("--device", help="of the commands (default: cuda where there is one)")
    arguments = parser.parse_args(argv)
    return carry_out("reproduce:reproduce", parser, arguments)

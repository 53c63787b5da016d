"""Look for what is wrong with annotated data before training on them: `check-data --cfg
configs/coco_r101.yaml --data COCO --out check`.
"""

from __future__ import annotations

from detres.cli.command import carry_out
from detres.cli.flags import (
    DETECTION_CONFIG,
    OF_THE_DATA,
    CommandParser,
    add_data_argument,
    add_data_flags,
    data_to_be_there,
    settle_data,
)
from detres.user_files import expanded


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, look, write; returns the exit status."""
    parser = CommandParser(
        description="look for what is wrong with annotated data",
        epilog="exit status: 0 no errors found, or all mended in the copy; 1 errors found; "
        "2 bad input",
    )
    add_data_flags(parser, DETECTION_CONFIG, without=OF_THE_DATA)
    parser.set_defaults(seed=None, time=None, init_from=None, offline=False, device="cpu")
    parser.add_argument(
        "--out",
        type=expanded,
        metavar="DIR",
        help="write a page with pictures of what was found (DIR/index.html) and DIR/check.json",
    )
    parser.add_argument(
        "--fix",
        type=expanded,
        metavar="DIR",
        help="write a clean copy of the data into a new folder, as COCO; the data stay as they are",
    )
    add_data_argument(parser)
    arguments = parser.parse_args(argv)
    settle_data(parser, arguments)
    return carry_out("check_data:check", parser, arguments, ["--cfg", *data_to_be_there(arguments)])

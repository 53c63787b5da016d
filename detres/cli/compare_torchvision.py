"""Train our detector and one made of torchvision's parts by the same loop:
`compare-torchvision --cfg configs/bccd_r18.yaml --data DIR`.
"""

from __future__ import annotations

from detres.cli.command import carry_out
from detres.cli.flags import CommandParser, add_config_flags, add_seed_flag
from detres.user_files import expanded


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, and train both; returns the exit status."""
    parser = CommandParser(
        description="train our detector and one made of torchvision's parts by the same loop"
    )
    add_config_flags(parser)
    add_seed_flag(parser)
    parser.add_argument(
        "--out",
        type=expanded,
        metavar="DIR",
        help="folder for both runs (default: runs/NAME-comparison)",
    )
    arguments = parser.parse_args(argv)
    return carry_out("compare_torchvision:train", parser, arguments, ("--cfg",))

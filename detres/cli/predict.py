"""Detect in images and draw what was found, or classify them:
`predict --weights FILE IMAGE_OR_FOLDER... --out DIR`.
"""

from __future__ import annotations

from detres.cli.command import carry_out
from detres.cli.flags import CommandParser, add_device_flag
from detres.detection.choices import DRAWN_SCORE
from detres.user_files import expanded


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, detect or classify, write; returns the exit status."""
    parser = CommandParser(
        description="detect in images and draw what was found, or classify them, by what the "
        "weights are of"
    )
    parser.add_argument("images", metavar="IMAGE_OR_FOLDER", type=expanded, nargs="+")
    parser.add_argument(
        "--weights",
        type=expanded,
        metavar="FILE",
        required=True,
        help="best.safetensors (detector) or weights.safetensors (classifier) of a run",
    )
    parser.add_argument(
        "--out",
        type=expanded,
        metavar="DIR",
        default="predictions",
        help="where pictures and predictions.json go (default: %(default)s)",
    )
    parser.add_argument(
        "--score",
        type=float,
        help=f"lowest score that is drawn (default: {DRAWN_SCORE}); the file has all",
    )
    add_device_flag(parser)
    arguments = parser.parse_args(argv)
    return carry_out("predict:predict", parser, arguments)

"""Say what is at fault in the step at which a training failed: `replay runs/NAME/bundle-step-N`."""

from __future__ import annotations

from detres.cli.command import carry_out
from detres.cli.flags import CommandParser, add_device_flag
from detres.user_files import expanded


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, and replay; returns the exit status."""
    parser = CommandParser(
        description="compute the step at which a training failed once more, image by image, and "
        "say which image, box, loss term or layer is at fault"
    )
    parser.add_argument(
        "bundle",
        metavar="BUNDLE",
        type=expanded,
        help="the folder that the training wrote: runs/NAME/bundle-step-N",
    )
    add_device_flag(parser)
    arguments = parser.parse_args(argv)
    return carry_out("replay:replay", parser, arguments, ["bundle"])

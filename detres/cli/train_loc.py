"""Train a localiser: `train-loc --cfg configs/imagenet_loc_r101.yaml --data ILSVRC`; without
arguments, on the embedded shapes.
"""

from __future__ import annotations

from detres.cli.command import carry_out
from detres.cli.flags import (
    LOCALISATION_CONFIG,
    CommandParser,
    add_offline_flag,
    add_training_flags,
    require_resumable,
    settle_data,
)


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, and train; returns the exit status."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    settle_data(parser, arguments)
    require_resumable(parser, arguments)
    return carry_out("train_loc:train", parser, arguments, ("--cfg", "--resume"))


def make_parser() -> CommandParser:
    """Return the parser of this command's flags."""
    parser = CommandParser(
        description="train a localiser: a per-class RPN, or R-CNN on its proposals"
    )
    add_training_flags(parser, LOCALISATION_CONFIG)
    add_offline_flag(parser)
    return parser

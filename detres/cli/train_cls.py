"""Train a classifier: `train-cls --cfg configs/cifar10_resnet20.yaml --data CIFAR`; without
arguments, on the embedded shapes.
"""

from __future__ import annotations

from detres.cli.command import carry_out
from detres.cli.flags import (
    CLASSIFICATION_CONFIG,
    CommandParser,
    add_offline_flag,
    add_probe_flag,
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
    return carry_out("train_cls:train", parser, arguments, ("--cfg", "--resume"))


def make_parser() -> CommandParser:
    """Return the parser of this command's flags."""
    parser = CommandParser(description="train a classifier")
    add_training_flags(parser, CLASSIFICATION_CONFIG)
    add_probe_flag(parser)
    add_offline_flag(parser)
    return parser

"""Train a Faster R-CNN: `train-det --data MY_FOLDER`, `train-det --cfg configs/coco_r101.yaml
--data COCO`; without arguments, on the embedded shapes.
"""

from __future__ import annotations

import argparse

from detres.cli.command import carry_out
from detres.cli.flags import (
    DETECTION_CONFIG,
    OF_THE_DATA,
    CommandParser,
    add_offline_flag,
    add_probe_flag,
    add_training_flags,
    data_to_be_there,
    require_resumable,
    settle_data,
)
from detres.detection.duration import LENGTHS, seconds_of
from detres.user_files import expanded


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, and train; returns the exit status."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    settle_data(parser, arguments)
    require_resumable(parser, arguments, "--init-from", "--time")
    require_one_length(parser, arguments)
    paths = ["--cfg", "--resume", "--init-from", *data_to_be_there(arguments)]
    return carry_out("train_det:train", parser, arguments, paths)


def make_parser() -> CommandParser:
    """Return the parser of this command's flags."""
    parser = CommandParser(description="train a Faster R-CNN")
    add_training_flags(parser, DETECTION_CONFIG, without=OF_THE_DATA)
    parser.add_argument(
        "--init-from",
        type=expanded,
        metavar="FILE",
        help="start from a trained detector, of these classes or of others: its weights, the "
        "folder or name of its run, or its published name (`detres --list`); what it knows of "
        "classes with the same name moves over",
    )
    add_time_flag(parser)
    add_probe_flag(parser)
    add_offline_flag(parser)
    return parser


def add_time_flag(parser: argparse.ArgumentParser) -> None:
    """Add --time."""
    parser.add_argument(
        "--time",
        type=time_given,
        metavar="TIME",
        help="train as many steps as fit into that, evaluations included: 30m, 90s, 2h, 1h30m",
    )


def time_given(text: str) -> int:
    """Return the seconds of --time; raises argparse.ArgumentTypeError saying what it takes."""
    try:
        return seconds_of(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def require_one_length(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with a usage error where --time comes with a length in steps or epochs."""
    given = [setting for setting in arguments.set if setting.partition("=")[0].strip() in LENGTHS]
    if arguments.time is not None and given:
        parser.error(
            f"--time says how many steps there are, and so does --set {given[0]}: give one"
        )

"""Time a detector, its input and evaluation, a backbone, or the input and training of a classifier
against torchvision's and pycocotools, what padding costs, and what a run writes: `benchmark WHAT`.
"""

from __future__ import annotations

import argparse

from detres.cli.command import carry_out
from detres.cli.flags import CommandParser, add_device_flag

JOBS = (
    "detector",
    "pyramid",
    "padding",
    "backbone",
    "cifar",
    "crops",
    "data",
    "annotations",
    "eval",
    "recorder",
)


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, and time; returns the exit status."""
    parser = CommandParser(description="time parts of this toolkit against torchvision's")
    parser.add_argument(
        "what", nargs="?", default="detector", choices=JOBS, help="default: %(default)s"
    )
    parser.add_argument(
        "--backbone",
        default="resnet50",
        choices=("resnet18", "resnet34", "resnet50", "resnet101"),
    )
    parser.add_argument(
        "--short-side",
        "--shorter",
        "--short",
        type=int,
        default=600,
        help="detector, pyramid, padding, data: px of the image's short side (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--rois",
        type=int,
        default=300,
        help="detector, padding: proposals an image (default: %(default)s)",
    )
    parser.add_argument(
        "--batch", type=int, default=8, help="backbone: images of 224 px (default: %(default)s)"
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="crops: JPEG files, a folder a class (default: drawn ones of 500x375 px)",
    )
    parser.add_argument(
        "--repeats",
        type=at_least_one,
        default=5,
        help="timed runs of each; the median counts (default: %(default)s)",
    )
    add_device_flag(parser)
    arguments = parser.parse_args(argv)
    return carry_out("benchmark:benchmark", parser, arguments)


def at_least_one(text: str) -> int:
    """Return a number of repeats; raises argparse.ArgumentTypeError below 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of repeats, expected 1 or more")
    return int(text)

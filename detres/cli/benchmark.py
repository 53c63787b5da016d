"""Time detectors, their input and evaluation, classifiers and commands against those of other
libraries, what padding costs, and what a run writes: `benchmark WHAT`.
"""

from __future__ import annotations

import argparse

from detres.cli.command import carry_out
from detres.cli.flags import CommandParser, add_device_flag
from detres.user_files import expanded

JOBS = (
    "infer",
    "train",
    "stages",
    "data",
    "eval",
    "cls",
    "start",
    "annotations",
    "padding",
    "recorder",
)

_GOES_WITH = {
    "network": (["r50-c4", "r50-c4-3x3"], "infer", "train", "stages"),
    "backbone": ("resnet50", "cls", "padding"),
    "short_side": (600, "infer", "train", "stages", "data", "padding"),
    "rois": (None, "infer", "stages", "padding"),
    "batch": (8, "cls"),
    "images": (None, "data"),
}
"""Argument -> its default, and the jobs that take it."""

NETWORKS = (
    "r50-c4",
    "r50-c4-3x3",
    "r50-c4-roi-pool",
    "r101-c4",
    "r18-c4",
    "r50-fpn",
    "vgg16",
)


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, and time; returns the exit status."""
    parser = CommandParser(description="time parts of this toolkit against other libraries")
    parser.add_argument(
        "what",
        nargs="?",
        default="infer",
        choices=JOBS,
        help="infer, train: detectors; stages: where their time goes; data, annotations: reading; "
        "eval: COCO's numbers; cls: classifiers; start: commands; padding: what it costs that it "
        "changes nothing; recorder: what a run writes (default: %(default)s)",
    )
    parser.add_argument(
        "--network",
        nargs="+",
        choices=NETWORKS,
        help="infer, train, stages: which detectors; stride in the 1x1 (the paper) but for -3x3 "
        "(default: r50-c4 r50-c4-3x3)",
    )
    parser.add_argument(
        "--backbone",
        choices=("resnet18", "resnet34", "resnet50", "resnet101"),
        help="cls, padding (default: resnet50)",
    )
    parser.add_argument(
        "--short-side",
        "--shorter",
        "--short",
        type=at_least_one,
        help="infer, train, stages, data, padding: px of the image's short side (default: 600)",
    )
    parser.add_argument(
        "--rois",
        type=at_least_one,
        help="infer, stages, padding: proposals an image (default: 300, r50-fpn 1000)",
    )
    parser.add_argument(
        "--batch",
        type=at_least_one,
        help="cls: images of 224 px (default: 8)",
    )
    parser.add_argument(
        "--images",
        metavar="DIR",
        help="data: JPEG files to crop, a folder a class (default: drawn ones of 500x375 px)",
    )
    parser.add_argument(
        "--repeats",
        type=at_least_one,
        default=5,
        help="timed runs of each; the median counts (default: %(default)s)",
    )
    parser.add_argument(
        "--json", type=expanded, metavar="FILE", help="write the rows to this file too"
    )
    add_device_flag(parser)
    arguments = parser.parse_args(argv)
    for name, (default, *jobs) in _GOES_WITH.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
        elif arguments.what not in jobs:
            flag = f"--{name.replace('_', '-')}"
            parser.error(f"{flag} goes with {', '.join(jobs)}, not with {arguments.what}")
    return carry_out("benchmark:benchmark", parser, arguments)


def at_least_one(text: str) -> int:
    """Return a whole number; raises argparse.ArgumentTypeError below 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, expected a whole number of 1 or more")
    return int(text)

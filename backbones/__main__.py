"""`python -m backbones` prints every network and its published weights; `--describe NAME` the
layers of one.
"""

from __future__ import annotations

import argparse
import sys

import torch

from backbones import BACKBONES, create_backbone
from backbones.catalogue import PAPER_ERRORS, PUBLISHED
from backbones.describe import aligned, count, table, totals

VARIANTS = [
    *((name, {}) for name in BACKBONES),
    ("resnet18", {"shortcut": "A"}),
    ("resnet18", {"shortcut": "C"}),
    ("resnet34", {"shortcut": "A"}),
    ("resnet34", {"shortcut": "C"}),
    ("resnet50", {"stride_placement": "original"}),
    ("resnet101", {"stride_placement": "original"}),
    ("resnet152", {"stride_placement": "original"}),
    ("resnet50", {"width": 0.5}),
]
"""Each network as it is by default, then those of the paper that an argument makes; table 1 counts
the "original" ones.
"""


def main(argv: list[str] | None = None) -> int:
    """Print what was asked for; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m backbones",
        description="the networks, their sizes and their published weights",
    )
    parser.add_argument(
        "--describe",
        metavar="NAME",
        help="print the layers of one network, as table 1 of the paper does",
    )
    parser.add_argument(
        "--size",
        type=_pixels,
        metavar="PX",
        help="with --describe: side of the image (default: the network's own)",
    )
    parser.add_argument("--shortcut", choices=("A", "B", "C"), help="with --describe")
    parser.add_argument(
        "--stride-placement", choices=("original", "torchvision"), help="with --describe"
    )
    parser.add_argument("--width", type=float, metavar="FACTOR", help="with --describe")
    parser.add_argument("--pool1", choices=("torch", "caffe"), help="with --describe")
    arguments = parser.parse_args(argv)
    options = {
        "shortcut": arguments.shortcut,
        "stride_placement": arguments.stride_placement,
        "width": arguments.width,
        "pool1": arguments.pool1,
    }
    if arguments.describe is None:
        if any(given is not None for given in (arguments.size, *options.values())):
            parser.error(
                "--size, --shortcut, --stride-placement, --width and --pool1 go with --describe "
                "NAME"
            )
        sys.stdout.write(f"{networks()}\n\n{published()}\n")
        return 0
    try:
        # also as the list calls it: "resnet50 original", "resnet34 C", "resnet50 width=0.5"
        name, *variant = arguments.describe.split()
        for word in variant:
            if word.startswith("width="):
                options["width"] = _factor(word)
            else:
                strides = ("original", "torchvision")
                options["stride_placement" if word in strides else "shortcut"] = word
        with torch.device("meta"):
            net = create_backbone(name, **options)
        sys.stdout.write(f"{arguments.describe}\n{table(count(net, arguments.size))}\n")
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _pixels(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 100_000:
        raise argparse.ArgumentTypeError(f"{text} px is no size for an image")
    return number


def _factor(word: str) -> float:
    try:
        return float(word.removeprefix("width="))
    except ValueError:
        raise ValueError(f"{word}: expected a number, such as width=0.5") from None


def networks() -> str:
    """Return a line for each network: parameters, multiply-adds of one image, strides of the
    stages, errors in the paper.
    """
    lines = [("network", "parameters", "multiply-adds", "px", "strides", "error in the paper, %")]
    for name, options in VARIANTS:
        with torch.device("meta"):
            net = create_backbone(name, **options)
        parameters, multiply_adds = totals(count(net))
        title = " ".join(
            [name, *(f"width={v}" if key == "width" else v for key, v in options.items())]
        )
        strides = " ".join(map(str, net.strides.values()))
        lines.append(
            (
                title,
                f"{parameters:,}",
                f"{multiply_adds:,}",
                str(net.input_spec.crop_side),
                strides,
                PAPER_ERRORS.get(title, ""),
            )
        )
    return aligned(lines, right=(1, 2, 3))


def published() -> str:
    """Return a line for each published file: name, top-1 and top-5 error of one crop, input,
    file.
    """
    lines = [("weights", "top-1", "top-5", "input", "file")]
    for name, entry in PUBLISHED.items():
        errors = [
            "-" if error is None else f"{error:.2f}"
            for error in (entry.top1_error, entry.top5_error)
        ]
        spec = entry.input_spec
        pixels = f"{spec.channel_order} {spec.short_side}/{spec.crop_side}"
        lines.append((name, *errors, pixels, entry.file))
    return aligned(lines, right=(1, 2))


if __name__ == "__main__":
    sys.exit(main())

"""Detect in images and videos and draw what was found, or classify images:
`predict --weights FILE IMAGE_OR_FOLDER... --out DIR`.
"""

from __future__ import annotations

import argparse

from detres.cli.command import carry_out
from detres.cli.flags import CommandParser, add_device_flag, add_offline_flag, add_precision_flag
from detres.detection.choices import DRAWN_SCORE, TILE_OVERLAP, VIDEO_SUFFIXES
from detres.user_files import expanded, is_url


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, detect or classify, write; returns the exit status."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.tile is None and (arguments.overlap is not None or arguments.tiles_only):
        parser.error("--overlap and --tiles-only go with --tile")
    if arguments.shard is None:
        for place in filter(is_url, [*arguments.images, arguments.out]):
            parser.error(f"{place} is a URL, which goes with --shard; --shard 1/1 is all images")
    return carry_out("predict:predict", parser, arguments, ("images", "--weights"))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of this command's flags."""
    parser = CommandParser(
        description="detect in images and videos and draw what was found, or classify images, by "
        "what the weights are of"
    )
    parser.add_argument(
        "images",
        metavar="IMAGE_OR_FOLDER",
        type=expanded,
        nargs="+",
        help="images, folders of them, text files (.txt) with a path a line, and videos "
        f"({', '.join(VIDEO_SUFFIXES)})",
    )
    parser.add_argument(
        "--weights",
        type=expanded,
        metavar="FILE",
        required=True,
        help="a run's folder or name, its best.safetensors (detector) or weights.safetensors "
        "(classifier), or the last.pt of one that was stopped; or a published detector by name "
        "(`detres --list`)",
    )
    parser.add_argument(
        "--out",
        type=expanded,
        metavar="DIR",
        default="predictions",
        help="where pictures and predictions.json go, or shards (default: %(default)s)",
    )
    parser.add_argument(
        "--shard",
        type=shard_given,
        metavar="I/N",
        help="look at one of N parts of the images, in the order of their names every N-th from "
        "the I-th on, and write no pictures but OUT/shard-I-of-N.jsonl, a line an image, unless "
        "it is there; images and OUT may be URLs (s3://, gs://)",
    )
    parser.add_argument(
        "--score",
        type=score_given,
        help="lowest score that is drawn (default: of each class the one that was best on the "
        f"held-out images of its training, {DRAWN_SCORE} where the weights have none); the file "
        "has all; with --shard: that is written (default: all)",
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PX",
        help="look at images larger than this in tiles of this side, at their own resolution, and "
        "at the whole image too (default: at the whole image alone)",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        metavar="FRACTION",
        help=f"of a tile's side, that tiles share at least (default: {TILE_OVERLAP})",
    )
    parser.add_argument(
        "--tiles-only", action="store_true", help="with --tile: leave the whole image out"
    )
    add_precision_flag(parser)
    add_device_flag(parser)
    add_offline_flag(parser)
    return parser


def score_given(text: str) -> float:
    """Return the score of --score; raises argparse.ArgumentTypeError saying what it takes."""
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no score: give a number from 0 to 1")
    return score


def shard_given(text: str) -> tuple[int, int]:
    """Return the two numbers of --shard; raises argparse.ArgumentTypeError saying what it takes."""
    number, slash, of = text.partition("/")
    if not (slash and number.isdecimal() and of.isdecimal() and text.isascii()):
        raise argparse.ArgumentTypeError(f"{text!r} is no shard: give I/N, such as 2/8")
    if not 1 <= int(number) <= int(of):
        which = f"they are 1/{of} to {of}/{of}" if int(of) else "give I/N, such as 2/8"
        raise argparse.ArgumentTypeError(f"there is no shard {text}: {which}")
    return int(number), int(of)

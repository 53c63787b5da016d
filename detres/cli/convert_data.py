"""Write data of any format that is read as COCO: `convert-data THEIR_FOLDER --out DIR`."""

from __future__ import annotations

import argparse

from detres.cli.command import carry_out
from detres.cli.flags import CommandParser
from detres.user_files import expanded


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, and convert; returns the exit status."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    return carry_out("convert_data:convert", parser, arguments, ("data",))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of this command's flags."""
    parser = CommandParser(
        description="write annotated images as COCO JSON, the images copied or linked; what is "
        "there is left as it is"
    )
    parser.add_argument(
        "data",
        type=expanded,
        metavar="DATA",
        help="a folder (VOC, images with XML, COCO, YOLO, LabelMe, CSV), a data.yaml, a COCO JSON "
        "or a CSV file",
    )
    parser.add_argument("--out", type=expanded, metavar="DIR", required=True, help="folder to make")
    parser.add_argument(
        "--link", action="store_true", help="link the images to where they are, not copy them"
    )
    parser.add_argument(
        "--set",
        metavar="data.KEY=VALUE",
        nargs="+",
        action="extend",
        default=[],
        help="read the data otherwise than they are recognised, e.g. data.val_share=0.1",
    )
    return parser

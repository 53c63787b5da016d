"""Make our weights of a detector that others trained: `convert model_final.pkl --out FILE`."""

from __future__ import annotations

from detres.cli.command import carry_out
from detres.cli.flags import CommandParser, add_offline_flag
from detres.user_files import expanded

SUFFIX = ".safetensors"


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, and convert; returns the exit status."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if not arguments.out.endswith(SUFFIX):
        parser.error(f"--out {arguments.out}: weights are written as {SUFFIX}")
    return carry_out("convert:convert", parser, arguments, ["source"])


def make_parser() -> CommandParser:
    """Return the parser of this command's flags."""
    parser = CommandParser(
        description="make our weights of a detector of others, which then detects the same and can "
        "be trained further: torchvision's fasterrcnn_resnet50_fpn (and _v2), detectron2's and "
        "Detectron's Faster R-CNN (C4 and FPN on ResNets)"
    )
    parser.add_argument(
        "source",
        type=expanded,
        metavar="SOURCE",
        help="its file, a state dict of torch.save or detectron2's .pkl, or its published name "
        "(`detres --list`), which is downloaded once",
    )
    parser.add_argument(
        "--out", type=expanded, metavar="FILE", required=True, help=f"{SUFFIX} file to write"
    )
    parser.add_argument(
        "--classes",
        metavar="NAME",
        nargs="+",
        help="the names of its classes, in its order (default: of 80 and of torchvision's 90 "
        "classes COCO's, of 20 PASCAL VOC's)",
    )
    add_offline_flag(parser)
    return parser

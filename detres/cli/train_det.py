"""Train a Faster R-CNN: `train-det --cfg configs/coco_r101.yaml --data COCO`; without arguments, on
the embedded shapes.
"""

from __future__ import annotations

from detres.cli.command import carry_out
from detres.cli.flags import (
    DETECTION_CONFIG,
    CommandParser,
    add_training_flags,
    require_resumable,
    settle_data,
)
from detres.user_files import expanded


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, and train; returns the exit status."""
    parser = CommandParser(description="train a Faster R-CNN")
    add_training_flags(parser, DETECTION_CONFIG)
    parser.add_argument(
        "--init-from",
        type=expanded,
        metavar="FILE",
        help="start from a trained detector's weights (best.safetensors), of these classes or of "
        "others: what it knows of those with the same name moves over",
    )
    arguments = parser.parse_args(argv)
    settle_data(parser, arguments)
    require_resumable(parser, arguments, "--init-from")
    return carry_out("train_det:train", parser, arguments)

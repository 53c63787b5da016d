"""Train a Faster R-CNN: `train-det --cfg configs/coco_r101.yaml --data COCO`; without arguments, on
the embedded shapes.
"""

from __future__ import annotations

import argparse

from detres.cli.flags import (
    DETECTION_CONFIG,
    CommandParser,
    add_training_flags,
    config_from,
    ending,
    require_resumable,
    resume_line_of,
    saved_run,
    say,
)
from detres.detection.config import DetectionConfig
from detres.detection.training import WING, DetectionTraining
from detres.runs.folder import DETECTOR_WEIGHTS, PICTURE
from detres.runs.run import TrainingRun
from detres.user_files import expanded


def main(argv: list[str] | None = None) -> int:
    """Parse, build, train; returns the exit status."""
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
    require_resumable(parser, arguments, "--init-from")
    with ending(parser) as end:
        train(arguments)
    return end.status


def train(arguments: argparse.Namespace) -> None:
    """Train to the configured end, in a new run folder or a resumed one."""
    device, resume_line = arguments.device, resume_line_of("train-det")
    if arguments.resume is None:
        config = config_from(arguments, DetectionConfig, DETECTION_CONFIG)
        training = DetectionTraining.start(config, device, arguments.init_from)
        run = TrainingRun.start(training, arguments.out, device=device, resume_line=resume_line)
    else:
        saved = saved_run(arguments, DetectionConfig, DETECTION_CONFIG, WING)
        training = DetectionTraining.resume(saved, device)
        run = TrainingRun.resume(
            saved,
            training,
            device=device,
            resume_line=resume_line,
            accept_data_change=arguments.accept_data_change,
        )
    with run:
        run.train()
    weights, picture = run.folder / DETECTOR_WEIGHTS, run.folder / PICTURE
    say(f"done in {run.duration()}; weights {weights}, picture {picture}")

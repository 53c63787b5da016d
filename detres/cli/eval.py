"""Evaluate a detector or a classifier, `eval --weights FILE`, results,
`eval --detections FILE --annotations FILE`, or proposals, `eval --weights FILE --proposals`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detres.cli.advice import EVALUATION
from detres.cli.command import carry_out
from detres.cli.flags import (
    CommandParser,
    add_config_flags,
    add_offline_flag,
    add_precision_flag,
    given_of,
)
from detres.cli.proposal_flags import OWN, add_proposal_flags, fault_of
from detres.detection.choices import BACKENDS, PROTOCOLS, SPLITS
from detres.user_files import expanded

WEIGHTS_FLAGS = ("--cfg", "--set", "--data", "--save-detections", "--save-probabilities")
WEIGHTS_FLAGS += ("--submission", "--classifier")
DETECTIONS_FLAGS = ("--annotations",)


def main(argv: list[str] | None = None) -> int:
    """Read the arguments, detect, evaluate; returns the exit status."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if fault := fault_of(arguments):
        parser.error(fault)
    if arguments.proposals is None and not (arguments.weights or arguments.detections):
        parser.error("one of the arguments --weights --detections --proposals is required")
    if arguments.detections and not arguments.annotations:
        parser.error("--detections needs --annotations")
    foreign = WEIGHTS_FLAGS if arguments.detections else DETECTIONS_FLAGS
    foreign = () if arguments.proposals else foreign
    if given := given_of(arguments, foreign):
        parser.error(
            f"{', '.join(given)} does not go with "
            f"{'--detections' if arguments.detections else '--weights'}"
        )
    if arguments.weights and arguments.split not in (None, *SPLITS):
        parser.error(f"--split {arguments.split}: with --weights, one of {', '.join(SPLITS)}")
    if arguments.submission and arguments.split is None:
        parser.error("--submission needs --split: test, val or train")
    paths = ["--cfg", "--weights", "--detections", "--annotations", "--classifier"]
    paths += [] if arguments.proposals == OWN else ["--proposals"]
    for flag, out in (
        ("--json", arguments.json),
        ("--save-detections", arguments.save_detections),
        ("--save-probabilities", arguments.save_probabilities),
    ):
        if out and Path(out).is_dir():
            parser.error(f"{flag} {out} is a folder; give a file")
    return carry_out("eval:evaluate", parser, arguments, paths)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of this command's flags."""
    parser = CommandParser(
        description="evaluate the weights of a detector, a classifier or a localiser, a "
        "detections file, or proposals"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--weights",
        type=expanded,
        metavar="FILE",
        nargs="+",
        help="a run's folder, its best.safetensors (detector) or weights.safetensors (classifier), "
        "or the last.pt of one that was stopped, which know their model, classes, data and "
        "protocol; several of one kind make an ensemble; or a published detector by name "
        "(`detres --list`); or, with "
        "--cfg, published classifiers by name, and weights of another origin for the network of "
        "the configuration",
    )
    what.add_argument(
        "--detections",
        type=expanded,
        metavar="FILE_OR_FOLDER",
        help="COCO results JSON, or a folder of VOC comp3/comp4 text files",
    )
    parser.add_argument(
        "--annotations",
        type=expanded,
        metavar="FILE_OR_FOLDER",
        help="with --detections or --proposals FILE: COCO JSON, VOCdevkit/VOCyyyy, or an ILSVRC "
        "folder (DET)",
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="with a detector's --weights: train, val or test of its data (default: val), with a "
        "localiser's val or test; with --annotations of a VOC folder: the list in ImageSets/Main "
        "(default: test, else val, else the only one); with --weights --proposals: train or val "
        "(default)",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="default: the weights' own; coco for JSON; voc07 or voc12 by the year of a VOC "
        "folder, imagenet_det for an ILSVRC one",
    )
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        help="protocol coco: who counts, with the same numbers: auto is pycocotools; hotcoco is an "
        "extra and faster (default: the weights' own, auto)",
    )
    parser.add_argument(
        "--iou",
        type=float,
        metavar="T",
        help="VOC protocols: IoU from which a detection is right (default: 0.5)",
    )
    parser.add_argument(
        "--json",
        type=expanded,
        metavar="OUT",
        help="also write the numbers, as fractions, to this file",
    )
    parser.add_argument(
        "--out",
        type=expanded,
        metavar="DIR",
        help="with a detector's --weights or --detections: also write what shows how good it is: "
        "precision over recall, confusion matrix, the best score of each class, and a sheet of "
        "pictures",
    )
    parser.add_argument(
        "--save-detections",
        type=expanded,
        metavar="OUT",
        help="with --weights: also write the detections as COCO results",
    )
    parser.add_argument(
        "--submission",
        type=expanded,
        metavar="DIR",
        help="with --weights and --split: also write what the test server of COCO, VOC or ImageNet "
        "takes (of a localiser with --classifier)",
    )
    parser.add_argument(
        "--save-probabilities",
        "--save-scores",
        type=expanded,
        metavar="OUT",
        help="with a classifier's --weights: also write probabilities and labels, .npz",
    )
    parser.add_argument(
        "--classifier",
        type=expanded,
        metavar="FILE",
        nargs="+",
        help="with a localiser's --weights: a classifier's weights.safetensors, which predicts the "
        "classes (default: they are given); several make an ensemble",
    )
    add_proposal_flags(parser)
    add_config_flags(parser, without="the weights' own")
    add_precision_flag(parser)
    add_offline_flag(parser)
    parser.settings = EVALUATION
    return parser

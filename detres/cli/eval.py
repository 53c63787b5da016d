"""Evaluate a detector or a classifier, `eval --weights FILE`, results,
`eval --detections FILE --annotations FILE`, or proposals, `eval --weights FILE --proposals`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

from backbones import PUBLISHED
from backbones.weights import recognise_file
from detres.classification.config import is_classification
from detres.classification.weights_file import is_classifier
from detres.cli.eval_classifier import evaluate_classifiers
from detres.cli.eval_detections import evaluate_detections, read_truth
from detres.cli.eval_detector import evaluate_detectors
from detres.cli.eval_localiser import evaluate_localisers
from detres.cli.eval_proposals import (
    OWN,
    add_proposal_flags,
    evaluate_own_proposals,
    evaluate_saved_proposals,
    fault_of,
)
from detres.cli.flags import CommandParser, add_config_flags, config_path, ending, given_of
from detres.detection.config import SPLITS, EvalConfig
from detres.detection.localisation.weights_file import is_localiser
from detres.detection.weights_file import is_detector
from detres.runs.folder import CLASSIFIER_WEIGHTS, DETECTOR_WEIGHTS, STATE
from detres.user_files import expanded

PROTOCOLS = get_args(EvalConfig.model_fields["protocol"].annotation)
WEIGHTS_FLAGS = ("--cfg", "--set", "--data", "--save-detections", "--save-probabilities")
WEIGHTS_FLAGS += ("--submission", "--classifier")
DETECTORS_FLAGS = ("--out",)
DETECTIONS_FLAGS = ("--annotations",)


def main(argv: list[str] | None = None) -> int:
    """Parse, read or detect, evaluate; returns the exit status."""
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
    for flag, out in (
        ("--json", arguments.json),
        ("--save-detections", arguments.save_detections),
        ("--save-probabilities", arguments.save_probabilities),
    ):
        if out and Path(out).is_dir():
            parser.error(f"{flag} {out} is a folder; give a file")
    with ending(parser) as end:
        if arguments.proposals:
            evaluate_proposals(arguments)
        elif arguments.weights:
            evaluate_weights(arguments)
        else:
            evaluate_detections(arguments)
    return end.status


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
        help="a run's best.safetensors (detector) or weights.safetensors (classifier), which know "
        "their model, classes, data and protocol; several of one kind make an ensemble; or, with "
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
    add_config_flags(parser)
    return parser


def evaluate_weights(arguments: argparse.Namespace) -> None:
    """Evaluate a detector, a localiser, or classifiers, by what the first of the files is; where it
    does not tell, by what --cfg configures.

    Raises FileNotFoundError for a file that is missing, ValueError for a last.pt and for flags that
    go with the other kind.
    """
    first = arguments.weights[0]
    for weights in arguments.weights:
        if weights not in PUBLISHED and not Path(weights).exists():
            raise FileNotFoundError(f"no weights file at {weights}")
        if Path(weights).name == STATE:
            raise ValueError(
                f"{weights} is the state of a run, for --resume; a detector's weights are "
                f"{DETECTOR_WEIGHTS} of its run, a classifier's {CLASSIFIER_WEIGHTS}"
            )
    if first not in PUBLISHED and is_localiser(Path(first)):
        require_none_of(arguments, DETECTORS_FLAGS, f"{first} is a localiser")
        evaluate_localisers(arguments)
        return
    if arguments.classifier:
        raise ValueError(f"--classifier goes with a localiser, and {first} is none")
    detector = first not in PUBLISHED and is_detector(Path(first))
    classifier = first in PUBLISHED or is_classifier(Path(first))
    if not classifier and not detector and arguments.cfg:
        classifier = is_classification(config_path(arguments.cfg))
    if not (classifier or detector or arguments.cfg):
        require_said(first)
    if classifier:
        require_none_of(arguments, DETECTORS_FLAGS, f"{first} is a classifier")
        evaluate_classifiers(arguments)
    elif detector and arguments.save_probabilities:
        raise ValueError(f"{first} is a detector: --save-probabilities goes with classifiers")
    else:
        evaluate_detectors(arguments)


def require_none_of(arguments: argparse.Namespace, flags: tuple[str, ...], why: str) -> None:
    """Raise ValueError where one of a detector's flags is given to another model."""
    if given := given_of(arguments, flags):
        raise ValueError(f"{given[0]} goes with a detector: {why}")


def require_said(weights: str) -> None:
    """Raise ValueError for the bare weights of a network, naming it and what is needed to evaluate
    it; WeightsError for a file that cannot be read.
    """
    looks_like = recognise_file(weights)
    if looks_like is not None:
        what = f"{weights} holds the weights of a network alone, by its tensors {looks_like.words}"
        if not looks_like.settings:
            raise ValueError(what)
        settings = " ".join(f"model.network.{key}={v}" for key, v in looks_like.settings.items())
        raise ValueError(
            f"{what}: evaluate it as a classifier with --cfg, which says its data, and --set "
            f"{settings}"
        )


def evaluate_proposals(arguments: argparse.Namespace) -> None:
    """Evaluate the proposals of a detector, or of a file, by their recall."""
    if arguments.proposals == OWN:
        evaluate_own_proposals(arguments)
        return
    truth = None
    if arguments.annotations:
        truth, _, _ = read_truth(Path(arguments.annotations), arguments.split)
    evaluate_saved_proposals(arguments, truth)

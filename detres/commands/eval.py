"""Evaluate a detector or a classifier, `eval --weights FILE`, results,
`eval --detections FILE --annotations FILE`, or proposals, `eval --weights FILE --proposals`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from backbones import PUBLISHED
from backbones.weights import recognise_file
from detres.classification.config import is_classification
from detres.classification.weights_file import is_classifier
from detres.cli.paths import config_path
from detres.cli.proposal_flags import OWN
from detres.commands.configured import weights_of
from detres.commands.eval_classifier import evaluate_classifiers
from detres.commands.eval_detections import evaluate_detections, read_truth
from detres.commands.eval_detector import evaluate_detectors
from detres.commands.eval_localiser import evaluate_localisers
from detres.commands.eval_proposals import (
    evaluate_own_proposals,
    evaluate_saved_proposals,
)
from detres.detection.import_weights import holds_detector
from detres.detection.localisation.weights_file import is_localiser
from detres.detection.weights_file import is_detector
from detres.engine.allocator import keep_pages
from detres.network import require_downloaded


def evaluate(arguments: argparse.Namespace) -> None:
    """Evaluate what was given: weights, detections or proposals."""
    keep_pages()
    offline = arguments.offline
    for given in arguments.weights or ():
        require_downloaded(given, offline=offline)
    arguments.weights = [
        given if given in PUBLISHED else weights_of(given, offline=offline)
        for given in arguments.weights or ()
    ]
    if arguments.classifier:
        arguments.classifier = [weights_of(each, offline=offline) for each in arguments.classifier]
    if arguments.proposals:
        evaluate_proposals(arguments)
    elif arguments.weights:
        evaluate_weights(arguments)
    else:
        evaluate_detections(arguments)


def evaluate_weights(arguments: argparse.Namespace) -> None:
    """Evaluate a detector, a localiser, or classifiers, by what the first of the files is; where it
    does not tell, by what --cfg configures.

    Raises FileNotFoundError for a file that is missing, ValueError for flags that go with the other
    kind.
    """
    for weights in arguments.weights:
        if weights not in PUBLISHED and not Path(weights).exists():
            raise FileNotFoundError(f"no weights file at {weights}")
    first = arguments.weights[0]
    if first not in PUBLISHED and is_localiser(Path(first)):
        require_no_pictures(arguments, f"{first} is a localiser")
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
        require_no_pictures(arguments, f"{first} is a classifier")
        evaluate_classifiers(arguments)
    elif detector and arguments.save_probabilities:
        raise ValueError(f"{first} is a detector: --save-probabilities goes with classifiers")
    else:
        evaluate_detectors(arguments)


def require_no_pictures(arguments: argparse.Namespace, why: str) -> None:
    """Raise ValueError where --out is given, though what is evaluated is no detector."""
    if arguments.out is not None:
        raise ValueError(f"--out goes with a detector: {why}")


def require_said(weights: str) -> None:
    """Raise ValueError for a detector of others, and for the bare weights of a network, naming it
    and what is needed to evaluate it; WeightsError for a file that cannot be read.
    """
    if holds_detector(Path(weights)):
        raise ValueError(
            f"{weights} holds a detector of others, of which `convert` makes weights: these are "
            "evaluated"
        )
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

"""Evaluating a localiser: `eval --weights FILE [--classifier FILE]`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from detres.class_map import ClassMap
from detres.classification.evaluation.protocol import class_probabilities, protocol_of
from detres.classification.weights_file import load_classifier
from detres.cli.flags import evaluated_by, given_of, notice, require_settings_of, say
from detres.detection.annotations import Annotations
from detres.detection.evaluation.localisation import (
    GUESSES,
    given_class_error,
    predicted_class_error,
)
from detres.detection.localisation.build import read_localisation
from detres.detection.localisation.localise import Views, how, localise, own_labels
from detres.detection.localisation.weights_file import load_localiser
from detres.detection.structures import label_of
from detres.files import write_text
from detres.images.source import ImageFiles
from detres.reproduction.evaluated import evaluated
from detres.runs.settings import with_data_root


def evaluate_localiser(arguments: argparse.Namespace) -> None:
    """Run a localiser over held-out images, given their classes, or those that a classifier
    predicts, and print its error.

    Raises what the readers and the weights files raise, ValueError for flags that do not go with a
    localiser.
    """
    require_localiser_flags(arguments)
    (weights,), device = arguments.weights, arguments.device
    model, config, class_map = load_localiser(Path(weights))
    crop_side = config.model.input.crop_side
    config = evaluated_by(arguments, config)
    data = with_data_root(config.data, arguments.data)
    truth = read_localisation(data, "val").matched_to(class_map, weights)
    views = Views.of(config.eval, crop_side)
    labels, classified = own_labels(truth), None
    if arguments.classifier:
        labels, classified = predicted_labels(Path(arguments.classifier), truth, device)
    guesses = localise(
        model.to(device),
        truth,
        labels,
        views,
        config.eval,
        device=device,
        num_workers=data.workers,
    )
    if classified is None:
        result = given_class_error(truth, guesses, how(model, views))
    else:
        result = predicted_class_error(truth, guesses, f"{how(model, views)}; {classified}")
    say(f"{truth.describe()}\n{weights}\n{result.table(per_class=True)}")
    if arguments.json:
        files = [weights, *([arguments.classifier] if arguments.classifier else [])]
        numbers = {**result.to_dict(), "evaluated": evaluated(files, config)}
        write_text(Path(arguments.json), json.dumps(numbers, indent=2) + "\n")


def require_localiser_flags(arguments: argparse.Namespace) -> None:
    """Raise ValueError for flags, settings and further weights that do not go with a localiser."""
    if len(arguments.weights) > 1:
        raise ValueError(f"{arguments.weights[0]} is a localiser, which is evaluated alone")
    others = ("--protocol", "--iou", "--save-detections", "--save-probabilities", "--submission")
    if given := given_of(arguments, others):
        raise ValueError(
            f"{given[0]} does not go with a localiser; its views are set by --set eval.views=dense "
            "and so on"
        )
    if arguments.split not in (None, "val"):
        raise ValueError(
            f"--split {arguments.split}: a localiser is evaluated on val of its data; --set "
            "data.val=... makes that another list"
        )
    require_settings_of(arguments, "data.", "eval.")


def predicted_labels(
    path: Path, truth: Annotations, device: torch.device
) -> tuple[np.ndarray, str]:
    """Return the likeliest classes of every image, (N, G) int64 1..K, best first, by a classifier's
    own protocol, and that in words.

    Raises ClassMismatchError when its classes are others, told by name.
    """
    model, config, class_map = load_classifier(path, notice)
    if set(class_map.names) != set(truth.class_map.names):
        truth.class_map.require_same(class_map, truth.source, str(path))
    index_there = {name: index for index, name in enumerate(truth.class_map.names)}
    theirs = np.array([index_there[name] for name in class_map.names])  # (K,) theirs -> ours
    images = ImageFiles(
        truth.source,
        ClassMap.of_names(class_map.names),
        truth.image_files,
        np.argsort(theirs)[truth.class_indices[truth.offsets[:-1]]],
    )
    found = class_probabilities(config, model.to(device), images, device).probabilities
    best = np.argsort(-found, axis=1, kind="stable")[:, :GUESSES]
    return label_of(theirs[best]), f"classes by {path}: {protocol_of(config)}"

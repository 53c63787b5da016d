"""The part of `eval` that judges localisers: `eval --weights FILE ... [--classifier FILE ...]`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from detres.class_map import ClassMap
from detres.classification.evaluation.protocol import class_probabilities, protocol_of
from detres.classification.evaluation.top_k import ClassProbabilities, ensemble
from detres.classification.weights_file import load_classifier
from detres.cli.flags import evaluated_by, given_of, notice, require_settings_of, say
from detres.detection.annotations import Annotations
from detres.detection.evaluation.localisation import (
    GUESSES,
    given_class_error,
    predicted_class_error,
)
from detres.detection.localisation.build import read_localisation
from detres.detection.localisation.localise import Member, Views, how, localise, own_labels
from detres.detection.localisation.weights_file import load_localiser
from detres.detection.structures import label_of
from detres.files import write_text
from detres.images.source import ImageFiles
from detres.reproduction.evaluated import evaluated
from detres.runs.settings import with_data_root


def evaluate_localisers(arguments: argparse.Namespace) -> None:
    """Run a localiser, or several as an ensemble, over held-out images, given their classes, or
    those that classifiers predict, and print its error by the first one's settings.

    Raises what the readers and the weights files raise, ValueError for flags that do not go with a
    localiser.
    """
    require_localiser_flags(arguments)
    weights, device = arguments.weights, arguments.device
    loaded = [load_localiser(Path(file)) for file in weights]
    class_map = loaded[0][2]
    for file, (_, _, classes) in zip(weights, loaded, strict=True):
        class_map.require_same(classes, weights[0], file)
    config = evaluated_by(arguments, loaded[0][1])
    data = with_data_root(config.data, arguments.data)
    truth = read_localisation(data, "val").matched_to(class_map, weights[0])
    members = [
        Member(model.to(device), Views.of(config.eval, own.model.input.crop_side))
        for model, own, _ in loaded
    ]
    labels, classified = own_labels(truth), None
    classifiers = arguments.classifier or []
    if classifiers:
        labels, classified = predicted_labels([*map(Path, classifiers)], truth, device)
    guesses = localise(members, truth, labels, config.eval, device=device, num_workers=data.workers)
    if classified is None:
        result = given_class_error(truth, guesses, how(members))
    else:
        result = predicted_class_error(truth, guesses, f"{how(members)}; {classified}")
    say(f"{truth.describe()}\n{', '.join(weights)}\n{result.table(per_class=True)}")
    if arguments.json:
        of = evaluated([*weights, *classifiers], config)
        numbers = {**result.to_dict(), "evaluated": of}
        write_text(Path(arguments.json), json.dumps(numbers, indent=2) + "\n")


def require_localiser_flags(arguments: argparse.Namespace) -> None:
    """Raise ValueError for flags and settings that do not go with a localiser."""
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
    paths: list[Path], truth: Annotations, device: torch.device
) -> tuple[np.ndarray, str]:
    """Return the likeliest classes of every image, (N, G) int64 1..K, best first, by a classifier's
    own protocol, of several by the mean of their probabilities, and that in words.

    Raises ClassMismatchError when the classes of one are others, told by name.
    """
    members, protocols = [], []
    for path in paths:
        model, config, class_map = load_classifier(path, notice)
        if set(class_map.names) != set(truth.class_map.names):
            truth.class_map.require_same(class_map, truth.source, str(path))
        index_of_name = {name: index for index, name in enumerate(class_map.names)}
        order = [index_of_name[name] for name in truth.class_map.names]  # ours -> theirs
        images = ImageFiles(
            truth.source,
            ClassMap.of_names(class_map.names),
            truth.image_files,
            np.array(order)[truth.class_indices[truth.offsets[:-1]]],
        )
        found = class_probabilities(config, model.to(device), images, device)
        labels = truth.class_indices[truth.offsets[:-1]]
        members.append(ClassProbabilities(found.probabilities[:, order], labels))
        protocols.append(protocol_of(config))
    probabilities = ensemble(members).probabilities
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :GUESSES]
    by = f"{', '.join(map(str, paths))}: {'; '.join(dict.fromkeys(protocols))}"
    return label_of(best), f"classes by {by}"

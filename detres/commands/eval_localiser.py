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
from detres.cli.flags import given_of, notice, say
from detres.commands.configured import evaluated_by, require_settings_of
from detres.commands.submission import localisation_server_of, plan_submission, require_wanted
from detres.config import check
from detres.detection.annotations import Annotations
from detres.detection.config import DataConfig
from detres.detection.evaluation.localisation import (
    GUESSES,
    given_class_error,
    predicted_class_error,
)
from detres.detection.evaluation.submission import ImageNetServer, write_submission
from detres.detection.localisation.build import read_to_localise
from detres.detection.localisation.config import LocalisationConfig
from detres.detection.localisation.localise import (
    Member,
    Views,
    how,
    localise,
    own_labels,
    require_one_kind,
)
from detres.detection.localisation.weights_file import load_localiser
from detres.detection.structures import index_of, label_of
from detres.files import write_text
from detres.images.source import ImageFiles
from detres.reproduction.evaluated import evaluated
from detres.runs.settings import with_data_root


def evaluate_localisers(arguments: argparse.Namespace) -> None:
    """Run a localiser, or several as an ensemble, over held-out images, given their classes, or
    those that classifiers predict; print its error by the first one's settings, and write what a
    test server takes.

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
    for file, (_, own, _) in zip(weights, loaded, strict=True):  # its crops fit these views, too
        tree = own.model_dump(mode="json") | {"eval": config.eval.model_dump(mode="json")}
        check(LocalisationConfig, tree, file)
    data = with_data_root(config.data, arguments.data)
    members = [
        Member(model.to(device), Views.of(config.eval, own.model.input.crop_side))
        for model, own, _ in loaded
    ]
    require_one_kind(members)
    images = read_to_localise(data, arguments.split or "val", class_map)
    require_wanted(arguments, images)
    server = server_for(arguments, images, class_map, data)
    images = images.matched_to(class_map, weights[0])
    classifiers = [*map(Path, arguments.classifier or [])]
    if classifiers:
        labels, classified = predicted_labels(classifiers, images, device)
    else:
        labels, classified = own_labels(images), None
    guesses = localise(
        members, images, labels, config.eval, device=device, num_workers=data.workers
    )
    if server is not None:
        archive = write_submission(Path(arguments.submission), images, guesses.all(images), server)
        say(f"{guesses.labels.size} guesses in {len(images)} images for the test server: {archive}")
    if images.without_truth is not None:
        say(f"{images.describe()}\n{guesses.labels.size} guesses, not evaluated here")
        return
    if classified is None:
        result = given_class_error(images, guesses, how(members))
    else:
        result = predicted_class_error(images, guesses, f"{how(members)}; {classified}")
    say(f"{images.describe()}\n{', '.join(weights)}\n{result.table(per_class=True)}")
    if arguments.json:
        of = evaluated([*weights, *classifiers], config, split=arguments.split or "val")
        numbers = {**result.to_dict(), "evaluated": of}
        write_text(Path(arguments.json), json.dumps(numbers, indent=2) + "\n")


def require_localiser_flags(arguments: argparse.Namespace) -> None:
    """Raise ValueError for flags and settings that do not go with a localiser."""
    others = ("--protocol", "--backend", "--iou", "--save-detections", "--save-probabilities")
    if given := given_of(arguments, others):
        raise ValueError(
            f"{given[0]} does not go with a localiser; its views are set by --set eval.views=dense "
            "and so on"
        )
    if arguments.split == "train":
        raise ValueError(
            "--split train: a localiser is evaluated on val or test of its data; --set "
            "data.val=... makes that another list"
        )
    if arguments.submission and not arguments.classifier:
        raise ValueError(
            "--submission needs --classifier with a localiser: the test server takes classes too, "
            "and those of a test set are not given"
        )
    require_settings_of(arguments, "data.", "eval.")


def server_for(
    arguments: argparse.Namespace, images: Annotations, class_map: ClassMap, data: DataConfig
) -> ImageNetServer | None:
    """Return the test server that --submission is for, None without it; what cannot be submitted is
    refused before anything is localised.

    images: of the split of `data`. class_map: the localisers' classes. Raises what
    `plan_submission` and `localisation_server_of` raise.
    """
    if not arguments.submission:
        return None
    weights = arguments.weights
    server = localisation_server_of(data, arguments.split, weights=weights)
    plan_submission(
        Path(arguments.submission), images, detector=class_map, name=weights[0], server=server
    )
    return server


def predicted_labels(
    paths: list[Path], truth: Annotations, device: torch.device
) -> tuple[np.ndarray, str]:
    """Return the likeliest classes of every image, (N, G) int64 1..K, best first, by a classifier's
    own protocol, of several by the mean of their probabilities, and that in words.

    Raises ClassMismatchError, before one classifies, when the classes of one are others, told by
    name.
    """
    loaded = [load_classifier(path, notice) for path in paths]
    for path, (_, _, class_map) in zip(paths, loaded, strict=True):
        if set(class_map.names) != set(truth.class_map.names):
            truth.class_map.require_same(class_map, truth.source, str(path))
    members, protocols = [], []
    labels = np.zeros(len(truth), np.int64)  # where they are not known, which no prediction reads
    if truth.without_truth is None:
        labels = index_of(own_labels(truth)[:, 0])
    for model, config, class_map in loaded:
        index_of_name = {name: index for index, name in enumerate(class_map.names)}
        order = [index_of_name[name] for name in truth.class_map.names]  # ours -> theirs
        images = ImageFiles(
            truth.source,
            ClassMap.of_names(class_map.names),
            truth.image_files,
            np.array(order)[labels],
        )
        found = class_probabilities(config, model.to(device), images, device)
        members.append(ClassProbabilities(found.probabilities[:, order], labels))
        protocols.append(protocol_of(config))
    probabilities = ensemble(members).probabilities
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :GUESSES]
    by = f"{', '.join(map(str, paths))}: {'; '.join(dict.fromkeys(protocols))}"
    return label_of(best), f"classes by {by}"

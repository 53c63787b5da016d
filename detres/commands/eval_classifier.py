"""The part of `eval` that judges classifiers: `eval --weights FILE ...`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from backbones import PUBLISHED, Backbone
from detres.class_map import ClassMap
from detres.classification.config import ClassificationConfig
from detres.classification.data.read import read_held_out
from detres.classification.evaluation.protocol import class_probabilities, protocol_of
from detres.classification.evaluation.top_k import ensemble, top_k_errors
from detres.classification.model import ClassificationModel
from detres.classification.weights_file import (
    bare_classifier,
    is_classifier,
    load_classifier,
    published_classifier,
)
from detres.cli.flags import given_of, notice, say
from detres.cli.paths import config_path
from detres.commands.configured import read_config, require_settings_of
from detres.config import with_overrides
from detres.detection.weights_file import is_detector
from detres.files import replacing, write_text
from detres.images.source import LabelledImages
from detres.reproduction.evaluated import evaluated
from detres.runs.settings import with_data_root


def evaluate_classifiers(arguments: argparse.Namespace) -> None:
    """Run one classifier, or several as an ensemble, over held-out images and evaluate them by the
    first one's protocol.
    """
    device, names = arguments.device, ", ".join(arguments.weights)
    bare = [
        weights
        for weights in arguments.weights
        if weights not in PUBLISHED and not is_classifier(Path(weights))
    ]
    require_classifier_flags(arguments, bare)
    models, config, class_map = load_classifiers(arguments, bare)
    data = with_data_root(config.data, arguments.data)
    config = config.model_copy(update={"data": data})
    images = read_held_out(data, class_map, say)
    if class_map is not None:
        class_map.require_same(images.class_map, names, images.source)
    else:
        order = order_of(images)
        say(f"note: {names} names no classes: its outputs are taken in this order, {order}")
    members = [class_probabilities(config, model.to(device), images, device) for model in models]
    found = ensemble(members)
    result = top_k_errors(found, images.class_map.names, protocol_of(config))
    for weights, model in zip(arguments.weights, models, strict=True):
        if weights in bare:
            say(f"note: {model.net.load_report}\n  taken as {assumptions(model.net)}")
    say(f"{images.source}\n{names}\n{result.table(per_class=True)}")
    if class_map is None and result.no_better_than_guessing:
        say(
            "note: no better than guessing: are these the classes the weights were trained on, and "
            "in that order?"
        )
    if arguments.save_probabilities:
        columns = {"probabilities": found.probabilities, "labels": found.labels}
        with replacing(arguments.save_probabilities) as path, path.open("wb") as file:
            np.savez(file, **columns, classes=np.array(images.class_map.names))
    if arguments.json:
        numbers = {**result.to_dict(), "evaluated": evaluated(arguments.weights, config)}
        write_text(Path(arguments.json), json.dumps(numbers, indent=2) + "\n")


def order_of(images: LabelledImages) -> str:
    """Return the first classes of held-out images, in the order of their labels, and where they are
    from.
    """
    names = images.class_map.names
    return f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''} of {images.source}"


def require_classifier_flags(arguments: argparse.Namespace, bare: list[str]) -> None:
    """Raise ValueError for flags that do not go with classifiers, and without --cfg where the
    weights, `bare` ones among them, need it.
    """
    others = ("--protocol", "--backend", "--iou", "--save-detections", "--split", "--submission")
    if given := given_of(arguments, others):
        raise ValueError(
            f"{given[0]} goes with detectors; a classifier's protocol is set by --set "
            "eval.views=ten_crop, and so on"
        )
    require_settings_of(arguments, "data.", "eval.", *(["model."] if bare else []))
    if not arguments.cfg and bare:
        what = (
            "is a detector"
            if is_detector(Path(bare[0]))
            else "does not say what network it is of: say so with --cfg"
        )
        raise ValueError(f"{bare[0]} {what}")
    if not arguments.cfg and set(arguments.weights) <= PUBLISHED.keys():
        raise ValueError(
            f"{arguments.weights[0]} is published: say how and on what to evaluate it with --cfg "
            "configs/imagenet_resnet50.yaml"
        )


def load_classifiers(
    arguments: argparse.Namespace, bare: list[str]
) -> tuple[list[ClassificationModel], ClassificationConfig, ClassMap | None]:
    """Return the classifiers, the configuration to evaluate them by (--cfg, or the first run's),
    and the classes where a run says them.
    """
    config = (
        read_config(config_path(arguments.cfg), ClassificationConfig, arguments.set)
        if arguments.cfg
        else None
    )
    models, class_map, class_source = [], None, None
    for weights in arguments.weights:
        if weights in PUBLISHED:
            models.append(published_classifier(weights))
        elif weights in bare:
            models.append(bare_classifier(config.model, Path(weights)))
        else:
            model, own_config, own_classes = load_classifier(Path(weights), notice)
            config = config or own_config
            if class_map is None:
                class_map, class_source = own_classes, weights
            class_map.require_same(own_classes, class_source, weights)
            models.append(model)
    if arguments.set and not arguments.cfg:
        config = with_overrides(config, arguments.set, arguments.weights[0], notice=notice)
    return models, config, class_map


def assumptions(net: Backbone) -> str:
    """Return in words what weights of another origin were taken to expect, which their tensors do
    not show.
    """
    spec = net.input_spec
    traits = [f"{name} {value}" for name, value in net.traits.items()]
    return ", ".join(
        [
            *traits,
            f"{spec.channel_order} images, mean {list(spec.mean)}, deviation {list(spec.std)}",
        ]
    )

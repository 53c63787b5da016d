"""Weights files of classifiers: a run's own, published ones, and those of other origins."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from backbones import (
    PUBLISHED,
    Backbone,
    InputSpec,
    WeightsError,
    create_backbone,
    save_weights,
)
from backbones.files import DIGEST
from backbones.weights import UNCHECKED
from detres.class_map import ClassMap
from detres.classification.build import build_model
from detres.classification.config import ClassificationConfig, ClassifierConfig
from detres.classification.model import ClassificationModel
from detres.config import Notice, check
from detres.files import (
    WHAT_FILES_HOLD,
    has_metadata,
    load_model_state,
    load_weights,
    mapping,
    metadata_field,
    require_metadata,
)
from detres.network import build_network
from detres.runs.saved import config_of_state, read_state, step_of_state, wing_of_state
from detres.runs.state import reading_field

WING = "classification"
"""What the training states of classifiers say that they are of."""

STATE_KEYS = ("input", "mean_image")
"""What these hold beside what every run has: the input that the training set made."""


def save_classifier(
    path: Path,
    model: ClassificationModel,
    config: ClassificationConfig,
    class_map: ClassMap,
    step: int,
) -> None:
    """Write weights that `backbones.load_weights` reads, and beside them what evaluating needs."""
    metadata = {
        "config": config.model_dump_json(),
        "classes": json.dumps(class_map.to_dict()),
        "step": str(step),
    }
    save_weights(model.net, path, metadata)


def is_classifier(path: Path) -> bool:
    """Whether a file holds the weights of a classifier: one of `save_classifier`, by its metadata,
    or the training state of its run, last.pt; a weights file that cannot be read is not.

    Raises what wing_of_state raises.
    """
    return has_metadata(path, WHAT_FILES_HOLD["a classifier"]) or wing_of_state(path) == WING


def load_classifier(
    path: Path, notice: Notice = lambda _: None
) -> tuple[ClassificationModel, ClassificationConfig, ClassMap]:
    """Rebuild a classifier from a file of `save_classifier`, or from the training state of its run:
    in eval mode, with its configuration and classes.

    notice: called with a line when the file, of an earlier version, carries no checksum, and when
    it is a state. Raises CheckpointError for a file that is damaged or of another kind,
    OtherWingError for the state of another wing, WeightsError when its weights do not fit its
    configuration.
    """
    if wing_of_state(path) is not None:
        return _load_state(path, notice)
    _, metadata = load_weights(path)
    require_metadata(metadata, "a classifier", path)
    tree = metadata_field(metadata, "config", path, mapping)
    config = check(ClassificationConfig, tree, str(path))
    class_map = metadata_field(metadata, "classes", path, ClassMap.from_dict)
    net = build_network(config.model.network, num_classes=len(class_map), weights=path)
    if DIGEST not in metadata:
        notice(f"{path}: {UNCHECKED}")
    model = ClassificationModel(net=net, label_smoothing=config.model.label_smoothing)
    return model.to(memory_format=torch.channels_last).eval(), config, class_map


def _load_state(
    path: Path, notice: Notice
) -> tuple[ClassificationModel, ClassificationConfig, ClassMap]:
    """As load_classifier, from what a stopped run is in the midst of."""
    state = read_state(path, WING, *STATE_KEYS)
    config = config_of_state(path, state, ClassificationConfig)
    with reading_field(path, "classes"):
        class_map = ClassMap.from_dict(state["classes"])
    notice(f"{path} is the state of a run after step {step_of_state(path, state)}")
    return model_of_state(path, state, config, class_map).eval(), config, class_map


def model_of_state(
    path: Path, state: dict, config: ClassificationConfig, class_map: ClassMap
) -> ClassificationModel:
    """Return the classifier, on the CPU, whose training state was read from `path`; raises
    CheckpointError when its weights or its input do not fit.
    """
    model = unfilled_model(path, state, config, class_map)
    with reading_field(path, "model"):
        load_model_state(model, state["model"], path)
    return model


def unfilled_model(
    path: Path, state: dict, config: ClassificationConfig, class_map: ClassMap
) -> ClassificationModel:
    """Return the same with random weights, but with the input of the state; raises CheckpointError
    when that does not fit.
    """
    with reading_field(path, "input"):
        spec = InputSpec.from_json(state["input"])
        spec = replace(spec, mean_image=_checked_mean(state["mean_image"]))
    return build_model(config, len(class_map), resumed=spec)


def _checked_mean(mean_image: object) -> Tensor | None:
    is_image = isinstance(mean_image, Tensor) and mean_image.dtype == torch.float32
    if mean_image is not None and not (is_image and mean_image.dim() == len(mean_image) == 3):
        raise ValueError("its mean image is no float32 (3, H, W)")
    return mean_image


def published_classifier(name: str) -> ClassificationModel:
    """Return a network with published weights, in eval mode; raises WeightsError offline, and for
    weights without a classifier.
    """
    return _with_own_head(create_backbone(PUBLISHED[name].architecture, weights=name))


def bare_classifier(settings: ClassifierConfig, path: Path) -> ClassificationModel:
    """Return a network, in eval mode, with weights of another origin and as many classes as they
    tell apart.

    Raises WeightsError for weights that do not fit, or that have no classifier; ValueError for
    settings.mean of a training set, which such weights do not bring along.
    """
    if settings.mean != "network":
        raise ValueError(
            f"{path} brings no mean of the images it was trained on (model.mean is "
            f"{settings.mean}): evaluate the weights.safetensors of its run, or set model.mean to "
            "network for the mean and deviation that networks of its kind usually expect"
        )
    return _with_own_head(build_network(settings.network, num_classes=None, weights=path))


def _with_own_head(net: Backbone) -> ClassificationModel:
    if any(name.startswith(net.head_prefix) for name in net.load_report.skipped):
        raise WeightsError(
            f"these weights have no classifier that could be evaluated: {net.load_report}"
        )
    return ClassificationModel(net=net).to(memory_format=torch.channels_last).eval()

"""Weights files of classifiers: a run's own, published ones, and those of other origins."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from backbones import (
    PUBLISHED,
    Backbone,
    WeightsError,
    create_backbone,
    read_metadata,
    save_weights,
)
from detres.class_map import ClassMap
from detres.classification.classifier import Classifier
from detres.classification.config import ClassificationConfig, ClassifierConfig
from detres.classification.model import ClassificationModel
from detres.config import check
from detres.files import CheckpointError, has_metadata
from detres.network import build_network

RUN_METADATA = ("config", "classes", "step")
"""What is written beside the weights, so that the file alone is enough to evaluate."""


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
    """Whether a weights file is one of `save_classifier`, by its metadata; a file that cannot be
    read is not.
    """
    return has_metadata(path, RUN_METADATA)


def load_classifier(path: Path) -> tuple[ClassificationModel, ClassificationConfig, ClassMap]:
    """Rebuild a classifier from a file of `save_classifier`: in eval mode, with its configuration
    and classes.

    Raises CheckpointError for a file of another kind, WeightsError when its weights do not fit its
    configuration.
    """
    metadata = read_metadata(path)
    missing = [key for key in RUN_METADATA if key not in metadata]
    if missing:
        raise CheckpointError(
            f"{path} holds weights but not what a classifier needs beside them: "
            f"{', '.join(missing)}. Give a run's weights.safetensors"
        )
    config = check(ClassificationConfig, json.loads(metadata["config"]), str(path))
    class_map = ClassMap.from_dict(json.loads(metadata["classes"]))
    net = build_network(config.model.network, num_classes=len(class_map), weights=path)
    model = ClassificationModel(net=net, label_smoothing=config.model.label_smoothing)
    return model.to(memory_format=torch.channels_last).eval(), config, class_map


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


def as_classifier(path: Path) -> Classifier:
    """Return a file of `save_classifier` as a user calls it; raises as `load_classifier` does."""
    model, _, class_map = load_classifier(path)
    return Classifier(model, class_map)

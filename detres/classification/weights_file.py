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
    save_weights,
)
from backbones.files import DIGEST
from backbones.weights import UNCHECKED
from detres.class_map import ClassMap
from detres.classification.config import ClassificationConfig, ClassifierConfig
from detres.classification.model import ClassificationModel
from detres.config import Notice, check
from detres.files import (
    WHAT_FILES_HOLD,
    has_metadata,
    load_weights,
    mapping,
    metadata_field,
    require_metadata,
)
from detres.network import build_network


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
    return has_metadata(path, WHAT_FILES_HOLD["a classifier"])


def load_classifier(
    path: Path, notice: Notice = lambda _: None
) -> tuple[ClassificationModel, ClassificationConfig, ClassMap]:
    """Rebuild a classifier from a file of `save_classifier`: in eval mode, with its configuration
    and classes.

    notice: called with a line when the file, of an earlier version, carries no checksum. Raises
    CheckpointError for a file that is damaged or of another kind, WeightsError when its weights do
    not fit its configuration.
    """
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

"""The step of a classifier that a bundle holds, to be computed once more, image by image."""

from __future__ import annotations

from detres.class_map import ClassMap
from detres.classification.config import ClassificationConfig
from detres.classification.structures import ClassTargets, CropBatch
from detres.classification.weights_file import unfilled_model
from detres.files import require_fitting
from detres.runs.bundle import Bundle
from detres.runs.replay import Part, Replayed


def classification_step(bundle: Bundle) -> Replayed:
    """Return the model and the batches of a step; raises CheckpointError, ConfigError."""
    config = bundle.config(ClassificationConfig)
    with bundle.reading():
        training = bundle.state["training"]
        class_map = ClassMap.from_dict(training["classes"])
        model = unfilled_model(bundle.path, training, config, class_map)
        require_fitting(model, bundle.state["model"], bundle.path)
        model.load_state_dict(bundle.state["model"])
        parts = [
            (CropBatch(images["pixels"], tuple(images["ids"])), ClassTargets(targets["labels"]))
            for images, targets in bundle.state["parts"]
        ]
    return Replayed(model, parts, _alone, _faults)


def _alone(images: CropBatch, targets: ClassTargets, n: int) -> Part:
    """Twice, for batch norm has no statistics of a map of one cell of one image."""
    return images.select([n, n]), ClassTargets(targets.labels[[n, n]])


def _faults(_images: CropBatch, _targets: ClassTargets, _n: int) -> list[str]:
    return []

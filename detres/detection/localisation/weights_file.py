"""Weights files of localisers, enough by themselves to evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from backbones.files import DamagedFileError, require_digest
from detres.class_map import ClassMap
from detres.config import check
from detres.detection.localisation.build import build_localiser
from detres.detection.localisation.config import LocalisationConfig, LocalisationModelConfig
from detres.detection.models.class_rpn import ClassRPN
from detres.detection.models.rcnn import RCNN
from detres.files import (
    WHAT_FILES_HOLD,
    CheckpointError,
    has_metadata,
    load_model_state,
    load_weights,
    mapping,
    metadata_field,
    require_fitting,
    require_metadata,
    write_safetensors,
)


def save_localiser(
    path: Path,
    model: ClassRPN | RCNN,
    config: LocalisationConfig,
    class_map: ClassMap,
    step: int,
    proposer: LocalisationModelConfig | None = None,
) -> None:
    """Write a weights file that is enough by itself: weights, configuration, classes.

    proposer: of an R-CNN, the settings of the per-class RPN whose proposals it takes and whose
    weights are among its own.
    """
    metadata = {
        "localiser": config.model_dump_json(),
        "proposer": "null" if proposer is None else proposer.model_dump_json(),
        "classes": json.dumps(class_map.to_dict()),
        "step": str(step),
    }
    write_safetensors(path, model.state_dict(), metadata)


def is_localiser(path: Path) -> bool:
    """Whether a weights file is one of `save_localiser`, by its metadata; a file that cannot be
    read is not.
    """
    return has_metadata(path, WHAT_FILES_HOLD["a localiser"])


def load_localiser(path: Path) -> tuple[ClassRPN | RCNN, LocalisationConfig, ClassMap]:
    """Rebuild a localiser from a file of `save_localiser`: the model in eval mode, its
    configuration, its classes.

    Raises CheckpointError naming the file when it is damaged or of another kind, and when its
    weights do not fit its configuration.
    """
    tensors, metadata = load_weights(path)
    require_metadata(metadata, "a localiser", path)
    try:
        require_digest(metadata, path)
    except DamagedFileError as error:
        raise CheckpointError(str(error)) from None
    tree = metadata_field(metadata, "localiser", path, mapping)
    config = check(LocalisationConfig, tree, str(path))
    class_map = metadata_field(metadata, "classes", path, ClassMap.from_dict)
    proposer = None
    if config.model.kind == "rcnn":
        own = metadata_field(metadata, "proposer", path, mapping)
        proposer = check(LocalisationModelConfig, own, str(path))
    with torch.device("meta"):  # which takes no memory, whatever size the file says the model has
        require_fitting(build_localiser(config.model, proposer, len(class_map)), tensors, path)
    model = build_localiser(config.model, proposer, len(class_map))
    load_model_state(model, tensors, path)
    return model.eval(), config, class_map


def load_proposer(path: Path) -> tuple[ClassRPN, LocalisationConfig, ClassMap]:
    """Return the per-class RPN of a file of `save_localiser`; raises as load_localiser does, and
    CheckpointError for an R-CNN.
    """
    model, config, class_map = load_localiser(path)
    if isinstance(model, RCNN):
        raise CheckpointError(
            f"{path} holds an R-CNN: proposals are those of a per-class RPN, its own were of "
            f"{config.model.rcnn.proposals}"
        )
    return model, config, class_map

"""Weights files of localisers, enough by themselves to evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

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
from detres.runs.saved import config_of_state, read_state, weights_of_state, wing_of_state
from detres.runs.state import reading_field

WING = "localisation"
"""What the training states of localisers say that they are of."""


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
    """Whether a file holds the weights of a localiser: one of `save_localiser`, by its metadata, or
    the training state of its run, last.pt; a weights file that cannot be read is not.

    Raises what wing_of_state raises.
    """
    return has_metadata(path, WHAT_FILES_HOLD["a localiser"]) or wing_of_state(path) == WING


def load_localiser(path: Path) -> tuple[ClassRPN | RCNN, LocalisationConfig, ClassMap]:
    """Rebuild a localiser from a file of `save_localiser`, or from the training state of its run:
    the model in eval mode, its configuration, its classes.

    Raises CheckpointError naming the file when it is damaged or of another kind, and when its
    weights do not fit its configuration; OtherWingError for the state of another wing.
    """
    if wing_of_state(path) is not None:
        return _load_state(path)
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
    return _rebuilt(path, config, proposer, class_map, tensors), config, class_map


def _load_state(path: Path) -> tuple[ClassRPN | RCNN, LocalisationConfig, ClassMap]:
    """As load_localiser, from what a stopped run is in the midst of."""
    state = read_state(path, WING)
    config = config_of_state(path, state, LocalisationConfig)
    with reading_field(path, "classes"):
        class_map = ClassMap.from_dict(state["classes"])
    proposer, tensors = proposer_of_state(path, state, config), weights_of_state(path, state)
    return _rebuilt(path, config, proposer, class_map, tensors), config, class_map


def proposer_of_state(
    path: Path, state: dict, config: LocalisationConfig
) -> LocalisationModelConfig | None:
    """Return the settings of the per-class RPN in the state, read from `path`, of an R-CNN; where
    an earlier version wrote it, of the file that the RPN is from; None for a per-class RPN.
    """
    if config.model.kind == "class_rpn":
        return None
    if "proposer" not in state:
        _, own, _ = load_proposer(Path(config.model.rcnn.proposals))
        return own.model
    with reading_field(path, "proposer"):
        return check(LocalisationModelConfig, mapping(json.loads(state["proposer"])), str(path))


def _rebuilt(
    path: Path,
    config: LocalisationConfig,
    proposer: LocalisationModelConfig | None,
    class_map: ClassMap,
    tensors: dict[str, Tensor],
) -> ClassRPN | RCNN:
    """The localiser of `config` with the tensors read from `path`, in eval mode."""
    with torch.device("meta"):  # which takes no memory, whatever size the file says the model has
        require_fitting(build_localiser(config.model, proposer, len(class_map)), tensors, path)
    model = build_localiser(config.model, proposer, len(class_map))
    load_model_state(model, tensors, path)
    return model.eval()


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

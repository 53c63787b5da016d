"""Weights files of detectors, enough by themselves to evaluate and predict."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from backbones.files import DIGEST, DamagedFileError, read_safetensors_metadata, require_digest
from backbones.weights import OF_BACKBONE, UNCHECKED, backbone_facts
from detres.class_map import ClassMap
from detres.config import Notice, check
from detres.detection.build import build_detector, input_spec_of
from detres.detection.config import DetectionConfig
from detres.detection.data.learnt_images import LearntImages
from detres.detection.models.faster_rcnn import FasterRCNN
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
from detres.runs.saved import (
    config_of_state,
    read_state,
    step_of_state,
    weights_of_state,
    wing_of_state,
)
from detres.runs.state import reading_field

FORMAT = "detres-detector-3"
"""What the files of `save_detector` call themselves; -1 had other names, -1 and -2 no digest."""

THRESHOLDS = "score_thresholds"
"""In the metadata: class name -> the score from which it is best taken."""

LEARNT = "learnt_images"
"""In the metadata and in last.pt: LearntImages.to_dict, of a run whose val was drawn."""

EARLIER_PREFIXES = {"roi_head.conv5.": "roi_head.box_head.conv5."}
"""Of tensors in files of format detres-detector-1 and in last.pt of its time -> as they are now."""

WING = "detection"
"""What the training states of detectors say that they are of."""

_PREDICTOR = "roi_head.predictor."


def current_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return `tensors` of a detector, of any shape (...,), under the names they have now, in the
    same order; those of an earlier version are renamed.
    """
    renamed = {}
    for name, tensor in tensors.items():
        for earlier, now in EARLIER_PREFIXES.items():
            if name.startswith(earlier):
                name = now + name.removeprefix(earlier)
        renamed[name] = tensor
    return renamed


UNTRAINED = {
    "rpn": "its run trained the RPN alone (train.scheme=rpn), not what detects",
    "fast_rcnn": "its run trained it on saved proposals (train.scheme=fast_rcnn), not its RPN",
}
"""Scheme of a run -> what is to be said of its weights."""


@dataclass(frozen=True)
class Origin:
    """init_from: the weights file of the detector that training started from. learnt: which images
    were learned from, where val was drawn from them. None where there is none.
    """

    init_from: str | None = None
    learnt: LearntImages | None = None


def save_detector(
    path: Path,
    detector: FasterRCNN,
    config: DetectionConfig,
    class_map: ClassMap,
    step: int,
    origin: Origin = Origin(),
    score_thresholds: dict[str, float] | None = None,
) -> None:
    """Write a weights file that is enough by itself: weights, model and data configuration,
    classes, protocol.

    score_thresholds: class name -> the score from which it is best taken, where that was measured.
    """
    metadata = {
        "format": FORMAT,
        "model": config.model.model_dump_json(),
        "classes": json.dumps(class_map.to_dict()),
        "data": config.data.model_dump_json(),
        "eval": config.eval.model_dump_json(),
        "scheme": json.dumps(config.train.scheme),
        "step": str(step),
        OF_BACKBONE: json.dumps(
            {
                **backbone_facts(detector.backbone),
                "input_spec": input_spec_of(config.model.input).to_json(),
            }
        ),
    }
    if origin.init_from is not None:
        metadata["init_from"] = json.dumps(origin.init_from)
    if origin.learnt is not None:
        metadata[LEARNT] = json.dumps(origin.learnt.to_dict())
    if score_thresholds is not None:
        metadata[THRESHOLDS] = json.dumps(score_thresholds)
    write_safetensors(path, detector.state_dict(), metadata)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], int]:
    """Return the tensors, of any shape (...,), of a file of `save_detector` under the names they
    have now, and after how many steps they are; raises CheckpointError as `load_detector` does.
    """
    tensors, metadata = load_weights(path)
    require_metadata(metadata, "a detector", path)
    _require_known_format(metadata, path)
    return current_names(tensors), metadata_field(metadata, "step", path, int)


def started_from(path: Path) -> str | None:
    """Return the weights file of the detector from which the training of the one in `path` started;
    None where there was none, or an earlier version did not write it down.
    """
    if wing_of_state(path) is not None:
        return read_state(path, WING).get("init_from")
    metadata = read_safetensors_metadata(path)
    return metadata_field(metadata, "init_from", path, str) if "init_from" in metadata else None


def learnt_images_of(path: Path) -> LearntImages | None:
    """Return what the detector in `path` learned from; None where val was not drawn from it, or an
    earlier version did not write it down. Raises CheckpointError for what cannot be that.
    """
    if wing_of_state(path) is not None:
        tree = read_state(path, WING).get(LEARNT)
        with reading_field(path, LEARNT):
            return None if tree is None else LearntImages.from_dict(tree)
    metadata = read_safetensors_metadata(path)
    if LEARNT not in metadata:
        return None
    return metadata_field(metadata, LEARNT, path, LearntImages.from_dict)


def score_thresholds_of(path: Path, class_map: ClassMap) -> tuple[float, ...] | None:
    """Return for each class of the detector in `path` the score from which it is best taken, found
    on its held-out images; None where that was not measured, as of a training state. Raises
    CheckpointError for scores of other classes and values that are none.
    """
    if wing_of_state(path) is not None:
        return None
    metadata = read_safetensors_metadata(path)
    if THRESHOLDS not in metadata:
        return None

    def in_order(tree: object) -> tuple[float, ...]:
        scores = mapping(tree)
        if set(scores) != set(class_map.names):
            raise ValueError("it is of other classes")
        found = tuple(float(scores[name]) for name in class_map.names)
        if not all(0 <= score <= 1 for score in found):
            raise ValueError("a score is outside 0..1")
        return found

    return metadata_field(metadata, THRESHOLDS, path, in_order)


def is_detector(path: Path) -> bool:
    """Whether a file holds the weights of a detector: one of `save_detector`, by its metadata, or
    the training state of its run, last.pt; a weights file that cannot be read is not.

    Raises what wing_of_state raises.
    """
    return has_metadata(path, WHAT_FILES_HOLD["a detector"]) or wing_of_state(path) == WING


def load_detector(
    path: Path, notice: Notice = lambda _: None
) -> tuple[FasterRCNN, DetectionConfig, ClassMap]:
    """Rebuild a detector from a file of `save_detector`, or from the training state of its run: the
    model in eval mode, its configuration, its classes.

    notice: called with a line when the file, of an earlier version, carries no checksum, and when
    it is a state. Raises CheckpointError naming the file when it is damaged, no detres weights
    file, or of a newer version, and when its weights do not fit its configuration; OtherWingError
    for the state of another wing.
    """
    if wing_of_state(path) is not None:
        return _load_state(path, notice)
    tensors, metadata = load_weights(path)
    require_metadata(metadata, "a detector", path)
    _require_known_format(metadata, path)
    if DIGEST not in metadata:
        notice(f"{path}: {UNCHECKED}")
    tree = {key: metadata_field(metadata, key, path, mapping) for key in ("model", "data", "eval")}
    scheme = "joint"  # the only one of earlier files
    if "scheme" in metadata:
        scheme = metadata_field(metadata, "scheme", path, str)
    if scheme in UNTRAINED:
        notice(f"{path}: {UNTRAINED[scheme]}")
    train = {"steps": 1} if scheme == "alternating" else {"steps": 1, "scheme": scheme}
    tree = {"name": "detector", "train": train, **tree}
    config = check(DetectionConfig, tree, str(path))
    class_map = metadata_field(metadata, "classes", path, ClassMap.from_dict)
    return _rebuilt(path, config, class_map, current_names(tensors)), config, class_map


def _load_state(path: Path, notice: Notice) -> tuple[FasterRCNN, DetectionConfig, ClassMap]:
    """As load_detector, from what a stopped run is in the midst of."""
    state = read_state(path, WING)
    config = config_of_state(path, state, DetectionConfig)
    notice(f"{path} is the state of a run after step {step_of_state(path, state)}")
    scheme = config.train.scheme
    if scheme in UNTRAINED:
        notice(f"{path}: {UNTRAINED[scheme]}")
    with reading_field(path, "classes"):
        class_map = ClassMap.from_dict(state["classes"])
    tensors = weights_of_state(path, state)
    if scheme in UNTRAINED:  # what learns there is a part of the detector, and holds it
        tensors = {name.removeprefix("detector."): each for name, each in tensors.items()}
    return _rebuilt(path, config, class_map, current_names(tensors)), config, class_map


def _rebuilt(
    path: Path, config: DetectionConfig, class_map: ClassMap, tensors: dict[str, Tensor]
) -> FasterRCNN:
    """The detector of `config` with the tensors read from `path`, in eval mode."""
    with torch.device("meta"):  # which takes no memory, whatever size the file says the model has
        empty = build_detector(config.model, len(class_map), pretrained=False)
    require_same_context(empty, tensors, path)
    require_fitting(empty, tensors, path)
    detector = build_detector(config.model, len(class_map), pretrained=False)
    load_model_state(detector, tensors, path)
    return detector.eval()


def require_same_context(detector: FasterRCNN, tensors: dict[str, Tensor], path: Path) -> None:
    """Raise CheckpointError when `tensors`, of any shape (...,), are of a detector with global
    context and `detector` is without, or the other way round: its predictor is twice as wide, and
    all else as it should be.
    """
    weight, mine = tensors.get(f"{_PREDICTOR}cls_score.weight"), detector.roi_head.context
    width = detector.roi_head.predictor.cls_score.in_features
    if weight is None or weight.shape[1:] != (width // 2 if mine else width * 2,):
        return
    own, given = (
        {name: each.shape for name, each in state.items() if not name.startswith(_PREDICTOR)}
        for state in (detector.state_dict(), tensors)
    )
    if own != given:  # of another network, whose features happen to be as many
        return
    raise CheckpointError(
        f"{path} holds a detector {'without' if mine else 'with'} global context, and the model "
        f"is one {'with' if mine else 'without'} it: model.roi.context must be as the weights "
        f"were trained, {str(not mine).lower()}"
    )


def load_members(
    paths: Sequence[Path], notice: Notice = lambda _: None
) -> tuple[list[tuple[FasterRCNN, DetectionConfig]], ClassMap]:
    """Return the detectors of one or more files with their configurations, and their classes.

    Raises as `load_detector` does, and ClassMismatchError printing both lists when the classes of
    two files differ.
    """
    loaded = [load_detector(path, notice) for path in paths]
    class_map = loaded[0][2]
    for path, (_, _, classes) in zip(paths[1:], loaded[1:], strict=True):
        class_map.require_same(classes, str(paths[0]), str(path))
    return [(model, config) for model, config, _ in loaded], class_map


def _require_known_format(metadata: dict[str, str], path: Path) -> None:
    written, own = (
        re.fullmatch(r"detres-detector-(\d+)", text) for text in (metadata["format"], FORMAT)
    )
    if written is None:
        raise CheckpointError(
            f"{path} has the format {metadata['format']!r:.60}, not one of detres: {FORMAT}"
        )
    if int(written[1]) > int(own[1]):
        raise CheckpointError(
            f"{path} has the format {written[0]}, written by a newer detres; this one reads up to "
            f"{FORMAT}: update it"
        )
    try:
        if written[0] == FORMAT:
            require_digest(metadata, path)
    except DamagedFileError as error:
        raise CheckpointError(str(error)) from None

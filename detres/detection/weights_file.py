"""Weights files of detectors, enough by themselves to evaluate and predict."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor, nn

from detres.class_map import ClassMap
from detres.config import check
from detres.detection.build import build_detector
from detres.detection.config import DetectionConfig
from detres.detection.inference.detector import Detector
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.files import (
    has_metadata,
    load_model_state,
    load_weights,
    require_metadata,
    write_safetensors,
)

WEIGHTS_METADATA = ("format", "model", "classes", "data", "eval", "step")
FORMAT = "detres-detector-2"

EARLIER_PREFIXES = {"roi_head.conv5.": "roi_head.box_head.conv5."}
"""Of tensors in files of format detres-detector-1 and in last.pt of its time -> as they are now."""


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


def save_detector(
    path: Path, detector: nn.Module, config: DetectionConfig, class_map: ClassMap, step: int
) -> None:
    """Write a weights file that is enough by itself: weights, model and data configuration,
    classes, protocol.
    """
    metadata = {
        "format": FORMAT,
        "model": config.model.model_dump_json(),
        "classes": json.dumps(class_map.to_dict()),
        "data": config.data.model_dump_json(),
        "eval": config.eval.model_dump_json(),
        "step": str(step),
    }
    write_safetensors(path, detector.state_dict(), metadata)


def is_detector(path: Path) -> bool:
    """Whether a weights file is one of `save_detector`, by its metadata; a file that cannot be read
    is not.
    """
    return has_metadata(path, WEIGHTS_METADATA)


def load_detector(path: Path) -> tuple[FasterRCNN, DetectionConfig, ClassMap]:
    """Rebuild a detector from a file of `save_detector`: the model in eval mode, its configuration,
    its classes.

    Raises ValueError naming the file when it is no detres weights file or its weights do not fit
    its configuration.
    """
    tensors, metadata = load_weights(path)
    require_metadata(metadata, WEIGHTS_METADATA, path)
    tree = {key: json.loads(metadata[key]) for key in ("model", "data", "eval")}
    tree = {"name": Path(path).stem, "train": {"steps": 1}, **tree}
    config = check(DetectionConfig, tree, str(path))
    class_map = ClassMap.from_dict(json.loads(metadata["classes"]))
    detector = build_detector(config.model, len(class_map), pretrained=False)
    load_model_state(detector, current_names(tensors), path)
    return detector.eval(), config, class_map


def as_detector(path: Path) -> Detector:
    """Return a file of `save_detector` as a user calls it; raises as `load_detector` does."""
    model, config, class_map = load_detector(path)
    size = config.model.input
    return Detector(model, class_map, short_side=size.short_side, max_side=size.max_side)

"""The step of a detector that a bundle holds, to be computed once more, image by image."""

from __future__ import annotations

from torch import Tensor

from detres.class_map import ClassMap
from detres.detection.alternating import TRAININGS
from detres.detection.build import build_detector
from detres.detection.config import DetectionConfig
from detres.detection.structures import ImageBatch, Target
from detres.files import require_fitting
from detres.runs.bundle import Bundle
from detres.runs.replay import Part, Replayed

_FAR = 2.0
"""A box is called huge that reaches so many sides of its image beyond it."""


def detection_step(bundle: Bundle) -> Replayed:
    """Return the model and the batches of a step; raises CheckpointError, ConfigError."""
    config = bundle.config(DetectionConfig)
    with bundle.reading():
        class_map = ClassMap.from_dict(bundle.state["training"]["classes"])
        detector = build_detector(config.model, len(class_map), pretrained=False)
        if config.train.shared_layers == "fixed":
            detector.backbone.freeze(len(detector.backbone.channels))
        model = TRAININGS[config.train.scheme].trained_part(detector)
        require_fitting(model, bundle.state["model"], bundle.path)
        model.load_state_dict(bundle.state["model"])
        parts = [_part(*part) for part in bundle.state["parts"]]
    return Replayed(model, parts, _alone, _faults)


def _part(images: dict, targets: list[dict]) -> Part:
    proposals = images["proposals"]
    batch = ImageBatch(
        pixels=images["pixels"],
        sizes=tuple(map(tuple, images["sizes"])),
        original_sizes=tuple(map(tuple, images["original_sizes"])),
        ids=tuple(images["ids"]),
        proposals=None if proposals is None else tuple(proposals),
        seeds=None if images["seeds"] is None else tuple(images["seeds"]),
    )
    return batch, [Target(**target) for target in targets]


def _alone(images: ImageBatch, targets: list[Target], n: int) -> Part:
    return images.select([n]), [targets[n]]


def _faults(images: ImageBatch, targets: list[Target], n: int) -> list[str]:
    """What is wrong with the boxes of image `n`, and the proposals for it."""
    height, width = images.sizes[n]
    found = _of_boxes("box", targets[n].boxes, max(height, width))
    if images.proposals is not None:
        found += _of_boxes("proposal", images.proposals[n], max(height, width))
    return found


def _of_boxes(what: str, boxes: Tensor, side: int) -> list[str]:
    low, high = -_FAR * side, (1 + _FAR) * side
    found = []
    for row, box in enumerate(boxes):
        finite = bool(box.isfinite().all())
        if finite and bool(((box >= low) & (box <= high)).all()):
            continue
        values = ", ".join(f"{value:g}" for value in box.tolist())
        fault = f"huge beside an image of {side} px" if finite else "not finite"
        found.append(f"{what} {row} of {len(boxes)} (counted from 0) is ({values}), {fault}")
    return found

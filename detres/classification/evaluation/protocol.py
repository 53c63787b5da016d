"""A classifier on held-out images, by the protocol of its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from detres.classification.config import ClassificationConfig
from detres.classification.data.crops import CenterCrop, CropDataset, WholeImage, crop_eval_loader
from detres.classification.data.in_memory import ArrayEvalBatches
from detres.classification.evaluation.top_k import ClassProbabilities, ClassResult, top_k_errors
from detres.classification.evaluation.views import center, classify, dense, ten_crop
from detres.classification.model import ClassificationModel
from detres.classification.structures import ClassTargets, CropBatch
from detres.images.source import LabelledImages

RESIZED = "bilinear without antialiasing"
"""How every image is resized, in training and evaluation; said with a protocol, for antialiasing
changes the numbers.
"""


def protocol_of(config: ClassificationConfig) -> str:
    """Return in words how held-out images are classified."""
    data, settings = config.data, config.eval
    if settings.views == "dense":
        scales = list(settings.scales)
        return f"fully convolutional, shorter sides {scales} px and mirrors, {RESIZED}"
    if data.arrays:
        return "whole images as they are"
    ten = "10 crops (corners, centre, mirrors)"
    crops = "centre crop" if settings.views == "center" else ten
    return f"{crops}, {data.crop_side} px of shorter side {settings.short_side} px, {RESIZED}"


def class_probabilities(
    config: ClassificationConfig,
    model: ClassificationModel,
    images: LabelledImages,
    device: torch.device,
) -> ClassProbabilities:
    """Run the classifier over all images by the configuration's protocol.

    images: in memory (their `size` is known), or encoded. Raises what `classify` and
    the readers raise.
    """
    views = _views(config, model, images)
    return classify(model, _batches(config, images), device, views, len(images.class_map))


def evaluate_classifier(
    config: ClassificationConfig,
    model: ClassificationModel,
    images: LabelledImages,
    device: torch.device,
) -> ClassResult:
    """Return the errors of a classifier on images by the configuration's protocol; raises what
    `class_probabilities` raises.
    """
    found = class_probabilities(config, model, images, device)
    return top_k_errors(found, images.class_map.names, protocol_of(config))


def _views(
    config: ClassificationConfig, model: ClassificationModel, images: LabelledImages
) -> Callable[[Tensor], Tensor]:
    """Pixels (N, 3, H, W) uint8 -> probabilities (N, K)."""
    if config.eval.views == "center":
        return center(model)
    if config.eval.views == "ten_crop":
        return ten_crop(model, config.data.crop_side)
    side = config.data.crop_side if images.size is None else images.size[0]
    return dense(model, config.eval.scales, max(1, side // model.net.strides[model.net.last_stage]))


def _batches(
    config: ClassificationConfig, images: LabelledImages
) -> Iterable[tuple[CropBatch, ClassTargets]]:
    data, settings = config.data, config.eval
    if images.size is not None:
        return ArrayEvalBatches(images, batch_size=settings.batch_size)
    if settings.views == "center":
        crop = CenterCrop(short_side=settings.short_side, crop_side=data.crop_side)
        batch_size = settings.batch_size
    else:  # images of different sizes come one by one
        crop = WholeImage(short_side=settings.short_side if settings.views == "ten_crop" else None)
        batch_size = 1
    dataset = CropDataset(images, crop)
    return crop_eval_loader(dataset, batch_size=batch_size, num_workers=data.workers)

"""A classifier on held-out images, by the protocol of its configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from detres.classification.config import ClassificationConfig
from detres.classification.data.crops import CenterCrop, CropDataset, WholeImage, crop_eval_loader
from detres.classification.data.in_memory import ArrayEvalBatches
from detres.classification.evaluation.top_k import ClassProbabilities, ClassResult, top_k_errors
from detres.classification.evaluation.views import center, classify, dense, ten_crop
from detres.classification.model import ClassificationModel
from detres.classification.structures import ClassTargets, CropBatch
from detres.engine.batches import Share
from detres.engine.distributed import Group
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
    group: Group | None = None,
) -> ClassProbabilities:
    """Run the classifier over all images by the configuration's protocol.

    images: in memory (their `size` is known), or encoded. group: of processes that divide the
    batches among them, each of which gets the whole; None: one alone. Raises what `classify` and
    the readers raise, ValueError for fewer batches than processes.
    """
    group = group or Group()
    batches = _batches(config, images, group.share)
    if group.size > 1 and len(images) < group.size * _batch_size(config, images):
        raise ValueError(
            f"{images.source}: {len(images)} images in batches of {_batch_size(config, images)} "
            f"are too few for {group.size} processes to evaluate: give a smaller eval.batch_size"
        )
    views = _views(config, model, images)
    own = classify(model, batches, device, views, len(images.class_map))
    return _interleaved(group.gather(own), _batch_size(config, images))


def _interleaved(shares: list[ClassProbabilities], batch_size: int) -> ClassProbabilities:
    """What was found in all images, in their order, of shares that have every n-th batch each."""
    if len(shares) == 1:
        return shares[0]
    number = sum(len(share.labels) for share in shares)
    batch = np.arange(number) // batch_size
    order = np.concatenate([np.flatnonzero(batch % len(shares) == n) for n in range(len(shares))])
    back = np.argsort(order)
    return ClassProbabilities(
        np.concatenate([share.probabilities for share in shares])[back],
        np.concatenate([share.labels for share in shares])[back],
    )


def evaluate_classifier(
    config: ClassificationConfig,
    model: ClassificationModel,
    images: LabelledImages,
    device: torch.device,
    group: Group | None = None,
) -> ClassResult:
    """Return the errors of a classifier on images by the configuration's protocol; group: as of
    `class_probabilities`, and raises what that raises.
    """
    found = class_probabilities(config, model, images, device, group)
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


def _batch_size(config: ClassificationConfig, images: LabelledImages) -> int:
    """Images of different sizes come one by one."""
    of_one_size = images.size is not None or config.eval.views == "center"
    return config.eval.batch_size if of_one_size else 1


def _batches(
    config: ClassificationConfig, images: LabelledImages, share: Share
) -> Iterable[tuple[CropBatch, ClassTargets]]:
    data, settings, batch_size = config.data, config.eval, _batch_size(config, images)
    if images.size is not None:
        return ArrayEvalBatches(images, batch_size=batch_size, share=share)
    if settings.views == "center":
        crop = CenterCrop(short_side=settings.short_side, crop_side=data.crop_side)
    else:
        crop = WholeImage(short_side=settings.short_side if settings.views == "ten_crop" else None)
    dataset = CropDataset(images, crop)
    return crop_eval_loader(dataset, batch_size=batch_size, num_workers=data.workers, share=share)

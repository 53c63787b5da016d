"""The one bridge from a classification configuration to objects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import nn
from torchvision.transforms.v2 import MixUp

from backbones import InputSpec
from detres.classification.config import ClassificationConfig, ClassificationTrainConfig
from detres.classification.data.crops import CropDataset, TrainCrop, crop_train_loader
from detres.classification.data.in_memory import ArrayTrainBatches
from detres.classification.model import ClassificationModel
from detres.classification.structures import ClassTargets, CropBatch
from detres.engine.batches import WHOLE, Share
from detres.engine.optimizers import adamw, sgd
from detres.engine.schedule import Schedule
from detres.images.source import LabelledImages
from detres.network import build_network
from detres.runs.settings import build_schedule


def build_model(
    config: ClassificationConfig, num_classes: int, *, resumed: InputSpec | None = None
) -> ClassificationModel:
    """Return a classifier in channels last, on the CPU, from model.network.weights where there are
    any.

    resumed: the input of the network whose weights are about to be loaded into it; then no others
    are looked for. Raises what backbones.create_backbone raises, ValueError when statistics of
    batch norm are to be averaged and there are none.
    """
    settings = config.model
    weights = settings.network.weights if resumed is None else None
    net = build_network(settings.network, num_classes=num_classes, weights=weights)
    net.input_spec = resumed or net.input_spec
    norms = nn.modules.batchnorm._BatchNorm
    if config.train.recompute_batches and not any(isinstance(m, norms) for m in net.modules()):
        raise ValueError(
            "train.recompute_batches averages statistics of batch norm, and "
            f"{settings.network.name} has none: give 0"
        )
    mixup = MixUp(alpha=config.train.mixup, num_classes=num_classes) if config.train.mixup else None
    model = ClassificationModel(net=net, label_smoothing=settings.label_smoothing, mixup=mixup)
    return model.to(memory_format=torch.channels_last)


def build_train_batches(
    config: ClassificationConfig,
    images: LabelledImages,
    *,
    steps: int,
    start_step: int,
    device: torch.device,
    share: Share = WHOLE,
) -> Iterable[tuple[CropBatch, ClassTargets]]:
    """Return the augmented batches of the steps start_step..steps - 1, or the `share` of them in
    its parts.

    images: in memory (their `size` is known), or encoded.
    """
    data = config.data
    if images.size is not None:
        return ArrayTrainBatches(
            images,
            batch_size=config.train.images_per_step,
            seed=config.seed,
            steps=steps,
            start_step=start_step,
            pad=data.pad,
            flip=data.flip,
            device=device,
            share=share,
        )
    transform = TrainCrop(
        short_sides=data.short_sides,
        crop_side=data.crop_side,
        flip=data.flip,
        pca=data.pca,
        randaugment=data.randaugment,
    )
    dataset = CropDataset(images, transform, damaged=data.damaged)
    return crop_train_loader(
        dataset,
        batch_size=config.train.images_per_step,
        seed=config.seed,
        steps=steps,
        start_step=start_step,
        num_workers=data.workers,
        share=share,
    )


def build_class_schedule(settings: ClassificationTrainConfig, num_images: int) -> Schedule:
    """Return the schedule, its length and milestones in steps, for a training set of
    `num_images`.
    """
    schedule = build_schedule(settings, num_images)
    return replace(schedule, warmup_until_error=settings.warmup_until_error)


def build_class_optimizer(
    settings: ClassificationTrainConfig, model: nn.Module
) -> torch.optim.Optimizer:
    """Return the optimizer over what learns in `model`, biases and norms decaying as weights do
    (fb.resnet.torch); raises ValueError when nothing does.
    """
    decay = settings.weight_decay
    if settings.optimizer == "adamw":
        return adamw(model, weight_decay=decay)
    return sgd(
        model,
        momentum=settings.momentum,
        weight_decay=decay,
        norm_weight_decay=decay,
        bias_lr_scale=settings.bias_lr_scale,
    )

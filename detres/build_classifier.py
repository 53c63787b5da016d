"""From a classification configuration to objects: labelled images, classifier, batches, scoring,
weights files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms.v2 import MixUp

from backbones import (
    PUBLISHED,
    Backbone,
    InputSpec,
    WeightsError,
    create_backbone,
    read_metadata,
    save_weights,
)
from detres.build import build_schedule
from detres.cls_config import (
    ClassificationConfig,
    ClassificationDataConfig,
    ClassificationTrainConfig,
    ClassifierConfig,
    NetworkConfig,
)
from detres.config import check
from detres.data.array_batches import ArrayEvalBatches, ArrayTrainBatches
from detres.data.coco import read_coco
from detres.data.crops import (
    CenterCrop,
    CropDataset,
    TrainCrop,
    WholeImage,
    crop_eval_loader,
    crop_train_loader,
)
from detres.data.encoded import ImageFiles, ImageShards
from detres.data.images import decode_in_memory, hold_out, read_cifar10, read_image_folder
from detres.data.object_crops import crop_objects
from detres.data.shapes import ensure_shapes
from detres.data.shards import read_shards
from detres.engine.checkpoint import CheckpointError, has_metadata
from detres.engine.schedule import Schedule
from detres.engine.train import adamw, sgd
from detres.evaluation.classify import (
    ClassResult,
    ClassScores,
    center,
    classify,
    dense,
    score_classes,
    ten_crop,
)
from detres.image_io import ImageReadError
from detres.models.classifier import Classifier
from detres.structures import ClassMap, ClassTargets, CropBatch, ImageArrays

Images = ImageFiles | ImageShards | ImageArrays
MEAN_IMAGES = 5000
"""Of this many crops the mean of a pixel is known to about 1 of 255."""
RESIZED = "bilinear without antialiasing"
"""How every image is resized, in training and scoring; said with a protocol, for antialiasing
changes the numbers.
"""
RUN_METADATA = ("config", "classes", "step")
"""What tools/train_cls.py writes beside the weights, so that the file alone can be scored."""


def read_class_splits(data: ClassificationDataConfig) -> tuple[Images, Images]:
    """Return the training and the held-out images of a configuration whose root is settled.

    Raises ClassMismatchError when their classes differ, ValueError when images in memory are of two
    sizes, and what the readers raise.
    """
    if data.format == "shapes":
        root = ensure_shapes(
            Path(data.root) if data.root else None,
            num_train=data.shapes_train,
            num_val=data.shapes_val,
        )
        splits = [
            read_coco(root / "annotations" / f"{split}.json", root / split)
            for split in ("train", "val")
        ]
        train, val = (crop_objects(split, data.size) for split in splits)
    elif data.format == "cifar10":
        train = read_cifar10(Path(data.root), "train")
        train, val = (
            hold_out(train, data.hold_out)
            if data.hold_out
            else (train, read_cifar10(Path(data.root), "test"))
        )
    else:
        train = _read_encoded(data, data.train, data.classes)
        val = _read_encoded(
            data, data.val, train.class_map.names if data.format == "shards" else data.classes
        )
        if data.in_memory:
            train, val = decode_in_memory(train, damaged=data.damaged), decode_in_memory(val)
    train.class_map.require_same(val.class_map, train.source, val.source)
    if isinstance(train, ImageArrays) and train.pixels.shape[1:] != val.pixels.shape[1:]:
        (height, width), (other_height, other_width) = (
            train.pixels.shape[1:3],
            val.pixels.shape[1:3],
        )
        raise ValueError(
            f"{train.source} has images of {width}x{height} px, {val.source} of "
            f"{other_width}x{other_height}: data.in_memory wants one size"
        )
    if data.in_memory and data.size not in (
        ClassificationDataConfig(format="folder").size,
        min(train.pixels.shape[1:3]),
    ):
        raise ValueError(
            f"{train.source}: data.in_memory takes images as they are, "
            f"{train.pixels.shape[2]}x{train.pixels.shape[1]} px; "
            f"leave out data.size {data.size}"
        )
    return train, val


def read_held_out(data: ClassificationDataConfig, class_map: ClassMap | None) -> Images:
    """Return the held-out images alone; class_map: the classifier's, which names the numbers of
    shards. Raises what the readers raise.
    """
    if data.format in ("shapes", "cifar10"):
        return read_class_splits(data)[1]
    named = class_map.names if class_map is not None and data.format == "shards" else data.classes
    images = _read_encoded(data, data.val, named)
    return decode_in_memory(images) if data.in_memory else images


def _read_encoded(
    data: ClassificationDataConfig, split: str, classes: Sequence[str] | None
) -> ImageFiles | ImageShards:
    if data.format == "shards":
        return read_shards(
            data.root, split, classes=classes, show=lambda line: print(line, flush=True)
        )
    return read_image_folder(Path(data.root) / split, classes=classes)


def build_network(
    settings: NetworkConfig, num_classes: int | None, weights: str | Path | None
) -> Backbone:
    """Return the network, from `weights` where given; arguments and errors are those of
    backbones.create_backbone.
    """
    return create_backbone(
        settings.name,
        shortcut=settings.shortcut,
        shortcut_padding=settings.shortcut_padding,
        stride_placement=settings.stride_placement,
        norm=settings.norm,
        num_classes=num_classes,
        zero_init_residual=settings.zero_init_residual,
        weights=weights,
    )


def build_classifier(
    config: ClassificationConfig, num_classes: int, *, resumed: InputSpec | None = None
) -> Classifier:
    """Return a classifier in channels last, on the CPU, from model.network.weights where there are
    any.

    resumed: the input of the network whose weights are about to be loaded into it; then no others
    are looked for. Raises what backbones.create_backbone raises.
    """
    settings = config.model
    net = build_network(
        settings.network, num_classes, settings.network.weights if resumed is None else None
    )
    net.input_spec = resumed or net.input_spec
    if config.train.recompute_batches and not any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) for module in net.modules()
    ):
        raise ValueError(
            "train.recompute_batches averages statistics of batch norm, and "
            f"{settings.network.name} has none: give 0"
        )
    mixup = MixUp(alpha=config.train.mixup, num_classes=num_classes) if config.train.mixup else None
    return Classifier(net=net, label_smoothing=settings.label_smoothing, mixup=mixup).to(
        memory_format=torch.channels_last
    )


def input_of(config: ClassificationConfig, train: Images, usual: InputSpec) -> InputSpec:
    """Return the input of a network that learns on `train`: the sizes seen there, and a mean as the
    configuration says.

    usual: what the network expects by itself, kept where model.mean is "network"; otherwise the
    mean is that of `train`, by channel or by pixel, without a deviation.
    """
    crop = min(train.pixels.shape[1:3]) if isinstance(train, ImageArrays) else config.data.size
    resize = crop if isinstance(train, ImageArrays) else config.eval.resize
    if config.model.mean == "network":
        return replace(usual, resize=resize, crop=crop)
    mean_image = mean_of(train, config)
    return InputSpec(
        mean=tuple(mean_image.mean(dim=(1, 2)).tolist()),
        std=(1.0, 1.0, 1.0),
        resize=resize,
        crop=crop,
        mean_image=mean_image if config.model.mean == "pixel" else None,
    )


def mean_of(images: Images, config: ClassificationConfig) -> Tensor:
    """Return the mean image (3, H, W) float32: of all images in memory, or of centre crops of
    MEAN_IMAGES files at even distances.
    """
    if isinstance(images, ImageArrays):
        return (
            torch.from_numpy(images.pixels.mean(axis=0, dtype=np.float64))
            .float()
            .permute(2, 0, 1)
            .contiguous()
        )
    size = config.data.size
    crops = CropDataset(
        images, CenterCrop(shorter=config.eval.resize, crop=size), damaged=config.data.damaged
    )
    total, number = np.zeros((size, size, 3)), 0
    for index in np.unique(
        np.linspace(0, len(images) - 1, MEAN_IMAGES).round().astype(int)
    ).tolist():
        crop, _, _ = crops[index, 0]
        if crop is not None:
            total, number = total + crop, number + 1
    if number == 0:
        raise ImageReadError(f"{images.source}: no image for the mean can be read")
    return torch.from_numpy(total / number).float().permute(2, 0, 1).contiguous()


def build_train_batches(
    config: ClassificationConfig,
    images: Images,
    *,
    steps: int,
    start_step: int,
    device: torch.device,
) -> Iterable[tuple[CropBatch, ClassTargets]]:
    """Return the augmented batches of the steps start_step..steps - 1."""
    data, batch_size = config.data, config.train.batch_size
    if isinstance(images, ImageArrays):
        return ArrayTrainBatches(
            images,
            batch_size=batch_size,
            seed=config.seed,
            steps=steps,
            start_step=start_step,
            pad=data.pad,
            flip=data.flip,
            device=device,
        )
    transform = TrainCrop(
        shorter=data.shorter,
        crop=data.size,
        flip=data.flip,
        pca=data.pca,
        randaugment=data.randaugment,
    )
    dataset = CropDataset(images, transform, damaged=data.damaged)
    return crop_train_loader(
        dataset,
        batch_size=batch_size,
        steps=steps,
        seed=config.seed,
        start_step=start_step,
        num_workers=data.workers,
    )


def build_class_schedule(settings: ClassificationTrainConfig, num_images: int) -> Schedule:
    """Return the schedule, its length and milestones in steps, for a training set of
    `num_images`.
    """
    return replace(
        build_schedule(settings, num_images), warmup_until_error=settings.warmup_until_error
    )


def build_class_optimizer(
    settings: ClassificationTrainConfig, model: nn.Module
) -> torch.optim.Optimizer:
    """Return the optimizer over what learns in `model`; raises ValueError when nothing does."""
    if settings.optimizer == "adamw":
        return adamw(model, weight_decay=settings.weight_decay)
    decay = settings.weight_decay
    return sgd(
        model,
        momentum=settings.momentum,
        weight_decay=decay,
        norm_weight_decay=decay,
        bias_lr_scale=1.0,
    )


def protocol_of(config: ClassificationConfig) -> str:
    """Return in words how held-out images are scored."""
    if config.eval.views == "dense":
        return (
            f"fully convolutional, shorter sides {list(config.eval.scales)} px and mirrors, "
            f"{RESIZED}"
        )
    if config.data.arrays:
        return "whole images as they are"
    crops = (
        "centre crop" if config.eval.views == "center" else "10 crops (corners, centre, mirrors)"
    )
    return f"{crops}, {config.data.size} px of shorter side {config.eval.resize} px, {RESIZED}"


def class_scores(
    config: ClassificationConfig, model: Classifier, images: Images, device: torch.device
) -> ClassScores:
    """Run the classifier over all images by the configuration's protocol."""
    data, settings = config.data, config.eval
    if settings.views == "center":
        score = center(model)
    elif settings.views == "ten_crop":
        score = ten_crop(model, data.size)
    else:
        stride = model.net.strides[model.net.last_stage]
        side = images.pixels.shape[1] if isinstance(images, ImageArrays) else data.size
        score = dense(model, settings.scales, max(1, side // stride))
    if isinstance(images, ImageArrays):
        batches = ArrayEvalBatches(images, batch_size=settings.batch_size)
    elif settings.views == "center":
        dataset = CropDataset(images, CenterCrop(shorter=settings.resize, crop=data.size))
        batches = crop_eval_loader(
            dataset, batch_size=settings.batch_size, num_workers=data.workers
        )
    else:  # images of different sizes come one by one
        dataset = CropDataset(
            images, WholeImage(shorter=settings.resize if settings.views == "ten_crop" else None)
        )
        batches = crop_eval_loader(dataset, batch_size=1, num_workers=data.workers)
    return classify(model, batches, device, score, len(images.class_map))


def score_classifier(
    config: ClassificationConfig, model: Classifier, images: Images, device: torch.device
) -> ClassResult:
    """Score a classifier on images by the configuration's protocol."""
    return score_classes(
        class_scores(config, model, images, device), images.class_map.names, protocol_of(config)
    )


def save_classifier(
    path: Path, model: Classifier, config: ClassificationConfig, class_map: ClassMap, step: int
) -> None:
    """Write weights that `backbones.load_weights` reads, and beside them what scoring needs."""
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
    return has_metadata(path, RUN_METADATA)


def load_classifier(path: Path) -> tuple[Classifier, ClassificationConfig, ClassMap]:
    """Rebuild a classifier from a file of `save_classifier`: in eval mode, with its configuration
    and classes.

    Raises CheckpointError for a file of another kind, WeightsError when its weights do not fit its
    configuration.
    """
    metadata = read_metadata(path)
    missing = [key for key in RUN_METADATA if key not in metadata]
    if missing:
        raise CheckpointError(
            f"{path} holds weights but not what a classifier needs beside them: "
            f"{', '.join(missing)}. Give a run's weights.safetensors"
        )
    config = check(ClassificationConfig, json.loads(metadata["config"]), str(path))
    class_map = ClassMap.from_dict(json.loads(metadata["classes"]))
    model = Classifier(
        net=build_network(config.model.network, len(class_map), path),
        label_smoothing=config.model.label_smoothing,
    )
    return model.to(memory_format=torch.channels_last).eval(), config, class_map


def published_classifier(name: str) -> Classifier:
    """Return a network with published weights, in eval mode; raises WeightsError offline, and for
    weights without a classifier.
    """
    return _with_own_head(create_backbone(PUBLISHED[name].architecture, weights=name))


def bare_classifier(settings: ClassifierConfig, path: Path) -> Classifier:
    """Return a network, in eval mode, with weights of another origin and as many classes as they
    tell apart.

    Raises WeightsError for weights that do not fit, or that have no classifier; ValueError for
    settings.mean of a training set, which such weights do not bring along.
    """
    if settings.mean != "network":
        raise ValueError(
            f"{path} brings no mean of the images it was trained on (model.mean is "
            f"{settings.mean}): score the weights.safetensors of its "
            "run, or --set model.mean=network for the mean and deviation that networks of its "
            "kind usually expect"
        )
    return _with_own_head(build_network(settings.network, None, path))


def _with_own_head(net: Backbone) -> Classifier:
    if any(name.startswith(net.head_prefix) for name in net.load_report.skipped):
        raise WeightsError(
            f"these weights have no classifier that could be scored: {net.load_report}"
        )
    return Classifier(net=net).to(memory_format=torch.channels_last).eval()

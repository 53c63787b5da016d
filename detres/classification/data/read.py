"""A data configuration -> labelled images, and the input they make for a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from backbones import InputSpec
from detres.class_map import ClassMap
from detres.classification.config import ClassificationConfig, ClassificationDataConfig
from detres.classification.data.cifar10 import hold_out, read_cifar10
from detres.classification.data.crops import CenterCrop, CropDataset, mean_of_crops
from detres.classification.data.image_folder import read_image_folder
from detres.classification.data.in_memory import decode_in_memory, mean_of_arrays
from detres.classification.data.object_crops import crop_objects
from detres.classification.data.shards import read_shards
from detres.detection.data.coco import read_coco
from detres.detection.data.shapes import ensure_shapes
from detres.images.source import EncodedImages, LabelledImages
from detres.user_files import tidied

MEAN_IMAGES = 5000
"""Of this many crops the mean of a pixel is known to about 1 of 255."""

Show = Callable[[str], None]


def read_class_splits(
    data: ClassificationDataConfig, show: Show = lambda _: None
) -> tuple[LabelledImages, LabelledImages]:
    """Return the training and the held-out images of a configuration whose root is settled; they
    are ImageArrays where `data.arrays`.

    show: called with a line before something that takes long. Raises ClassMismatchError when their
    classes differ, ValueError when images in memory are of two sizes, and what the readers raise.
    """
    if data.format == "shapes":
        train, val = (_read_shapes(data, split) for split in ("train", "val"))
    elif data.format == "cifar10":
        train = read_cifar10(Path(data.root), "train")
        if data.hold_out:
            train, val = hold_out(train, data.hold_out)
        else:
            val = read_cifar10(Path(data.root), "test")
    else:
        train = _read_encoded(data, data.train, data.classes, show, damaged=data.damaged)
        classes = train.class_map.names if data.format == "shards" else data.classes
        val = _read_encoded(data, data.val, classes, show)
        if data.in_memory:
            train, val = decode_in_memory(train, damaged=data.damaged), decode_in_memory(val)
    train.class_map.require_same(val.class_map, train.source, val.source)
    if data.arrays:
        _require_one_size(data, train, val)
    return train, val


def read_held_out(
    data: ClassificationDataConfig, class_map: ClassMap | None, show: Show = lambda _: None
) -> LabelledImages:
    """Return the held-out images alone.

    class_map: the classifier's, which names the numbers of shards. show: see read_class_splits.
    Raises what the readers raise.
    """
    if data.format in ("shapes", "cifar10"):
        return read_class_splits(data)[1]
    named = class_map.names if class_map is not None and data.format == "shards" else data.classes
    images = _read_encoded(data, data.val, named, show)
    return decode_in_memory(images) if data.in_memory else images


def input_of(config: ClassificationConfig, train: LabelledImages, usual: InputSpec) -> InputSpec:
    """Return the input of a network that learns on `train`: the sizes seen there, and a mean as the
    configuration says.

    usual: what the network expects by itself, kept where model.mean is "network"; otherwise the
    mean is that of `train`, by channel or by pixel, without a deviation. Raises ImageReadError when
    no image for the mean can be read.
    """
    crop_side, short_side = config.data.crop_side, config.eval.short_side
    if train.size is not None:
        crop_side = short_side = min(train.size)
    if config.model.mean == "network":
        return replace(usual, short_side=short_side, crop_side=crop_side)
    mean_image = _mean_image(config, train)
    return InputSpec(
        mean=tuple(mean_image.mean(dim=(1, 2)).tolist()),
        std=(1.0, 1.0, 1.0),
        short_side=short_side,
        crop_side=crop_side,
        mean_image=mean_image if config.model.mean == "pixel" else None,
    )


def _mean_image(config: ClassificationConfig, images: LabelledImages) -> Tensor:
    """The mean image (3, H, W) float32: of all images in memory, or of centre crops of files."""
    if images.size is not None:
        return mean_of_arrays(images)
    crop = CenterCrop(short_side=config.eval.short_side, crop_side=config.data.crop_side)
    return mean_of_crops(CropDataset(images, crop, damaged=config.data.damaged), MEAN_IMAGES)


def _read_shapes(data: ClassificationDataConfig, split: str) -> LabelledImages:
    cache = Path(data.root) if data.root else None
    root = ensure_shapes(cache, num_train=data.shapes_train, num_val=data.shapes_val)
    annotations = read_coco(root / "annotations" / f"{split}.json", root / split)
    return crop_objects(annotations, data.crop_side)


def _read_encoded(
    data: ClassificationDataConfig,
    split: str,
    classes: Sequence[str] | None,
    show: Show,
    *,
    damaged: Literal["error", "skip"] = "error",
) -> EncodedImages:
    """The images of a split; damaged: of a folder, see read_image_folder."""
    if data.format == "shards":
        return read_shards(data.root, split, classes=classes, show=show)
    return read_image_folder(tidied(Path(data.root) / split), classes=classes, damaged=damaged)


def _require_one_size(
    data: ClassificationDataConfig, train: LabelledImages, val: LabelledImages
) -> None:
    (height, width), (other_height, other_width) = train.size, val.size
    if train.size != val.size:
        raise ValueError(
            f"{train.source} has images of {width}x{height} px, {val.source} of "
            f"{other_width}x{other_height}: data.in_memory wants one size"
        )
    usual = ClassificationDataConfig(format="folder").crop_side
    if data.in_memory and data.crop_side not in (usual, min(train.size)):
        raise ValueError(
            f"{train.source}: data.in_memory takes images as they are, {width}x{height} px; leave "
            f"out data.crop_side {data.crop_side}"
        )

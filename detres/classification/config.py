"""Configuration of a classification run.

A default is the paper's ImageNet value (section 3.4) unless the comment beside it says otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from detres.config import (
    Count,
    Fraction,
    Positive,
    PositiveFloat,
    RunName,
    Section,
    UserPath,
    read_tree,
)
from detres.network import NetworkConfig
from detres.runs.settings import TrainConfig


class LearningNetworkConfig(NetworkConfig):
    """Which network learns to classify; the paper trains from scratch, without `weights`."""

    # batch norm, synchronised batch norm, or group norm
    norm: Literal["batch", "sync", "group"] | None = None


class ClassifierConfig(Section):
    """The network and how its input is normalised."""

    network: LearningNetworkConfig = LearningNetworkConfig()
    # ImageNet's; or the training set's, by channel or pixel (paper), std 1
    mean: Literal["network", "channel", "pixel"] = "network"
    label_smoothing: Fraction = 0.0  # not in the paper


class ClassificationDataConfig(Section):
    """Where the labelled images are, and how they are cropped."""

    renamed: ClassVar[dict[str, str]] = {"size": "crop_side", "shorter": "short_sides"}

    format: Literal["shapes", "folder", "shards", "cifar10"]  # how labelled images are kept
    # --data, then this, then the environment variable DETRES_DATA; shapes: the cache folder;
    # shards: or a URL
    root: UserPath | None = None
    # folder: the sub-folder with a folder a class; shards: a sub-folder of *.tar, or
    # train-{000..146}.tar
    train: UserPath = "train"
    val: UserPath = "val"  # what is evaluated on; as train
    # folder: only to train on a subset; shards: names of 0, 1, ...
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    # training images that cannot be read: skipped ones are listed in skipped.txt
    damaged: Literal["error", "skip"] = "error"
    # folder, shards: images of one size, decoded once and held on the device
    in_memory: bool = False
    # cifar10: training images held out and evaluated instead of the test set (section 4.2: 5000)
    hold_out: Count = 0
    crop_side: Positive = 224  # px; shapes: px to which objects are cut out
    short_sides: tuple[Positive, Positive] = (256, 480)  # px between which the short side is drawn
    # images in memory: px of black around, out of which crops are drawn (section 4.2)
    pad: Count = 4
    flip: Fraction = 0.5  # probability of mirroring a training image
    # image files: standard deviation of AlexNet's colour shift
    pca: Annotated[float, Field(ge=0)] = 0.1
    # image files: magnitude of two random operations; not in the paper
    randaugment: Annotated[int, Field(ge=0, le=30)] = 0
    shapes_train: Positive = 2500  # shapes: images to draw
    shapes_val: Positive = 200  # shapes: images to draw
    workers: Count = 2  # processes that read images

    @property
    def arrays(self) -> bool:
        """Whether the images are held in memory."""
        return self.format in ("shapes", "cifar10") or self.in_memory


class ClassificationTrainConfig(TrainConfig):
    """The optimisation; section 3.4. Weight decay is that of every weight, bias and norm, as in
    fb.resnet.torch.
    """

    batch_size: Positive | Literal["auto"] = 256  # images at once; auto: as many as fit
    lr: PositiveFloat = 0.1
    reference_batch: Positive = 256  # the batch that lr is stated for
    bias_lr_scale: PositiveFloat = 1.0  # fb.resnet.torch
    warmup_steps: Count = 0  # none in the paper's ImageNet runs
    # ends the warm-up once training error is below (section 4.2, ResNet-110: 0.8)
    warmup_until_error: Annotated[float, Field(gt=0, le=1)] | None = None
    mixup: Annotated[float, Field(ge=0)] = 0.0  # alpha; not in the paper
    # training steps by torch.compile, on a GPU as CUDA graphs; auto: on a GPU
    compile: bool | Literal["auto"] = False
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    # training batches over which batch norm statistics are averaged at the end (appendix A)
    recompute_batches: Count = 0

    @model_validator(mode="after")
    def _held_out_images_decide_nothing(self) -> ClassificationTrainConfig:
        if self.early_stopping:
            raise ValueError(
                "early_stopping is for detectors and localisers: a classifier is evaluated on its "
                "test set, which must not decide when training ends; leave it out"
            )
        if self.ema_decay is not None:
            raise ValueError(
                "ema_decay is for detectors and localisers: a classifier's weights are those of "
                "its last step, as in the paper; leave it out"
            )
        return self


class ClassificationEvalConfig(Section):
    """How held-out images are evaluated during training and after it."""

    renamed: ClassVar[dict[str, str]] = {"resize": "short_side"}

    # the centre crop, ten crops, or the whole image at several scales
    views: Literal["center", "ten_crop", "dense"] = "center"
    short_side: Positive = 256  # px, before cropping; image files only
    # dense: short sides in px
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (224, 256, 384, 480, 640)
    batch_size: Positive = 100  # images at once


class ClassificationConfig(Section):
    """One run."""

    name: RunName  # of the run folder, runs/NAME
    seed: Count = 3  # of all that is drawn at random
    data: ClassificationDataConfig
    model: ClassifierConfig = ClassifierConfig()
    train: ClassificationTrainConfig
    eval: ClassificationEvalConfig = ClassificationEvalConfig()

    @model_validator(mode="after")
    def _sizes_fit(self) -> ClassificationConfig:
        data = self.data
        if data.short_sides[0] > data.short_sides[1]:
            raise ValueError(f"data.short_sides {list(data.short_sides)} is not in rising order")
        if not data.arrays and data.short_sides[0] < data.crop_side:
            raise ValueError(
                f"data.short_sides {list(data.short_sides)} px does not hold a crop of "
                f"data.crop_side {data.crop_side} px"
            )
        if not data.arrays and self.eval.short_side < data.crop_side:
            raise ValueError(
                f"eval.short_side {self.eval.short_side} px does not hold a crop of data.crop_side "
                f"{data.crop_side} px"
            )
        if data.arrays and self.eval.views == "ten_crop":
            raise ValueError(
                "eval.views ten_crop needs images larger than the crop; images in memory are "
                "evaluated as they are"
            )
        if (
            data.arrays
            and self.eval.views == "dense"
            and self.eval.scales == ClassificationEvalConfig().scales
        ):
            raise ValueError(
                "eval.scales are those of photographs; give some near the size of the images in "
                "memory, [32, 40] for CIFAR-10"
            )
        return self

    @model_validator(mode="after")
    def _format_has_it(self) -> ClassificationConfig:
        data, usual = self.data, ClassificationDataConfig(format="folder")
        if data.format in ("shapes", "cifar10") and (
            data.classes is not None or data.damaged == "skip"
        ):
            raise ValueError(f"data.classes and data.damaged do not apply to format {data.format}")
        if data.hold_out and data.format != "cifar10":
            raise ValueError(
                "data.hold_out applies to format cifar10; other formats have a validation folder "
                "of their own"
            )
        if data.arrays and (
            data.short_sides != usual.short_sides or data.pca not in (0, usual.pca)
        ):
            raise ValueError(
                "data.short_sides and data.pca apply to image files read one by one, not to images "
                "in memory"
            )
        if data.randaugment and data.arrays:
            raise ValueError(
                "data.randaugment applies to image files read one by one, not to images in memory"
            )
        return self

    @model_validator(mode="after")
    def _settings_go_together(self) -> ClassificationConfig:
        if self.train.recompute_batches and self.model.network.norm == "group":
            raise ValueError(
                "train.recompute_batches averages statistics of batch norm, and model.network.norm "
                "is group: give 0"
            )
        if self.train.warmup_until_error is not None and self.train.warmup_steps:
            raise ValueError("give either train.warmup_steps or train.warmup_until_error")
        if self.model.mean != "network" and self.model.network.weights:
            raise ValueError(
                f"model.mean {self.model.mean} does not go with model.network.weights, which "
                "expect the input they learned on"
            )
        return self


def is_classification(path: str | Path) -> bool:
    """Whether a YAML file configures a classifier rather than a detector, whose model has a
    backbone; raises as `read_tree` does.
    """
    model = read_tree(path).get("model")
    return not isinstance(model, dict) or "backbone" not in model

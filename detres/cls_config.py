"""Configuration of a classification run; read by
`detres.config.load_config(path, overrides, ClassificationConfig)`.

A default is the paper's ImageNet value (section 3.4) unless the comment beside it says otherwise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from detres.config import Count, Fraction, Positive, PositiveFloat, Section, TrainConfig, read_tree


class NetworkConfig(Section):
    """Which network of `backbones` learns; None means the network's own default (section 4.1: B for
    ResNets, A on CIFAR).
    """

    name: str = "resnet50"
    shortcut: Literal["A", "B", "C"] | None = None
    shortcut_padding: Literal["end", "both"] | None = None
    stride_placement: Literal["original", "torchvision"] | None = None
    norm: Literal["batch", "sync", "group"] | None = None
    zero_init_residual: bool | None = None  # not in the paper
    weights: str | None = None  # to start from; the paper trains from scratch


class ClassifierConfig(Section):
    """The network and how its input is normalised."""

    network: NetworkConfig = NetworkConfig()
    mean: Literal["network", "channel", "pixel"] = (
        "network"  # ImageNet's; or the training set's, by channel or pixel (paper), std 1
    )
    label_smoothing: Fraction = 0.0  # not in the paper


class ClassificationDataConfig(Section):
    """Where the labelled images are, and how they are cropped."""

    format: Literal["shapes", "folder", "shards", "cifar10"]
    root: str | None = (
        # --data, then this, then the environment variable DETRES_DATA; shapes: the cache folder;
        # shards: or a URL
        None
    )
    # folder: the sub-folder with a folder a class; shards: a sub-folder of *.tar, or
    # train-{000..146}.tar
    train: str = "train"
    val: str = "val"
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = (
        None  # folder: only to train on a subset; shards: names of 0, 1, ...
    )
    damaged: Literal["error", "skip"] = (
        "error"  # training images that cannot be read: skipped ones are listed in skipped.txt
    )
    in_memory: bool = (
        False  # folder, shards: images of one size, decoded once and held on the device
    )
    # cifar10: training images held out and scored instead of the test set (section 4.2: 5000)
    hold_out: Count = 0
    size: Positive = 224  # px of a crop; shapes: px to which objects are cut out
    shorter: tuple[Positive, Positive] = (256, 480)  # px between which the shorter side is drawn
    pad: Count = (
        4  # images in memory: px of black around, out of which crops are drawn (section 4.2)
    )
    flip: Fraction = 0.5
    pca: Annotated[float, Field(ge=0)] = (
        0.1  # image files: standard deviation of AlexNet's colour shift
    )
    randaugment: Annotated[int, Field(ge=0, le=30)] = (
        0  # image files: magnitude of two random operations; not in the paper
    )
    shapes_train: Positive = 2500  # shapes: images to draw
    shapes_val: Positive = 200
    workers: Count = 2

    @property
    def arrays(self) -> bool:
        """Whether the images are held in memory."""
        return self.format in ("shapes", "cifar10") or self.in_memory


class ClassificationTrainConfig(TrainConfig):
    """The optimisation; section 3.4. Weight decay is that of every weight, bias and norm, as in
    fb.resnet.torch.
    """

    batch_size: Positive = 256
    lr: PositiveFloat = 0.1
    reference_batch: Positive = 256
    warmup_steps: Count = 0
    warmup_until_error: Annotated[float, Field(gt=0, le=1)] | None = (
        None  # ends the warm-up once training error is below; paper 0.8
    )
    mixup: Annotated[float, Field(ge=0)] = 0.0  # alpha; not in the paper
    compile: bool | Literal["auto"] = (
        False  # training steps by torch.compile, on a GPU as CUDA graphs; auto: on a GPU
    )
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    recompute_batches: Count = (
        0  # training batches over which batch norm statistics are averaged at the end (appendix A)
    )


class ClassificationEvalConfig(Section):
    """How held-out images are scored during training and by tools/eval.py."""

    views: Literal["center", "ten_crop", "dense"] = "center"
    resize: Positive = 256  # px of the shorter side before cropping; image files only
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (
        224,
        256,
        384,
        480,
        640,
    )  # dense: shorter sides
    batch_size: Positive = 100


class ClassificationConfig(Section):
    """One run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    seed: Count = 3
    data: ClassificationDataConfig
    model: ClassifierConfig = ClassifierConfig()
    train: ClassificationTrainConfig
    eval: ClassificationEvalConfig = ClassificationEvalConfig()

    @model_validator(mode="after")
    def _sizes_fit(self) -> ClassificationConfig:
        data, usual = self.data, ClassificationDataConfig(format="folder")
        if data.shorter[0] > data.shorter[1]:
            raise ValueError(f"data.shorter {list(data.shorter)} is not in rising order")
        if not data.arrays and data.shorter[0] < data.size:
            raise ValueError(
                f"data.shorter {list(data.shorter)} px does not hold a crop of data.size "
                f"{data.size} px"
            )
        if not data.arrays and self.eval.resize < data.size:
            raise ValueError(
                f"eval.resize {self.eval.resize} px does not hold a crop of data.size {data.size} "
                "px"
            )
        if data.arrays and self.eval.views == "ten_crop":
            raise ValueError(
                "eval.views ten_crop needs images larger than the crop; images in memory are "
                "scored as they are"
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
        if data.format in ("shapes", "cifar10") and (
            data.classes is not None or data.damaged == "skip"
        ):
            raise ValueError(f"data.classes and data.damaged do not apply to format {data.format}")
        if self.train.recompute_batches and self.model.network.norm == "group":
            raise ValueError(
                "train.recompute_batches averages statistics of batch norm, and "
                "model.network.norm is group: give 0"
            )
        if data.hold_out and data.format != "cifar10":
            raise ValueError(
                "data.hold_out applies to format cifar10; other formats have a validation folder "
                "of their own"
            )
        if data.arrays and (data.shorter != usual.shorter or data.pca not in (0, usual.pca)):
            raise ValueError(
                "data.shorter and data.pca apply to image files read one by one, not to images in "
                "memory"
            )
        if data.randaugment and data.arrays:
            raise ValueError(
                "data.randaugment applies to image files read one by one, not to images in memory"
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

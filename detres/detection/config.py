"""Configuration of a detection run.

A default is the paper's value (appendix A), or where the paper is silent py-faster-rcnn's, unless
the comment beside it says otherwise.
"""

from __future__ import annotations

import itertools
import os
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from backbones import RESNETS
from backbones.vgg import FC_GRID
from detres.config import (
    Count,
    Fraction,
    Positive,
    PositiveFloat,
    RunName,
    Section,
    Triple,
    UserPath,
)
from detres.detection.choices import SPLITS, TRAINING_SPLITS, CocoBackend, ProtocolName
from detres.network import NetworkConfig
from detres.runs.settings import TrainConfig

NotNegative = Annotated[float, Field(ge=0)]
FilePath = Annotated[UserPath, AfterValidator(os.path.abspath)]
"""Of a file of the user's that is found again from any directory."""

Few = Field(min_length=1, max_length=100)
AnchorSide = Annotated[float, Field(gt=0, le=1e6)]
ScaleSide = Annotated[int, Field(ge=1, le=20_000)]
AspectRatio = Annotated[float, Field(ge=1e-3, le=1e3)]


VGGS = ("vgg16", "vgg16_bn", "vgg19", "vgg19_bn")
DETECTOR_BACKBONES = (*RESNETS, *VGGS)


class BackboneConfig(NetworkConfig):
    """Which network feeds the detector, and what of it learns: conv1..conv4 of a ResNet are shared
    and conv5 goes over every region, conv1..conv5 of a VGG are and fc6, fc7 do.

    None where a network has no such thing: a VGG no stride_placement, and vgg16 and vgg19 no norm.
    """

    at: ClassVar[str] = "model.backbone"

    name: str = "resnet101"  # a ResNet with a stage for the regions, or a VGG
    stride_placement: Literal["original", "torchvision"] | None = "original"
    # paper, appendix A: batch norm is fixed in detection
    norm: Literal["frozen", "batch", "sync", "group"] | None = "frozen"
    # conv1 and conv2_x stay as pretrained (py-faster-rcnn, Detectron)
    freeze_at: Annotated[int, Field(ge=0, le=4)] = 2

    @model_validator(mode="before")
    @classmethod
    def _only_what_the_network_has(cls, given: object) -> object:
        name = given.get("name") if isinstance(given, dict) else None
        if name not in VGGS:
            return given
        absent = ("stride_placement", *(() if name.endswith("_bn") else ("norm",)))
        return {**dict.fromkeys(absent), **given}

    @field_validator("name")
    @classmethod
    def _fits_a_detector(cls, name: str) -> str:
        if name not in DETECTOR_BACKBONES:
            raise ValueError(
                f"{name} gives no map at stride 16 with a head behind it, which a detector needs; "
                f"expected one of {', '.join(DETECTOR_BACKBONES)}"
            )
        return name

    @model_validator(mode="after")
    def _all_that_the_network_has(self) -> BackboneConfig:
        has_norm, has_stride = self.name not in ("vgg16", "vgg19"), self.name not in VGGS
        for key, has in (("norm", has_norm), ("stride_placement", has_stride)):
            if has and getattr(self, key) is None:
                raise ValueError(f"{key}: {self.name} has one, and null says none")
        return self

    @model_validator(mode="after")
    def _frozen_needs_weights(self) -> BackboneConfig:
        if self.weights is None and (self.norm == "frozen" or self.freeze_at > 0):
            raise ValueError(
                "a backbone with random weights cannot be frozen: it would stay random. Give "
                "model.backbone.weights, or set model.backbone.norm=batch (or group) and "
                "model.backbone.freeze_at=0"
            )
        return self


class PixelConfig(Section):
    """What pixels are made of. mean and std are on the 0..255 scale, in channel_order."""

    mean: Triple = (123.675, 116.28, 103.53)  # the torchvision weights' RGB means
    # each channel is divided by it
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (58.395, 57.12, 57.375)
    # in which the network reads pixels; files and arrays are RGB
    channel_order: Literal["rgb", "bgr"] = "rgb"


class FPNConfig(Section):
    """The feature pyramid of the layout "fpn" (Lin et al. 2017); values of detectron2 and of
    torchvision.
    """

    width: Annotated[int, Field(ge=1, le=65_536)] = 256  # channels of every level
    # behind every convolution of the pyramid: none, or batch (torchvision's second version)
    norm: Literal["batch"] | None = None
    # px: of the square region that is pooled from p4, of half that side from p3, ... (224 are the
    # images of pretraining); smaller where images are
    canonical_side: Annotated[float, Field(gt=0, le=1e6)] = 224.0


class InputConfig(PixelConfig):
    """How an image reaches the detector."""

    renamed: ClassVar[dict[str, str]] = {
        "shorter": "short_side",
        "longer": "max_side",
        "train_shorter": "train_short_sides",
    }

    short_side: Positive = 600  # px (paper, appendix A)
    max_side: Positive = 1000  # px cap of the longer side (py-faster-rcnn)
    # px, of which one is drawn anew for every training image; empty: `short_side`
    train_short_sides: tuple[Positive, ...] = ()
    # whose pixels and rounding of sizes: py-faster-rcnn's by OpenCV, detectron2's by Pillow, or
    # torchvision's
    resize: Literal["cv2", "pillow", "torchvision"] = "cv2"
    # px: each side is lengthened with zeros, which count as image, to a multiple of it; null: not
    # (32 in the pyramids of detectron2 and torchvision)
    multiple_of: Annotated[int, Field(ge=1, le=1024)] | None = None

    @model_validator(mode="after")
    def _short_is_at_most_the_longest(self) -> InputConfig:
        longest = max((self.short_side, *self.train_short_sides))
        if longest > self.max_side:
            raise ValueError(
                f"short_side {longest} px is more than max_side, {self.max_side} px, allows"
            )
        return self


class AnchorConfig(Section):
    """Reference boxes: side in px of the square one, and height / width. 3 x 3 on VOC; COCO adds
    side 64 (Ren et al., 4.2).
    """

    # px of the resized image: the side of the square one
    sizes: Annotated[tuple[AnchorSide, ...], Few] = (128.0, 256.0, 512.0)
    # height / width, at the area of the square
    aspect_ratios: Annotated[tuple[AspectRatio, ...], Few] = (0.5, 1.0, 2.0)
    # whose rounding and order of anchors
    style: Literal["py-faster-rcnn", "torchvision", "detectron2"] = "py-faster-rcnn"


class RPNConfig(Section):
    """The region proposal network; values of py-faster-rcnn unless said."""

    width: Annotated[int, Field(ge=1, le=65_536)] = 512  # channels of the 3x3 convolution
    # 3x3 convolutions in a row (torchvision's second version of its pyramid: 2)
    num_convs: Annotated[int, Field(ge=1, le=16)] = 1
    objectness: Literal["softmax", "sigmoid"] = "softmax"  # two outputs an anchor, or one
    # inside: anchors that cross the image's edge teach nothing (Ren et al., 3.3)
    train_anchors: Literal["inside", "all"] = "inside"
    fg_iou_thresh: Fraction = 0.7  # IoU from which an anchor is an object
    bg_iou_thresh: Fraction = 0.3  # IoU under which it is background
    batch_size: Positive = 256  # anchors an image that are learned from
    positive_fraction: Fraction = 0.5  # of them, objects at most
    smooth_l1_beta: NotNegative = 1 / 9  # sigma 3; 0: L1, as in detectron2's zoo
    # what both losses are divided by: the anchors that were sampled, or (detectron2) the
    # `batch_size` that could be
    loss_normalizer: Literal["sampled", "batch_size"] = "sampled"
    min_size: NotNegative = 16.0  # px of the original image
    nms_thresh: Fraction = 0.7  # IoU above which the worse of two proposals goes
    train_pre_nms_top_n: Positive = 12000  # in training: best boxes an image that enter NMS
    train_post_nms_top_n: Positive = 2000  # and proposals that leave it
    test_pre_nms_top_n: Positive = 6000  # in tests: best boxes an image that enter NMS
    test_post_nms_top_n: Positive = 300  # paper, appendix A: 300 proposals

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> RPNConfig:
        _require_order({"bg_iou_thresh": self.bg_iou_thresh, "fg_iou_thresh": self.fg_iou_thresh})
        return self


class RoIConfig(Section):
    """Pooling, box head and predictor; values of py-faster-rcnn unless said."""

    # RoIPool (paper), or RoIAlign with or without the half-pixel shift
    pool: Literal["roi_pool", "roi_align", "roi_align_aligned"] = "roi_pool"
    # before conv5, whose stride halves it (the paper gives no size; every C4 release); a VGG's fc6
    # reads 7
    pool_size: Annotated[int, Field(ge=1, le=64)] = 14
    # behind fc6 and fc7 of a VGG: 0.5 in py-faster-rcnn's networks for VOC, none (0) for COCO
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    sampling_ratio: Count = 2  # RoIAlign only; 0 = adaptive
    # layout fpn: 3x3 convolutions with batch norm before the fully connected layers
    num_convs: Annotated[int, Field(ge=0, le=16)] = 0
    num_fc: Annotated[int, Field(ge=1, le=16)] = 2  # layout fpn: fully connected layers
    fc_width: Annotated[int, Field(ge=1, le=65_536)] = 1024  # layout fpn: features of each
    fg_iou_thresh: Fraction = 0.5  # IoU from which a region is an object
    bg_iou_thresh: Fraction = 0.5  # IoU under which it is background
    # 0.1 in Ren et al. on VOC; 0 in py-faster-rcnn's Faster R-CNN configs and on COCO
    bg_iou_floor: Fraction = 0.0
    batch_size: Positive = 128  # regions an image that are learned from
    positive_fraction: Fraction = 0.25  # of them, objects at most
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)  # 1 / (.1, .1, .2, .2)
    smooth_l1_beta: NotNegative = 1.0  # sigma 1; 0: L1, as in detectron2's zoo
    class_agnostic: bool = False  # one box a RoI for all classes, as in R-FCN
    # the whole image's feature beside each region's (paper, appendix B); trained, so not in `eval`
    context: bool = False
    score_thresh: Fraction = 0.05  # detections below it are dropped
    nms_thresh: Fraction = 0.3  # IoU above which the worse of two detections of a class goes
    detections_per_image: Positive = 100  # the best of all classes

    @model_validator(mode="after")
    def _thresholds_in_order(self) -> RoIConfig:
        names = ("bg_iou_floor", "bg_iou_thresh", "fg_iou_thresh")
        _require_order({name: getattr(self, name) for name in names})
        return self


def _empty(default: object) -> object:
    """A default as YAML has it."""
    return list(default) if isinstance(default, tuple) else default


def _require_order(thresholds: dict[str, float]) -> None:
    values = list(thresholds.values())
    if values != sorted(values):
        found = ", ".join(f"{name} {value:g}" for name, value in thresholds.items())
        raise ValueError(f"{found}: each may be at most the next")


FPN_LEVELS = 5
"""p2 to p5 of conv2 to conv5, and p6."""


class ModelConfig(Section):
    """All that is needed, with a class list, to build the detector: stored in every weights
    file.
    """

    # c4: the paper's, regions from one map and conv5 (of a VGG fc6, fc7) on each of them; fpn: from
    # the levels of a feature pyramid, and fully connected layers on each
    layout: Literal["c4", "fpn"] = "c4"
    backbone: BackboneConfig
    fpn: FPNConfig = FPNConfig()
    input: InputConfig = InputConfig()
    anchors: AnchorConfig = AnchorConfig()
    rpn: RPNConfig = RPNConfig()
    roi: RoIConfig = RoIConfig()

    @model_validator(mode="after")
    def _pyramid_fits(self) -> ModelConfig:
        if self.layout == "c4":
            return self
        if self.backbone.name in VGGS:
            raise ValueError(
                f"layout fpn is built on a ResNet, backbone.name is {self.backbone.name}"
            )
        if len(self.anchors.sizes) != FPN_LEVELS:
            raise ValueError(
                f"layout fpn has anchors of one size on each of its {FPN_LEVELS} levels, p2 to p6: "
                f"give {FPN_LEVELS} anchors.sizes, there are {len(self.anchors.sizes)}"
            )
        return self

    @model_validator(mode="after")
    def _head_reads_the_grid(self) -> ModelConfig:
        if self.backbone.name in VGGS and self.roi.pool_size != FC_GRID:
            raise ValueError(
                f"roi.pool_size is {self.roi.pool_size}, but fc6 of {self.backbone.name} reads a "
                f"grid of {FC_GRID}x{FC_GRID}: give {FC_GRID}"
            )
        return self


_ENTRIES = (
    *(name for split in SPLITS for name in (split, f"{split}_images")),
    *("hold_out", "val_share", "split", "class_names"),
)
"""Settings of DataConfig that mean something in one format."""

_OF_FILES = ("coco", "csv")
"""Formats whose entries are annotation files, each with a folder of images."""

_FROM_TRAIN = ("hold_out", "val_share", "split")
"""Settings by which some images of train are val."""


class DataConfig(Section):
    """Where the annotated images are. Paths of files and splits are relative to `root`."""

    renamed: ClassVar[dict[str, str]] = {"boxes": "box_policy"}

    # how annotations are written
    format: Literal["shapes", "coco", "voc", "ilsvrc", "yolo", "xml", "labelme", "csv"]
    # --data, then this, then the environment variable DETRES_DATA; shapes: the cache folder
    root: UserPath | None = None
    # coco, csv: annotation files; voc: YEAR/SPLIT of a VOCdevkit, or SPLIT of one year's folder;
    # ilsvrc: TASK/LIST, DET/val or CLS-LOC/train_loc; xml, labelme: folders with a file an image;
    # yolo: folders of images or lists of them, as data.yaml names them, or with train_images
    # folders of labels
    train: tuple[UserPath, ...] = ()
    # coco, csv: the image folder of each file; xml, labelme, yolo: of each folder, () where the
    # images lie in it too (yolo: in images/, their labels in labels/)
    train_images: tuple[UserPath, ...] = ()
    val: tuple[UserPath, ...] = ()  # what is evaluated on; entries as for train
    val_images: tuple[UserPath, ...] = ()  # as train_images
    # the set that a test server evaluates, its annotations known (then eval reads them) or not:
    # coco: files such as image_info_test-dev2017.json; voc: a list of images in JPEGImages; ilsvrc:
    # DET/test or CLS-LOC/test
    test: tuple[UserPath, ...] = ()
    test_images: tuple[UserPath, ...] = ()  # as train_images
    # images of `train` that are not trained on but are val, always the same; `val` is left out
    hold_out: Count = 0
    # of the images of `train`, the part that is val; frames of one video and copies of one picture,
    # as far as their names show them, stay together (see data/split.py); `val` is left out
    val_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    split_seed: Count = 0  # of val_share
    # a file that says which images of `train` are val, as a run with val_share writes one
    split: FilePath | None = None
    # yolo: the file that names the classes, data.yaml or classes.txt
    class_names: UserPath | None = None
    classes: tuple[str, ...] | None = None  # only to train on a subset; otherwise the data say
    # what becomes of boxes without area or outside their image
    box_policy: Literal["drop", "error"] = "drop"
    # coco: what becomes of a file_name that leads out of its image folder
    outside: Literal["error", "allow"] = "error"
    # files of proposals for the images of train and of val: what train.scheme=fast_rcnn learns
    # from and is evaluated on
    train_proposals: FilePath | None = None
    val_proposals: FilePath | None = None  # see train_proposals
    shapes_train: Positive = 2500  # shapes only: images to draw
    shapes_val: Positive = 200  # shapes only: images to draw
    flip: Fraction = 0.5  # probability of mirroring a training image
    # strength of the colour jitter; the paper's detector has none
    color: Annotated[float, Field(ge=0, le=1)] = 0.0
    workers: Count = 2  # processes that read images
    # whether training images in JPEG that are at least twice as large as they will be trained on
    # are decoded at a half, a quarter or an eighth: in less time, to pixels that are not quite the
    # same. Held-out images are decoded whole, as those of a user will be
    reduced_decode: bool = False
    # GiB of RAM, at most, for training images once decoded, 1.4 MiB each of 800x600 px, so that
    # files are read once; 0: none. All workers share it; of several processes that train
    # (torchrun) each has its own. Batches are the same
    cache_gib: Annotated[float, Field(ge=0, le=1e5)] = 0.0

    @classmethod
    def overridden(cls, settings: dict, given: set[str], earlier: dict) -> dict:
        """Another format displaces the entries of the one before, what says which images are val
        what said so before; and annotation files of which no image folder is given are of the one
        there is.
        """
        empty = {key: _empty(cls.model_fields[key].default) for key in _ENTRIES}
        if "format" in given and settings["format"] != earlier.get("format"):
            return {key: empty[key] for key in _ENTRIES if key not in given and settings.get(key)}
        ways = {"val": ("val", "val_images"), **{name: (name,) for name in _FROM_TRAIN}}
        said = [name for name in ways if name in given and settings.get(name)]
        kept = {key for name in said for key in ways[name]} | given
        others = {key for keys in ways.values() for key in keys} - kept if said else set()
        displaced = {key: empty[key] for key in others if settings.get(key)}
        for split in SPLITS:
            files, key = settings.get(split), f"{split}_images"
            folders = settings.get(key) or settings.get("train_images") or []
            wanting = split in given and key not in given and settings.get("format") in _OF_FILES
            if wanting and isinstance(files, list) and len(set(folders)) == 1:
                displaced[key] = [folders[0]] * len(files)
        return displaced

    @property
    def val_from_train(self) -> str | None:
        """The setting by which some images of `train` are val; None: `val` has its own."""
        return next((name for name in _FROM_TRAIN if getattr(self, name)), None)

    @property
    def is_drawn(self) -> bool:
        """Whether val is drawn from `train`, or was, into a file."""
        return self.val_from_train in ("val_share", "split")

    @model_validator(mode="after")
    def _splits_fit_format(self) -> DataConfig:
        given = [name for name in SPLITS if getattr(self, name) or getattr(self, f"{name}_images")]
        if self.format == "shapes":
            if given or self.val_from_train:
                raise ValueError(
                    "format shapes has splits of its own: leave out train, val, test, their "
                    f"images and {', '.join(_FROM_TRAIN)}"
                )
            return self
        self._require_one_val(given)
        # val or test alone is enough to evaluate on
        alone = given and "train" not in given and not self.val_from_train
        needed = () if alone else ("train",) if self.val_from_train else TRAINING_SPLITS
        for split in dict.fromkeys((*needed, *given)):
            self._require_entries(split)
        if (self.class_names is None) == (self.format == "yolo"):
            raise ValueError(
                "format yolo needs class_names, the file that names the classes: data.yaml or "
                "classes.txt"
                if self.class_names is None
                else f"class_names goes with format yolo, not with {self.format}"
            )
        return self

    def _require_one_val(self, given: list[str]) -> None:
        """Raise ValueError where val is said in two ways."""
        ways = [name for name in _FROM_TRAIN if getattr(self, name)]
        if ways and "val" in given:
            what = f"{self.hold_out} images" if ways[0] == "hold_out" else "some images"
            raise ValueError(
                f"{ways[0]} makes {what} of train val: leave out val and val_images, or {ways[0]}"
            )
        if len(ways) > 1:
            raise ValueError(f"{' and '.join(ways)} both say what is val: leave out one of them")

    def _require_entries(self, split: str) -> None:
        """Raise ValueError unless a split has entries, with the image folders that go with them."""
        files, folders = getattr(self, split), getattr(self, f"{split}_images")
        if not files:
            raise ValueError(f"{split} is missing: format {self.format} needs at least one entry")
        if self.format in _OF_FILES and len(folders) != len(files):
            raise ValueError(
                f"{split} has {len(files)} annotation files but {split}_images {len(folders)} "
                "folders"
            )
        if self.format in ("xml", "labelme", "yolo") and len(folders) not in (0, len(files)):
            raise ValueError(
                f"{split} has {len(files)} folders of annotations but {split}_images "
                f"{len(folders)} of images"
            )
        places = {"voc": "JPEGImages", "ilsvrc": "Data"}
        if self.format in places and folders:
            raise ValueError(
                f"{split}_images does not apply to format {self.format}: images are in "
                f"{places[self.format]}"
            )


class RefineConfig(Section):
    """Iterative box refinement and box voting (paper, appendix B), at test time."""

    # paper: 1. A round regresses once more from one box a RoI, that of its likeliest class (the
    # paper joins 300 new to 300 old; all classes' boxes would cost as many times more), and costs
    # one more pass of the RoI head
    iterations: Annotated[int, Field(ge=0, le=100)] = 0
    nms_thresh: Fraction = 0.3  # IoU, of all rounds together (paper); without rounds model.roi's
    # whether detections move to the score-weighted mean of the boxes of their class around them
    voting: Literal["after_refinement", "always", "never"] = "after_refinement"
    # IoU from which a box votes: 0.5 in Gidaris and Komodakis's code (the paper gives none;
    # Detectron's default is 0.8)
    voting_iou: Fraction = 0.5


class MultiScaleConfig(Section):
    """Scoring regions at several scales (paper, appendix B), at test time; proposals stay those of
    the model's own scale.
    """

    # px, rising; empty: the model's own alone. Paper: [200, 400, 600, 800, 1000], which costs 6
    # times the backbone at 600 and 2 times the RoI head
    short_sides: Annotated[tuple[ScaleSide, ...], Field(max_length=20)] = ()
    # px cap of the long side, one a short side; empty: as model.input has it, in proportion
    # (600 and 1000 give 1667 at 1000), so that all scales show an image alike. The paper gives none
    max_sides: tuple[ScaleSide, ...] = ()
    # px: of a region's scales the two count at which its area is nearest to that of such a square,
    # Fast R-CNN's rule for one (the paper has "two adjacent scales" and does not say which)
    region_side: ScaleSide = 224
    # where the two scales of a region meet by maxout: "features" after the layers behind RoI
    # pooling (the paper has "RoI pooling and subsequent layers" on both maps), or the "pooled"
    # grids before them, half the work
    merge: Literal["features", "pooled"] = "features"

    @model_validator(mode="after")
    def _sides_fit(self) -> MultiScaleConfig:
        sides, caps = list(self.short_sides), list(self.max_sides)
        if sides != sorted(set(sides)):
            raise ValueError(f"short_sides {sides} must rise, each once: {sorted(set(sides))}")
        if caps and len(caps) != len(sides):
            raise ValueError(
                f"max_sides has {len(caps)} caps for {len(sides)} short_sides: give one for each, "
                "or none"
            )
        if caps != sorted(caps):
            raise ValueError(f"max_sides {caps} must not fall, as short_sides rise")
        for side, cap in zip(sides, caps, strict=False):
            if side > cap:
                raise ValueError(f"short side {side} px is more than its max side, {cap} px")
        return self

    def scales(self, given: InputConfig) -> tuple[tuple[int, int], ...]:
        """Return (short_side, max_side) px of every scale for a model of that input; its own where
        none is configured.
        """
        own = (given.short_side, given.max_side)
        sides = self.short_sides or own[:1]
        caps = self.max_sides or [round(side * own[1] / own[0]) for side in sides]
        return tuple(zip(sides, caps, strict=True))


Scheme = Literal["joint", "rpn", "fast_rcnn", "alternating"]
OfPhases = Field(min_length=4, max_length=4)

PHASES: tuple[Literal["rpn", "fast_rcnn"], ...] = ("rpn", "fast_rcnn", "rpn", "fast_rcnn")
"""What the four steps of alternating training train (Ren et al., 3.2)."""

PHASE_SHARES = (2, 1, 2, 1)
"""Of all steps: py-faster-rcnn's 80k, 40k, 80k and 40k on VOC."""

_FIXED_FROM = 2
"""The first of PHASES in which the shared layers are fixed."""


_TRAINED_A_LOOK = 10
"""Images are trained on for each that is looked at on the way. Looking takes no longer than a step:
forward alone, but over all proposals of a test.
"""

_LEAST_LOOKED_AT = 50
"""Of fewer images the metric would say little."""


_MOST_OF_THEM = 0.8
"""Of the held-out images; where it would be more of them it is all."""


class DetectionTrainConfig(TrainConfig):
    """The optimisation, and what is trained when."""

    # joint: RPN and RoI head at once (py-faster-rcnn's end2end). rpn: the RPN alone, judged by the
    # recall of its proposals. fast_rcnn: the RoI head alone, on the proposals of
    # data.train_proposals. alternating: the paper's four steps, RPN, Fast R-CNN on its proposals,
    # then both again on shared layers that stay as the second left them
    scheme: Scheme = "joint"
    # steps; 0: only at the end; auto: a fifth of the run, where that is 20 steps or more. Of scheme
    # alternating that is 0: each of its steps goes on from the last weights of the one before
    eval_every: Count | Literal["auto"] = "auto"
    # backbone and heads by torch.compile; auto: on a GPU
    compile: bool | Literal["auto"] = False
    # held-out images of an evaluation on the way, always the same; the one at the end is of all.
    # auto: so many that evaluations take about a tenth of the time, 50 at least
    eval_images: Positive | Literal["auto", "all"] = "auto"
    # fixed: the layers that RPN and RoI head share do not learn
    shared_layers: Literal["learn", "fixed"] = "learn"
    # alternating: steps of each of the four, `steps` together; null: in PHASE_SHARES
    phase_steps: Annotated[tuple[Positive, ...], OfPhases] | None = None
    # alternating: where lr drops in each of the four; null: where `milestones` are in `steps` (60k
    # of 80k and 30k of 40k, py-faster-rcnn's, with 3/4 there)
    phase_milestones: Annotated[tuple[tuple[PositiveFloat, ...], ...], OfPhases] | None = None
    # alternating: of the proposals that Fast R-CNN learns from, made once and saved. null: all
    # boxes enter NMS (py-faster-rcnn's rpn_generate sets RPN_PRE_NMS_TOP_N to -1: made once, they
    # may take the time)
    proposals_pre_nms_top_n: Positive | None = None
    proposals_post_nms_top_n: Positive = 2000  # py-faster-rcnn's rpn_generate

    @model_validator(mode="after")
    def _phases_fit(self) -> DetectionTrainConfig:
        given = [name for name in ("phase_steps", "phase_milestones") if getattr(self, name)]
        if self.scheme != "alternating":
            if given:
                raise ValueError(f"{given[0]} goes with train.scheme=alternating")
            return self
        if self.early_stopping or self.ema_decay is not None:
            name = "early_stopping" if self.early_stopping else "ema_decay"
            raise ValueError(
                f"{name} does not go with scheme alternating, each of whose four steps goes on "
                "from the last weights of the one before: leave it out"
            )
        if self.shared_layers == "fixed":
            raise ValueError(
                "scheme alternating fixes the shared layers in its last two steps by itself: leave "
                "shared_layers out"
            )
        if self.phase_steps is not None and self.steps != sum(self.phase_steps):
            raise ValueError(
                f"phase_steps {list(self.phase_steps)} are {sum(self.phase_steps)} together, and "
                f"train.steps {self.steps}: give train.steps={sum(self.phase_steps)}"
                + (" and train.epochs=null" if self.epochs is not None else "")
            )
        if self.phase_milestones is not None and self.schedule != "multistep":
            raise ValueError(f"schedule {self.schedule} has no milestones: leave out both kinds")
        shared_out = self.steps is not None and self.phase_steps is None
        if shared_out and self.steps < sum(PHASE_SHARES):
            raise ValueError(
                f"scheme alternating divides {self.steps} steps among four: give at least "
                f"{sum(PHASE_SHARES)}"
            )
        return self

    def looked_at(self, steps: int, num_held_out: int) -> int:
        """Return how many of the held-out images every evaluation of a run of `steps` looks at; all
        where there is none on the way.
        """
        every = self.evaluated_every(steps)
        if self.eval_images == "all" or every == 0:
            return num_held_out
        number = self.eval_images
        if number == "auto":
            number = max(_LEAST_LOOKED_AT, every * self.images_per_step // _TRAINED_A_LOOK)
            number = num_held_out if number > _MOST_OF_THEM * num_held_out else number
        return min(number, num_held_out)

    def phases(self, num_images: int) -> tuple[dict, ...]:
        """Return the train section of each of the four steps of scheme alternating, as plain values
        to be checked, for a training set of `num_images`: schemes "rpn" and "fast_rcnn", with the
        schedule of these settings on their own lengths. Raises ValueError for `epochs` of too few
        images.
        """
        total, milestones = self.in_steps(num_images)
        least = sum(PHASE_SHARES)
        if self.phase_steps is None and total < least:  # of `epochs`: see _phases_fit
            raise ValueError(
                f"train.epochs {self.epochs:g} of {num_images} images, {self.images_per_step} a "
                f"step, gives {total} steps, and train.scheme=alternating divides them among four: "
                f"give train.epochs={least * self.images_per_step / max(num_images, 1):.3g} or more"
            )
        lengths = self.phase_steps or _shared_out(total)
        drops = self.phase_milestones or [_scaled(milestones, total, length) for length in lengths]
        return tuple(
            {
                **self.model_dump(mode="json"),
                "scheme": scheme,
                "eval_every": 0 if self.eval_every == "auto" else self.eval_every,
                "shared_layers": "learn" if number < _FIXED_FROM else "fixed",
                "steps": length,
                "epochs": None,
                "milestones": list(milestones_of_phase),
                "phase_steps": None,
                "phase_milestones": None,
            }
            for number, (scheme, length, milestones_of_phase) in enumerate(
                zip(PHASES, lengths, drops, strict=True)
            )
        )


def _shared_out(total: int) -> tuple[int, ...]:
    """Steps of the four that are `total` together, in PHASE_SHARES."""
    ends = [
        round(total * done / sum(PHASE_SHARES))
        for done in itertools.accumulate(PHASE_SHARES, initial=0)
    ]
    return tuple(end - start for start, end in itertools.pairwise(ends))


def _scaled(milestones: tuple[int, ...], total: int, length: int) -> list[int]:
    """Milestones of `total` steps at the same places of `length`, but for those at its ends."""
    return [scaled for one in milestones if 0 < (scaled := one * length // total) < length]


class EvalConfig(Section):
    """How held-out images are evaluated during training and after it."""

    protocol: ProtocolName = "coco"  # whose rules AP is computed by
    # who counts COCO's numbers, the same to the last bit: pycocotools; or hotcoco, in a seventh of
    # the time, an extra (pip install 'detres[fast]'). auto: hotcoco, where it is installed, for
    # evaluations on the way; pycocotools for a run's last one and for what eval says. The
    # protocol's line beside the numbers has its name
    backend: CocoBackend = "auto"
    batch_size: Positive = 1  # images at once; detections do not depend on it
    # of the networks; auto: bf16 where the processor or GPU has instructions for it. bf16 takes
    # about half the time, and moves AP by some thousandths
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    # of results for VOC's server: comp3 is for what was trained on VOC's data alone, pretraining
    # included; comp4, for any data, is true of every detector
    competition: Literal["comp3", "comp4"] = "comp4"
    refine: RefineConfig = RefineConfig()
    multi_scale: MultiScaleConfig = MultiScaleConfig()
    # whether a run too evaluates with refine and multi_scale, which at the paper's settings takes
    # several times as long; without, the best weights are chosen by plain detections
    improved_in_training: bool = False


class DetectionConfig(Section):
    """One run."""

    name: RunName  # of the run folder, runs/NAME
    seed: Count = 3  # of all that is drawn at random; py-faster-rcnn's
    data: DataConfig
    model: ModelConfig
    train: DetectionTrainConfig
    eval: EvalConfig = EvalConfig()

    @model_validator(mode="after")
    def _proposals_where_they_are_used(self) -> DetectionConfig:
        given = {
            f"data.{split}_proposals": getattr(self.data, f"{split}_proposals")
            for split in TRAINING_SPLITS
        }
        if self.train.scheme == "fast_rcnn":
            missing = [name for name, path in given.items() if path is None]
            if missing:
                raise ValueError(
                    "train.scheme=fast_rcnn learns from proposals that were made before: give "
                    f"their files, {' and '.join(missing)}"
                )
        elif any(given.values()):
            (name, *_) = [name for name, path in given.items() if path is not None]
            raise ValueError(
                f"{name} goes with train.scheme=fast_rcnn: with scheme {self.train.scheme} the RPN "
                "proposes"
            )
        return self

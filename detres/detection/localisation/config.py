"""Configuration of a localisation run.

A default is the paper's value (appendix C), or where the paper is silent that of the detector's RPN
or of R-CNN (Girshick et al. 2014), unless the comment beside it says otherwise.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from detres.config import Count, Fraction, Positive, PositiveFloat, RunName, Section, UserPath
from detres.detection.config import (
    VGGS,
    AnchorConfig,
    BackboneConfig,
    DataConfig,
    NotNegative,
    PixelConfig,
    RPNConfig,
)
from detres.runs.settings import TrainConfig


class CropConfig(PixelConfig):
    """How an image reaches the network: crops to learn from, regions of R-CNN."""

    crop_side: Positive = 224  # px; of the 1-crop test too
    # px between which an image's short side is drawn (section 3.4); the per-class RPN's
    train_short_sides: tuple[Positive, Positive] = (256, 480)

    @model_validator(mode="after")
    def _sides_fit(self) -> CropConfig:
        if not self.crop_side <= self.train_short_sides[0] <= self.train_short_sides[1]:
            raise ValueError(
                f"train_short_sides {list(self.train_short_sides)} px, in rising order, must hold "
                f"a crop of crop_side {self.crop_side} px"
            )
        return self


class ClassAnchorConfig(AnchorConfig):
    """As the detector's; a crop of 224 px holds none of 512. The paper gives no sizes."""

    sizes: Annotated[tuple[Annotated[float, Field(gt=0, le=1e6)], ...], Field(min_length=1)] = (
        64.0,
        128.0,
        256.0,
    )


class ClassRPNConfig(RPNConfig):
    """The per-class RPN: an output a class and anchor, 8 anchors sampled an image, half of them
    positive.
    """

    # the last map of the network; the paper does not say which
    stage: Literal["conv4", "conv5"] = "conv5"
    objectness: Literal["sigmoid"] = "sigmoid"
    # objects fill most of a crop, and few anchors of their size lie inside it
    train_anchors: Literal["inside", "all"] = "all"
    batch_size: Positive = 8
    min_size: NotNegative = 0.0
    # what R-CNN takes; localising without it takes the best
    test_post_nms_top_n: Positive = 200

    @model_validator(mode="after")
    def _proposes_in_tests_only(self) -> ClassRPNConfig:
        usual = RPNConfig()
        for name in ("train_pre_nms_top_n", "train_post_nms_top_n"):
            if getattr(self, name) != getattr(usual, name):
                raise ValueError(f"{name}: a per-class RPN proposes nothing while it learns")
        return self


class RCNNConfig(Section):
    """R-CNN on the proposals of a per-class RPN."""

    # weights of a trained per-class RPN, whose proposals are learned from and tested
    proposals: UserPath | None = None
    fg_iou_thresh: Fraction = 0.5  # IoU from which a region is an object
    positive_fraction: Fraction = 0.25  # R-CNN: 32 of 128 regions
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)  # as the detector's
    smooth_l1_beta: NotNegative = 1.0  # as the detector's


class LocalisationModelConfig(Section):
    """All that is needed, with a class list, to build the model: stored in every weights file."""

    kind: Literal["class_rpn", "rcnn"] = "class_rpn"  # which of the two models
    backbone: BackboneConfig
    input: CropConfig = CropConfig()
    anchors: ClassAnchorConfig = ClassAnchorConfig()
    rpn: ClassRPNConfig = ClassRPNConfig()
    rcnn: RCNNConfig = RCNNConfig()

    @model_validator(mode="after")
    def _stage_is_the_last_of_a_vgg(self) -> LocalisationModelConfig:
        if self.backbone.name in VGGS and self.rpn.stage != "conv5":
            raise ValueError(
                f"model.rpn.stage={self.rpn.stage} goes with a ResNet; of {self.backbone.name} the "
                "RPN reads conv5"
            )
        return self

    @model_validator(mode="after")
    def _settings_are_of_the_kind(self) -> LocalisationModelConfig:
        if self.kind == "rcnn":
            if self.rcnn.proposals is None:
                raise ValueError(
                    "model.kind rcnn needs the weights of a trained per-class RPN: give "
                    "model.rcnn.proposals"
                )
            if self.anchors != ClassAnchorConfig() or self.rpn != ClassRPNConfig():
                raise ValueError(
                    "model.anchors and model.rpn are of the per-class RPN: with model.kind rcnn it "
                    "has those it was trained with"
                )
        elif self.rcnn != RCNNConfig():
            raise ValueError("model.rcnn goes with model.kind rcnn")
        return self


class LocalisationTrainConfig(TrainConfig):
    """The optimisation. The paper gives the batch; the rest is that of its classification."""

    batch_size: Positive = 256  # crops at once
    reference_batch: Positive = 256  # the batch that lr is stated for
    lr: PositiveFloat = 0.01  # not in the paper
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4  # that of the paper's classification


class LocalisationEvalConfig(Section):
    """The views of an image in which its object is looked for."""

    # the centre square, or the whole image at several scales (fully convolutional)
    views: Literal["center", "dense"] = "center"
    short_side: Positive = 256  # px, before cropping; and of R-CNN's proposals to learn from
    # dense: short sides in px; those of the paper's classification (section 3.4)
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (224, 256, 384, 480, 640)
    max_side: Positive = 1000  # px cap of a whole image's long side; not in the paper
    batch_size: Positive = 1  # images at once
    rcnn_batch_size: Positive = 64  # regions

    @model_validator(mode="after")
    def _sides_fit(self) -> LocalisationEvalConfig:
        if max(self.short_side, *self.scales) > self.max_side:
            raise ValueError(
                f"max_side {self.max_side} px is less than a short side of "
                f"{max(self.short_side, *self.scales)} px"
            )
        return self


class LocalisationConfig(Section):
    """One run."""

    name: RunName  # of the run folder, runs/NAME
    seed: Count = 3  # of all that is drawn at random
    data: DataConfig
    model: LocalisationModelConfig
    train: LocalisationTrainConfig
    eval: LocalisationEvalConfig = LocalisationEvalConfig()

    @model_validator(mode="after")
    def _settings_go_together(self) -> LocalisationConfig:
        if self.data.color:
            raise ValueError("data.color is the detector's: localisation leaves colours alone")
        if self.data.reduced_decode:
            raise ValueError("data.reduced_decode is the detector's: a crop may be of any scale")
        if self.data.train_proposals or self.data.val_proposals:
            raise ValueError(
                "data.train_proposals and data.val_proposals are a detector's: R-CNN's are made by "
                "model.rcnn.proposals"
            )
        if self.eval.views == "center" and self.eval.short_side < self.model.input.crop_side:
            raise ValueError(
                f"eval.short_side {self.eval.short_side} px does not hold a crop of "
                f"model.input.crop_side {self.model.input.crop_side} px"
            )
        return self

from __future__ import annotations

from pathlib import Path

import pytest

from detres.config import ConfigError
from detres.detection.localisation.config import LocalisationConfig
from tests.detection.localisation.parts import config_of
from tests.detection.models.test_class_rpn import TINY_MODEL


def test_the_papers_values_are_the_defaults() -> None:
    usual = LocalisationConfig(
        name="t",
        data=config_of(Path(".")).data,
        model={"backbone": {"name": "resnet101", "norm": "batch", "freeze_at": 0}},
        train={"steps": 1},
    )
    assert (usual.train.batch_size, usual.model.input.crop_side) == (256, 224)
    rpn = usual.model.rpn
    assert (rpn.batch_size, rpn.positive_fraction, rpn.test_post_nms_top_n) == (8, 0.5, 200)
    assert usual.model.input.train_short_sides == (256, 480)
    assert usual.eval.short_side == 256


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"data": {"color": 0.5}}, "data.color is the detector's"),
        ({"data": {"reduced_decode": True}}, "data.reduced_decode is the detector's"),
        ({"data": {"val_proposals": "x"}}, "R-CNN's are made by model.rcnn.proposals"),
        ({"eval": {"short_side": 48}}, "eval.short_side 48 px does not hold a crop"),
        ({"eval": {"max_side": 90}}, "max_side 90 px is less than a short side of 96 px"),
        (
            {"model": {"input": {"crop_side": 90, "train_short_sides": [64, 80]}}},
            r"train_short_sides \[64, 80\] px, in rising order, must hold a crop of crop_side 90",
        ),
        ({"model": {"rcnn": {"fg_iou_thresh": 0.6}}}, "model.rcnn goes with model.kind rcnn"),
        ({"model": {"kind": "rcnn"}}, "needs the weights of a trained per-class RPN"),
        (
            {"model": {"kind": "rcnn", "rcnn": {"proposals": "x"}}},
            "model.anchors and model.rpn are of the per-class RPN",
        ),
        ({"model": {"rpn": {**TINY_MODEL["rpn"], "objectness": "softmax"}}}, "objectness"),
        (
            {"model": {"backbone": {"name": "vgg16", "freeze_at": 0, "norm": None}}},
            "model.rpn.stage=conv4 goes with a ResNet; of vgg16 the RPN reads conv5",
        ),
        ({"model": {"rpn": {"train_post_nms_top_n": 9}}}, "proposes nothing while it learns"),
    ],
)
def test_settings_that_do_not_go_together(more: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(Path("."), **more)


def test_dense_views_need_no_room_for_a_crop() -> None:
    assert config_of(Path("."), eval={"views": "dense", "short_side": 48}).eval.short_side == 48

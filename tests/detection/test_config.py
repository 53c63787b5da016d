"""What a detection configuration refuses as it is read."""

from __future__ import annotations

import pytest

from detres.config import ConfigError, check
from detres.detection.config import (
    DataConfig,
    DetectionTrainConfig,
    EvalConfig,
    InputConfig,
    ModelConfig,
)
from tests.detection.configs import TINY


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("rpn", {"fg_iou_thresh": 0.2}, "bg_iou_thresh 0.3, fg_iou_thresh 0.2: each may be at mos"),
        ("roi", {"bg_iou_thresh": 0.6}, "bg_iou_floor 0, bg_iou_thresh 0.6, fg_iou_thresh 0.5: ea"),
        ("roi", {"bg_iou_floor": 0.6}, "bg_iou_floor 0.6, bg_iou_thresh 0.5, fg_iou_thresh 0.5:"),
        ("input", {"std": [1, 0, 1]}, "input.std"),
        ("roi", {"smooth_l1_beta": -1}, "roi.smooth_l1_beta"),
        ("rpn", {"loss_normalizer": "anchors"}, "rpn.loss_normalizer"),
        ("rpn", {"width": 10**12}, "rpn.width"),
        ("roi", {"pool_size": 65}, "roi.pool_size"),
        ("anchors", {"sizes": [1e308]}, "anchors.sizes"),
        ("anchors", {"sizes": [16.0] * 101}, "anchors.sizes"),
        ("anchors", {"aspect_ratios": [1e-300]}, "anchors.aspect_ratios"),
        ("backbone", {"name": "klingon"}, "test: backbone.name: unknown backbone 'klingon'"),
        (
            "input",
            {"short_side": 200, "max_side": 100, "train_short_sides": []},
            "input: short_side 200 px is more than max_side, 100 px, allows",
        ),
        (
            "input",
            {"short_side": 90, "max_side": 100, "train_short_sides": [90, 101]},
            "short_side 101 px is more than max_side",
        ),
    ],
)
def test_impossible_settings_are_named(section, change, message):
    tree = {**TINY, section: {**TINY.get(section, {}), **change}}
    with pytest.raises(ConfigError, match=message):
        check(ModelConfig, tree, "test")


def test_the_short_side_may_be_the_longest():
    sides = {"short_side": 100, "max_side": 100, "train_short_sides": [100]}
    tree = {**TINY, "input": {**TINY.get("input", {}), **sides}}
    assert check(ModelConfig, tree, "test").input.short_side == 100


def test_thresholds_may_be_equal():
    tree = {**TINY, "rpn": {**TINY["rpn"], "fg_iou_thresh": 0.3, "bg_iou_thresh": 0.3}}
    assert check(ModelConfig, tree, "test").rpn.fg_iou_thresh == 0.3


COCO = {
    "format": "coco",
    "train": ["t.json"],
    "train_images": ["t"],
    "val": ["v.json"],
    "val_images": ["v"],
}
VOC = {"format": "voc", "train": ["train"], "val": ["val"]}


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        (COCO, {"test": ["i.json"]}, "test has 1 annotation files but test_images 0 folders"),
        (COCO, {"test_images": ["i"]}, "test is missing: format coco needs at least one entry"),
        (VOC, {"test": ["test"], "test_images": ["i"]}, "test_images does not apply to format voc"),
        (VOC, {"val": []}, "val is missing"),
        (VOC, {"train": [], "val": [], "hold_out": 5}, "train is missing"),
        (VOC, {"hold_out": 5}, "hold_out makes 5 images of train val: leave out val"),
        (COCO, {"hold_out": 5, "val": []}, "hold_out makes 5 images of train val"),
        (COCO, {"hold_out": -1}, "hold_out"),
        ({"format": "shapes"}, {"test": ["t"]}, "shapes has splits of its own"),
        ({"format": "shapes"}, {"hold_out": 5}, "shapes has splits of its own"),
    ],
)
def test_impossible_splits_are_named(base, change, message):
    with pytest.raises(ConfigError, match=message):
        check(DataConfig, {**base, **change}, "test")


def test_a_test_set_is_optional_and_held_out_images_are_val():
    data = check(DataConfig, {**COCO, "test": ["i.json"], "test_images": ["i"]}, "test")
    assert (data.test, data.test_images, data.hold_out) == (("i.json",), ("i",), 0)
    assert check(DataConfig, VOC, "test").test == ()
    held = check(DataConfig, {"format": "voc", "train": ["all"], "hold_out": 5}, "test")
    assert held.val == ()


@pytest.mark.parametrize(
    ("given", "scales"),
    [
        ({}, ((600, 1000),)),
        ({"short_sides": [600]}, ((600, 1000),)),
        ({"short_sides": [200, 600, 1000]}, ((200, 333), (600, 1000), (1000, 1667))),
        ({"short_sides": [200, 600], "max_sides": [900, 900]}, ((200, 900), (600, 900))),
    ],
)
def test_the_caps_of_scales_are_the_models_own_in_proportion(given, scales):
    config = check(EvalConfig, {"multi_scale": given}, "test")
    assert config.multi_scale.scales(InputConfig(short_side=600, max_side=1000)) == scales
    odd = InputConfig(short_side=597, max_side=1003)
    own = check(EvalConfig, {"multi_scale": {"short_sides": [597]}}, "test")
    assert own.multi_scale.scales(odd) == ((597, 1003),)


def test_what_is_done_at_test_time_is_off_by_default():
    config = EvalConfig()
    assert (config.refine.iterations, config.multi_scale.short_sides) == (0, ())
    assert (config.refine.voting, config.improved_in_training) == ("after_refinement", False)
    assert not ModelConfig.model_validate(TINY).roi.context


# ---- evaluations on the way ----


def train_config(**settings: object) -> DetectionTrainConfig:
    return check(DetectionTrainConfig, settings, "test")


@pytest.mark.parametrize(
    ("settings", "held_out", "number"),
    [
        ({"steps": 1000, "batch_size": 8}, 1000, 160),  # 200 steps of 8, a tenth of them
        ({"steps": 1000, "batch_size": 8}, 201, 160),
        ({"steps": 1000, "batch_size": 8}, 199, 199),  # more than four fifths: all
        ({"steps": 1000, "batch_size": 1}, 1000, 50),
        ({"steps": 1000, "batch_size": 1}, 20, 20),
        ({"steps": 100_000, "batch_size": 2}, 5000, 4000),
        ({"steps": 1000, "eval_every": 10}, 1000, 50),
        ({"steps": 1000, "eval_every": 0}, 1000, 1000),  # none on the way
        ({"steps": 30}, 1000, 1000),
        ({"steps": 1000, "eval_images": "all"}, 1000, 1000),
        ({"steps": 1000, "eval_images": 7}, 1000, 7),
        ({"steps": 1000, "eval_images": 7}, 5, 5),
    ],
)
def test_so_many_held_out_images_are_looked_at(settings, held_out, number):
    config = train_config(**settings)
    assert config.looked_at(config.steps, held_out) == number


def test_a_detector_is_evaluated_five_times_a_run_by_default():
    config = train_config(steps=1000)
    assert (config.eval_every, config.evaluated_every(1000)) == ("auto", 200)
    assert (config.early_stopping, config.ema_decay) == (0, None)
    phases = train_config(steps=1000, scheme="alternating").phases(0)
    assert [phase["eval_every"] for phase in phases] == [0] * 4
    phases = train_config(steps=1000, scheme="alternating", eval_every=30).phases(0)
    assert [phase["eval_every"] for phase in phases] == [30] * 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"early_stopping": 2}, "early_stopping does not go with scheme alternating"),
        ({"ema_decay": 0.9}, "ema_decay does not go with scheme alternating"),
    ],
)
def test_four_steps_end_where_they_are_told_to(settings, message):
    with pytest.raises(ConfigError, match=message):
        train_config(steps=1000, scheme="alternating", **settings)


@pytest.mark.parametrize("number", [0, -1, "many", 1.5])
def test_a_number_of_images_that_is_none(number):
    said = r"eval_images: Input should be .* integer|.* equal to 1, or 'auto' or 'all', got "
    with pytest.raises(ConfigError, match=said):
        train_config(steps=1000, eval_images=number)

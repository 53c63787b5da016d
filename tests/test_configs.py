"""The configurations that ship: each loads, builds, and says the paper's numbers where it is the paper's."""

from __future__ import annotations

from pathlib import Path

import pytest

from detres.build import build_detector
from detres.config import load_config

FILES = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))
WITHOUT_DOWNLOAD = ["model.backbone.weights=null", "model.backbone.norm=batch", "model.backbone.freeze_at=0"]


def config_of(name, overrides=None):
    return load_config(next(path for path in FILES if path.stem == name), overrides)


def test_the_five_are_there():
    assert {path.stem for path in FILES} >= {"shapes_r18", "bccd_r18", "coco_r50", "coco_r101", "voc0712_r101"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_loads_under_its_own_name_and_builds(path):
    assert load_config(path).name == path.stem
    config = load_config(path, WITHOUT_DOWNLOAD)
    detector = build_detector(config.model, 20)
    anchors = len(config.model.anchors.sizes) * len(config.model.anchors.aspect_ratios)
    assert detector.rpn.anchors.num_anchors == anchors
    assert detector.roi_head.predictor.bbox_pred.out_features == 80


@pytest.mark.parametrize("name", ["coco_r50", "coco_r101", "voc0712_r101"])
def test_the_papers_settings(name):
    config = config_of(name)
    model, train = config.model, config.train
    assert (model.input.shorter, model.input.longer) == (600, 1000)
    assert (model.backbone.norm, model.backbone.freeze_at) == ("frozen", 2)
    assert (model.rpn.test_post_nms_top_n, model.roi.pool, model.roi.pool_size) == (300, "roi_pool", 14)
    assert (train.optimizer, train.effective_lr, train.momentum, train.gamma, train.weight_decay) == ("sgd", 1e-3, 0.9, 0.1, 5e-4)
    if name.startswith("coco"):
        assert (train.steps, train.milestones) == (320_000, (240_000,))
        assert len(model.anchors.sizes) * len(model.anchors.aspect_ratios) == 12
        assert config.eval.protocol == "coco"
    else:
        assert (train.steps, train.milestones) == (70_000, (50_000,))
        assert len(model.anchors.sizes) * len(model.anchors.aspect_ratios) == 9
        assert (config.data.train, config.data.val, config.eval.protocol) == (("2007/trainval", "2012/trainval"), ("2007/test",), "voc07")

from __future__ import annotations

from dataclasses import replace

import pytest

from detres.config import ConfigError
from detres.reproduction.settings import config_of, differences, digest_of, mattering, run_name
from detres.reproduction.tables import Training
from tests.reproduction.folders import CONFIGS, DETECTOR, RESNET


def digest(training: Training, *settings: str) -> str:
    return digest_of(replace(training, settings=settings), CONFIGS)


@pytest.mark.parametrize(
    "setting",
    [
        "name=other",
        "seed=7",
        "data.root=/elsewhere",
        "data.workers=9",
        "train.compile=true",
        "train.save_every=7",
        "train.log_every=7",
        "eval.batch_size=7",
        "train.momentum=0.9",  # as it is by default
        "model.label_smoothing=0",
    ],
)
def test_a_digest_stays_where_no_result_changes(setting):
    assert digest(RESNET, setting) == digest(RESNET)


@pytest.mark.parametrize(
    "setting",
    [
        "train.steps=64001",
        "train.batch_size=64",
        "train.lr=0.05",
        "train.milestones=[32000]",
        "train.precision=fp32",
        "train.eval_every=1",
        "data.hold_out=5000",
        "data.flip=0",
        "model.mean=channel",
        "model.network.shortcut=B",
        "eval.views=dense eval.scales=[32]",
    ],
)
def test_a_digest_changes_with_what_matters(setting):
    assert digest(RESNET, *setting.split()) != digest(RESNET)


def test_a_digest_covers_what_a_run_starts_from():
    started = replace(DETECTOR, init_from=replace(DETECTOR, config="coco_r101"))
    other = replace(DETECTOR, init_from=replace(DETECTOR, config="coco_r50"))
    assert len({digest_of(each, CONFIGS) for each in (DETECTOR, started, other)}) == 3


def test_proposals_count_by_the_run_they_are_of():
    found = [
        mattering({"model": {"rcnn": {"proposals": path}}})
        for path in ("runs/loc/best.safetensors", "/far/loc-2/best.safetensors", "loc3/b", None)
    ]
    assert found[0] == found[1] == {"model.rcnn.proposals": "loc"}
    assert found[2:] == [{"model.rcnn.proposals": "loc3"}, {"model.rcnn.proposals": None}]


def test_differences_in_words():
    found = {"a": 1, "b": [1], "c": "bf16"}
    wanted = {"a": 1, "b": [1, 2], "c": "auto", "d": True}
    assert differences(found, wanted) == [
        "b is [1], not [1, 2]",
        "d is None, not True",
    ]
    assert differences({}, {}) == []


def test_the_weights_a_training_needs_take_their_place_in_its_settings():
    loc = Training("train-loc", "shapes_loc_r18", None)
    settings = (
        "model.kind=rcnn",
        "model.rcnn.proposals={needs}",
        "model.anchors={}",
        "model.rpn={}",
    )
    rcnn = Training("train-loc", "shapes_loc_r18", None, settings=settings, needs=loc)
    proposals = config_of(rcnn, CONFIGS).model.rcnn.proposals
    assert proposals == "shapes_loc_r18/best.safetensors"
    assert run_name(proposals) == "shapes_loc_r18"


def test_a_configuration_that_is_none_is_said():
    with pytest.raises(ConfigError, match=r"cifar10_resnet20\.yaml with --set: unknown key 'x'"):
        config_of(replace(RESNET, settings=("x=1",)), CONFIGS)
    with pytest.raises(FileNotFoundError, match="did you mean"):
        config_of(replace(RESNET, config="cifar10_resnet2"), CONFIGS)

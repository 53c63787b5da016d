from __future__ import annotations

import json
import re

import pytest
import torch

from backbones import InputSpec, resnet18, save_weights
from detres.config import check
from detres.detection.annotations import Annotations
from detres.detection.build import (
    build_detector,
    build_train_set,
    build_val_set,
    eval_loader,
    train_loader,
)
from detres.detection.config import ModelConfig
from detres.detection.data.coco import read_coco
from detres.detection.data.loader import DetectionDataset
from detres.detection.data.read import read_split
from detres.detection.data.shapes import ensure_shapes
from detres.detection.data.transforms import EvalTransform, TrainTransform
from detres.detection.structures import ImageBatch, Target
from tests.detection.configs import RANDOM, TINY, box, coco_config
from tests.helpers import write_coco

Batch = tuple[ImageBatch, list[Target]]


@pytest.mark.parametrize(("name", "classes", "sizes", "parameters"), [
    ("resnet50", 20, [128, 256, 512], 28_469_983),
    ("resnet50", 80, [64, 128, 256, 512], 29_093_917),
    ("resnet101", 20, [128, 256, 512], 47_462_111),
    ("resnet101", 80, [64, 128, 256, 512], 48_086_045),
])  # fmt: skip
def test_parameters_as_counted_for_the_paper(name, classes, sizes, parameters):
    model = check(
        ModelConfig, {"backbone": {"name": name, **RANDOM}, "anchors": {"sizes": sizes}}, "test"
    )
    never_used = 4 * (2048 + 1)  # py-faster-rcnn predicts a box for the background too
    assert (
        sum(p.numel() for p in build_detector(model, classes).parameters())
        == parameters - never_used
    )


@pytest.mark.parametrize("name", ["vgg16", "resnet20", "plain56"])
def test_a_backbone_without_conv5_at_stride_32(name):
    model = check(ModelConfig, {"backbone": {"name": name, **RANDOM}}, "test")
    with pytest.raises(
        ValueError,
        match=rf"model\.backbone\.name: {name} has no conv5 .*; expected one of plain18, plain34, "
        r"resnet18",
    ):
        build_detector(model, 2)


def test_a_plain_net_and_another_shortcut_build():
    plain = check(ModelConfig, {**TINY, "backbone": {"name": "plain18", **RANDOM}}, "test")
    assert not [name for name in build_detector(plain, 2).state_dict() if "downsample" in name]
    projected = check(
        ModelConfig, {**TINY, "backbone": {"name": "resnet18", "shortcut": "C", **RANDOM}}, "test"
    )
    assert build_detector(projected, 2).backbone.layer1[0].downsample is not None


def test_weights_that_expect_another_input_are_refused_with_the_setting_they_need(tmp_path):
    net = resnet18()
    net.input_spec = InputSpec("bgr", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
    save_weights(net, tmp_path / "caffe.safetensors")
    backbone = {
        "name": "resnet18",
        "weights": str(tmp_path / "caffe.safetensors"),
        "stride_placement": "torchvision",
    }
    with pytest.raises(
        ValueError,
        match=r"caffe\.safetensors expect another input than model\.input gives.*channel_order=bgr",
    ) as caught:
        build_detector(check(ModelConfig, {**TINY, "backbone": backbone}, "test"), 2)
    advice = dict(
        re.findall(r"model\.input\.(\w+)=([^ ']+(?: [^']+)?)", str(caught.value).replace(", ", ","))
    )
    given = {
        "channel_order": advice["channel_order"],
        "mean": json.loads(advice["mean"]),
        "std": json.loads(advice["std"]),
    }
    model = check(
        ModelConfig, {**TINY, "backbone": backbone, "input": {**TINY["input"], **given}}, "test"
    )
    assert torch.equal(build_detector(model, 2).backbone.conv1.weight, net.conv1.weight)
    other_rounding = {**given, "mean": [102.98, 115.95, 122.77]}
    build_detector(
        check(
            ModelConfig,
            {**TINY, "backbone": backbone, "input": {**TINY["input"], **other_rounding}},
            "test",
        ),
        2,
    )


def test_settings_arrive_in_the_parts():
    detector = build_detector(check(ModelConfig, TINY, "test"), 3)
    rpn, roi = detector.rpn.settings, detector.roi_head.settings
    assert (rpn.nms_thresh, rpn.min_size, rpn.test_counts.post_nms) == (0.6, 2.0, 20)
    assert (roi.score_thresh, roi.detections_per_image) == (0.05, 7)
    assert detector.roi_head.pooler.output_size == 4
    assert detector.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_a_set_without_an_object_is_refused_with_what_was_left_out(tmp_path):
    write_coco(tmp_path, [(50, 60), (50, 60)], [box(1, xywh=(5, 5, 0, 9)), box(2, iscrowd=1)])
    with pytest.raises(ValueError, match=r"2 images but no object to learn from; left out: 1 "):
        build_train_set(coco_config(tmp_path))


@pytest.mark.parametrize("train_short_sides", [(), (40, 80)])
def test_the_sides_of_the_configuration_reach_the_images(tmp_path, train_short_sides):
    write_coco(tmp_path, [(50, 60), (50, 200)], [box(1), box(2)])
    given = {**TINY["input"], "train_short_sides": train_short_sides}
    config = coco_config(tmp_path, model={**TINY, "input": given})
    train = build_train_set(config)
    sides = {min(train[0, seed][0].shape[:2]) for seed in range(20)}
    assert sides == set(train_short_sides or (64,))
    assert train[1, 0][0].shape[1] == 96  # the cap
    val = build_val_set(config.model, read_split(config.data, "val"))
    assert [val[index, 0][0].shape for index in (0, 1)] == [(64, 77, 3), (24, 96, 3)]


def test_no_held_out_images_are_refused(tmp_path):
    write_coco(tmp_path, [], [])
    config = coco_config(tmp_path)
    with pytest.raises(ValueError, match=r"annotations\.json has no images"):
        build_val_set(config.model, read_split(config.data, "val"))


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    folder = ensure_shapes(tmp_path_factory.mktemp("cache"), num_train=21, num_val=1)
    return read_coco(folder / "annotations" / "train.json", folder / "train")


def train_set(annotations: Annotations) -> DetectionDataset:
    return DetectionDataset(
        annotations, TrainTransform(short_sides=(96, 128), max_side=200, color=0.2)
    )


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for (images, targets), (other_images, other_targets) in zip(first, second, strict=True):
        assert torch.equal(images.pixels, other_images.pixels)
        assert (images.sizes, images.original_sizes, images.ids) == (
            other_images.sizes,
            other_images.original_sizes,
            other_images.ids,
        )
        for target, other in zip(targets, other_targets, strict=True):
            assert target.image_id == other.image_id
            for name in ("boxes", "labels", "crowd", "difficult"):
                assert torch.equal(getattr(target, name), getattr(other, name))


def test_batches_do_not_depend_on_workers_or_on_where_a_run_starts(
    annotations: Annotations,
) -> None:
    dataset = train_set(annotations)
    arguments = {"batch_size": 4, "steps": 9, "seed": 3}
    alone = list(train_loader(dataset, **arguments))
    assert len(alone) == 9
    assert_same(alone, list(train_loader(dataset, num_workers=2, **arguments)))
    assert_same(alone[4:], list(train_loader(dataset, start_step=4, num_workers=1, **arguments)))


def test_evaluation_sees_every_image_once_in_order(annotations: Annotations) -> None:
    dataset = DetectionDataset(annotations, EvalTransform(short_side=96, max_side=200))
    loader = eval_loader(dataset, batch_size=4, num_workers=1)
    for _ in range(2):  # it can be gone through again
        batches = list(loader)
        assert [len(images) for images, _ in batches] == [4, 4, 4, 4, 4, 1]
        assert [i for images, _ in batches for i in images.ids] == annotations.image_ids.tolist()
    assert_same(batches, list(eval_loader(dataset, batch_size=4)))

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from backbones import InputSpec, resnet18, save_weights, vgg16
from detres.benchmarks.annotations import write_annotations
from detres.config import ConfigError, check
from detres.detection.annotations import Annotations
from detres.detection.build import (
    build_detector,
    build_train_set,
    build_val_set,
    eval_loader,
    train_loader,
)
from detres.detection.config import ModelConfig
from detres.detection.data.batch import pad_images
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


@pytest.mark.parametrize(("classes", "sizes", "parameters"), [
    (20, [128, 256, 512], 137_078_239),
    (80, [64, 128, 256, 512], 138_316_573),
])  # fmt: skip
def test_parameters_of_vgg16_as_counted_for_the_paper(classes, sizes, parameters):
    tree = {"backbone": {"name": "vgg16", "freeze_at": 0}, "anchors": {"sizes": sizes},
            "roi": {"pool_size": 7}}  # fmt: skip
    with torch.device("meta"):
        detector = build_detector(check(ModelConfig, tree, "test"), classes)
    never_used = 4 * (4096 + 1)  # py-faster-rcnn predicts a box for the background too
    assert sum(p.numel() for p in detector.parameters()) == parameters - never_used


@pytest.mark.parametrize("name", ["resnet20", "plain56"])
def test_a_backbone_without_a_map_at_stride_16(name):
    with pytest.raises(ConfigError, match=rf"{name} gives no map at stride 16.*; expected one of "):
        check(ModelConfig, {"backbone": {"name": name, **RANDOM}}, "test")


VGG = {"name": "vgg16", "fc_width": 24, "freeze_at": 0}
OF_VGG = {**TINY, "backbone": VGG, "roi": {**TINY["roi"], "pool": "roi_pool", "pool_size": 7}}


def test_a_vgg_shares_conv5_and_reads_regions_with_fc6_and_fc7():
    tree = {**OF_VGG, "roi": {**OF_VGG["roi"], "dropout": 0.25}}
    detector = build_detector(check(ModelConfig, tree, "test"), 3)
    head = detector.roi_head
    assert detector.stages == ("conv5",)
    assert detector.rpn.head.conv.in_channels == 512
    assert (head.pooler.strides, head.pooler.output_size) == ({"conv5": 16}, 7)
    assert [type(layer).__name__ for layer in head.box_head.layers] == [
        "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout"]  # fmt: skip
    assert [layer.p for layer in head.box_head.layers if isinstance(layer, nn.Dropout)] == [
        0.25
    ] * 2
    assert head.predictor.cls_score.in_features == head.box_head.out_channels == 24
    assert not [name for name in detector.backbone.state_dict() if name.startswith("classifier")]


def test_conv1_and_conv2_of_a_vgg_stay_as_pretrained(tmp_path):
    net = vgg16(fc_width=24, num_classes=3)
    net.input_spec = InputSpec()
    save_weights(net, tmp_path / "w.safetensors")
    backbone = {**VGG, "freeze_at": 2, "weights": str(tmp_path / "w.safetensors")}
    detector = build_detector(check(ModelConfig, {**OF_VGG, "backbone": backbone}, "test"), 3)
    fixed = {name for name, p in detector.named_parameters() if not p.requires_grad}
    assert fixed == {
        f"backbone.features.{n}.{what}" for n in (0, 2, 5, 7) for what in ("weight", "bias")
    }
    assert torch.equal(detector.roi_head.box_head.layers[0].weight, net.fc6.weight)
    assert torch.equal(detector.roi_head.box_head.layers[3].weight, net.fc7.weight)


def test_fc6_and_fc7_that_a_file_lacks_start_at_random_and_are_named(tmp_path):
    state = {name: t for name, t in vgg16(fc_width=24).state_dict().items() if "features" in name}
    torch.save(state, tmp_path / "convolutions.pth")
    backbone = {**VGG, "weights": str(tmp_path / "convolutions.pth")}
    detector = build_detector(check(ModelConfig, {**OF_VGG, "backbone": backbone}, "test"), 3)
    assert torch.equal(detector.backbone.features[0].weight, state["features.0.weight"])
    assert "not in the file; stays as initialised" in str(detector.backbone.load_report)
    wider = {**backbone, "fc_width": 32}
    torch.save(vgg16(fc_width=24).state_dict(), tmp_path / "convolutions.pth")
    detector = build_detector(check(ModelConfig, {**OF_VGG, "backbone": wider}, "test"), 3)
    report = str(detector.backbone.load_report)
    assert "(24, 25088) in the file, (32, 25088) in the network; stays as initialised" in report


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"roi": {"pool_size": 14}}, "fc6 of vgg16 reads a grid of 7x7: give 7"),
        ({"backbone": {"name": "vgg16", "freeze_at": 2}}, "cannot be frozen"),
        ({"backbone": {**VGG, "norm": "frozen"}}, "cannot be frozen"),
    ],
)
def test_settings_that_a_vgg_cannot_have(change, words):
    with pytest.raises(ConfigError, match=words):
        check(ModelConfig, {**OF_VGG, **change}, "test")


@pytest.mark.parametrize(
    "given", [{"norm": "batch"}, {"stride_placement": "original"}, {"width": 0.5}]
)
def test_what_a_vgg_does_not_have_is_refused(given):
    model = check(ModelConfig, {**OF_VGG, "backbone": {**VGG, **given}}, "test")
    with pytest.raises(ValueError, match=f"vgg16 has no {next(iter(given))}"):
        build_detector(model, 2)


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_a_vgg_detector_learns_and_predicts_images_below_a_cell(name):
    norm = {"norm": "batch"} if name == "vgg16_bn" else {}
    tree = {**OF_VGG, "backbone": {**VGG, "name": name, **norm}}
    detector = build_detector(check(ModelConfig, tree, "test"), 2)
    images = pad_images(
        [np.zeros((9, 80, 3), np.uint8), np.full((64, 48, 3), 90, np.uint8)],
        original_sizes=[(9, 80), (64, 48)],
        ids=[1, 2],
    )
    flags = torch.zeros(1, dtype=torch.bool)
    targets = [
        Target(n, torch.tensor([[2.0, 1.0, 40.0, 9.0]]), torch.tensor([1]), flags, flags)
        for n in (1, 2)
    ]
    losses = detector(images, targets)
    losses.total().backward()
    assert all(term.isfinite() for term in losses.terms().values())
    assert detector.roi_head.box_head.layers[0].weight.grad.abs().sum() > 0
    with torch.no_grad():
        assert len(detector.eval()(images)) == 2


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


class Blank(DetectionDataset):
    """Images that cost nothing to read."""

    def _read(self, index: int) -> np.ndarray:
        assert self.annotations.image_files[index]
        return np.zeros((16, 16, 3), np.uint8)


def memory_of_all() -> int:
    """Bytes of this process and its workers, what several of them share counted once; without the
    files that are mapped (libraries), whose pages the system takes and brings back as it likes.
    """
    pids = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    assert len(pids) == 3
    texts = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in pids]
    return 1024 * sum(
        int(re.search(rf"^{kind}: +([0-9]+) kB", text, re.MULTILINE)[1])
        for text in texts
        for kind in ("Pss_Anon", "Pss_Shmem")
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="shared memory is told by /proc")
def test_workers_share_the_annotations_of_120_000_images_for_2_000_batches(tmp_path):
    """Python objects would be copied page by page, as workers count the references to them."""
    path = tmp_path / "instances.json"
    write_annotations(path, num_images=120_000, num_boxes=860_000)
    dataset = Blank(read_coco(path, None), EvalTransform(short_side=16, max_side=16))
    loader = train_loader(dataset, batch_size=16, steps=2000, seed=0, num_workers=2)
    found = [memory_of_all() for step, _ in enumerate(loader) if step % 100 == 50]
    assert len(found) == 20
    assert max(found) - found[0] < 30e6


@pytest.mark.parametrize(
    ("data", "scale"), [({}, 1), ({"reduced_decode": True}, 2), ({"cache_gib": 0.001}, 1)]
)
def test_how_training_images_are_read_reaches_the_set(tmp_path, data, scale):
    write_coco(tmp_path, [(150, 180)], [box(1)])
    (file,) = (tmp_path / "images").iterdir()
    pixels = np.random.default_rng(0).integers(0, 256, (150, 180, 3), np.uint8)
    Image.fromarray(pixels).save(file, format="JPEG")
    config = coco_config(tmp_path, data=data)
    train = build_train_set(config)
    for _ in range(2):
        assert train._read(0).scale == scale  # to 64 px
        assert train[0, 0].original_size == (150, 180)
        assert train[0, 0].image.shape == (64, 77, 3)
    assert (train.cache is not None) == ("cache_gib" in data)
    assert train.cache is None or len(train.cache) == 1
    val = build_val_set(config.model, read_split(config.data, "val"))
    assert (val.needed, val.cache) == (None, None)


def test_a_cache_that_workers_would_not_share_is_refused(tmp_path, monkeypatch):
    write_coco(tmp_path, [(50, 60)], [box(1)])
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    with pytest.raises(ValueError, match=r"^data.cache_gib: the workers would not share it"):
        build_train_set(coco_config(tmp_path, data={"cache_gib": 0.5, "workers": 2}))
    alone = build_train_set(coco_config(tmp_path, data={"cache_gib": 0.5, "workers": 0}))
    assert alone.cache.budget == 2**29

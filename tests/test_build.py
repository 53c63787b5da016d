from __future__ import annotations

import json
import re

import pytest
import torch

from backbones import InputSpec, resnet18, save_weights
from detres.build import (
    build_detector,
    build_optimizer,
    build_schedule,
    build_train_set,
    load_detector,
    read_split,
    save_detector,
    with_data_root,
)
from detres.config import Config, DataConfig, ModelConfig, TrainConfig, check
from detres.engine.progress import Progress
from detres.structures import ClassMap
from tests.helpers import CLASSES, make_batch, write_coco

RANDOM = {"norm": "batch", "freeze_at": 0}
TINY = {
    "backbone": {"name": "resnet18", **RANDOM},
    "input": {"shorter": 64, "longer": 96},
    "anchors": {"sizes": [16, 32], "aspect_ratios": [1.0], "style": "detectron2"},
    "rpn": {"width": 16, "nms_thresh": 0.6, "min_size": 2, "test_post_nms_top_n": 20},
    "roi": {
        "pool": "roi_align",
        "pool_size": 4,
        "batch_size": 16,
        "score_thresh": 0.05,
        "detections_per_image": 7,
    },
}


def coco_config(root, *, model=TINY, data=None) -> Config:
    files = {
        "train": ["annotations.json"],
        "train_images": ["images"],
        "val": ["annotations.json"],
        "val_images": ["images"],
    }
    tree = {
        "name": "t",
        "data": {"format": "coco", "root": str(root), **files, **(data or {})},
        "model": model,
        "train": {"steps": 4},
    }
    return check(Config, tree, "test")


def box(image_id, category_id=3, xywh=(4, 4, 30, 30), **more):
    return {
        "id": image_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": list(xywh),
        "area": 900.0,
        "iscrowd": 0,
        **more,
    }


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


def test_shapes_are_not_drawn_into_a_folder_of_other_files(tmp_path):
    shapes = DataConfig(format="shapes")
    assert with_data_root(shapes, tmp_path / "new").root == str(tmp_path / "new")
    (tmp_path / "JPEGImages").mkdir()
    with pytest.raises(
        ValueError,
        match=r"holds other files, .* leave --data out, or name a configuration of your data with "
        r"--cfg",
    ):
        with_data_root(shapes, tmp_path)
    (tmp_path / "shapes-v3-8-4-0").mkdir()
    assert with_data_root(shapes, tmp_path).root == str(tmp_path)


def test_settings_arrive_in_the_parts():
    detector = build_detector(check(ModelConfig, TINY, "test"), 3)
    assert (detector.shorter, detector.longer) == (64, 96)
    assert (detector.rpn.nms_thresh, detector.rpn.min_size, detector.rpn.test_counts.post_nms) == (
        0.6,
        2.0,
        20,
    )
    assert (
        detector.roi_head.score_thresh,
        detector.roi_head.detections_per_image,
        detector.roi_head.pooler.output_size,
    ) == (0.05, 7, 4)
    assert detector.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last)


def test_the_root_is_the_flag_then_the_config_then_the_environment(tmp_path, monkeypatch):
    for name in ("flag", "config", "environment"):
        (tmp_path / name).mkdir()
    data = coco_config(tmp_path).data
    monkeypatch.setenv("DETRES_DATA", str(tmp_path / "environment"))
    inside = data.model_copy(update={"root": str(tmp_path / "config")})
    bare = data.model_copy(update={"root": None})
    assert with_data_root(inside, tmp_path / "flag").root == str(tmp_path / "flag")
    assert with_data_root(inside, None).root == str(tmp_path / "config")
    assert with_data_root(bare, None).root == str(tmp_path / "environment")
    monkeypatch.delenv("DETRES_DATA")
    with pytest.raises(ValueError, match="--data FOLDER"):
        with_data_root(bare, None)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        with_data_root(bare, tmp_path / "nowhere")


def test_training_drops_bad_boxes_and_scoring_keeps_them(tmp_path):
    write_coco(tmp_path, [(50, 60)], [box(1), {**box(1, xywh=(5, 5, 0, 9)), "id": 2}])
    data = coco_config(tmp_path).data
    assert len(read_split(data, "train").boxes) == 1
    assert len(read_split(data, "val").boxes) == 2


def test_a_set_without_an_object_is_refused_with_what_was_left_out(tmp_path):
    write_coco(tmp_path, [(50, 60), (50, 60)], [box(1, xywh=(5, 5, 0, 9)), box(2, iscrowd=1)])
    with pytest.raises(ValueError, match=r"2 images but no object to learn from. Left out: 1 "):
        build_train_set(coco_config(tmp_path))


def test_optimizer_and_schedule_follow_the_settings():
    model = torch.nn.Linear(2, 2)
    tree = {
        "epochs": 2,
        "batch_size": 5,
        "lr": 0.1,
        "reference_batch": 10,
        "milestones": [1],
        "warmup_steps": 0,
    }
    settings = check(TrainConfig, tree, "test")
    schedule = build_schedule(settings, num_images=20)
    assert (schedule.steps, schedule.milestones) == (8, (4,))
    assert [schedule.at(Progress(3)), schedule.at(Progress(4))] == pytest.approx([0.05, 0.005])
    assert isinstance(build_optimizer(settings, model), torch.optim.SGD)
    assert isinstance(
        build_optimizer(settings.model_copy(update={"optimizer": "adamw"}), model),
        torch.optim.AdamW,
    )


@pytest.fixture
def saved(tmp_path):
    config = coco_config(tmp_path)
    torch.manual_seed(5)
    detector = build_detector(config.model, len(CLASSES)).eval()
    torch.nn.init.normal_(detector.roi_head.predictor.cls_score.weight, std=0.5)
    path = tmp_path / "best.safetensors"
    save_detector(path, detector, config, CLASSES, 12)
    return path, detector, config


def test_a_weights_file_alone_rebuilds_the_detector(saved):
    path, detector, config = saved
    again, loaded, class_map = load_detector(path)
    assert class_map == CLASSES
    assert (loaded.model, loaded.data, loaded.eval) == (config.model, config.data, config.eval)
    images = make_batch([(64, 80), (60, 64)], seed=1)
    with torch.inference_mode():
        pairs = list(zip(detector(images), again(images), strict=True))
    assert sum(len(mine) for mine, _ in pairs) > 0
    for mine, other in pairs:
        torch.testing.assert_close(mine.boxes, other.boxes, rtol=0, atol=0)
        torch.testing.assert_close(mine.scores, other.scores, rtol=0, atol=0)
        assert mine.labels.tolist() == other.labels.tolist()


def test_files_that_are_no_detector_are_refused_by_name(saved, tmp_path):
    path, detector, config = saved
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-1000])
    pickled = tmp_path / "pickled.pt"
    torch.save(detector.state_dict(), pickled)
    text = tmp_path / "text.safetensors"
    text.write_text(json.dumps({"a": 1}))
    other = tmp_path / "other.safetensors"
    wider = check(ModelConfig, {**TINY, "rpn": {"width": 32}}, "test")
    save_detector(other, build_detector(wider, len(CLASSES)), config, CLASSES, 1)
    more = tmp_path / "more.safetensors"
    save_detector(more, detector, config, ClassMap(names=("a", "b"), source_ids=(1, 2)), 1)
    for file in (cut, pickled, text, other, more):
        with pytest.raises(ValueError, match=file.name):
            load_detector(file)
    with pytest.raises(ValueError, match="absent"):
        load_detector(tmp_path / "absent.safetensors")

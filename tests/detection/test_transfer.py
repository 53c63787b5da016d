"""What moves from a trained detector into one for other classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detres.class_map import ClassMap
from detres.config import check
from detres.detection.build import build_detector
from detres.detection.config import DetectionConfig, ModelConfig
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.detection.transfer import require_agreement, same_classes, start_from
from detres.detection.weights_file import save_detector
from detres.files import CheckpointError
from tests.detection.configs import PYRAMID, TINY

COCO = ("person", "airplane", "tv", "couch")


def model_config(**sections: dict) -> ModelConfig:
    tree = {**TINY, **{name: {**TINY[name], **given} for name, given in sections.items()}}
    return check(ModelConfig, tree, "test")


def trained_on(path: Path, names: tuple[str, ...], config: ModelConfig) -> tuple[Path, FasterRCNN]:
    detector = build_detector(config, len(names))
    with torch.no_grad():
        for tensor in detector.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    tree = {"name": "t", "data": {"format": "shapes"}, "model": config, "train": {"steps": 1}}
    whole = check(DetectionConfig, {**tree, "model": config.model_dump(mode="json")}, "test")
    save_detector(path, detector, whole, ClassMap.of_names(names), 1)
    return path, detector


def started(
    config: ModelConfig, names: tuple[str, ...], path: Path
) -> tuple[FasterRCNN, dict[str, torch.Tensor], str]:
    detector = build_detector(config, len(names))
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    report = start_from(detector, config, ClassMap.of_names(names), path, print)
    return detector, before, report


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_rows_of_classes_with_the_same_name_move_and_others_start_fresh(tmp_path, class_agnostic):
    config = model_config(roi={"class_agnostic": class_agnostic})
    path, old = trained_on(tmp_path / "w.safetensors", COCO, config)
    names = ("sofa", "zebra", "Aeroplane", "person")
    detector, before, report = started(config, names, path)
    new, head = detector.state_dict(), "roi_head.predictor."
    there = old.state_dict()
    # background, sofa (couch), zebra, Aeroplane (airplane), person
    for kind in ("weight", "bias"):
        rows = new[f"{head}cls_score.{kind}"]
        of = there[f"{head}cls_score.{kind}"]
        fresh = before[f"{head}cls_score.{kind}"]
        assert torch.equal(rows, torch.stack((of[0], of[4], fresh[2], of[2], of[1])))
        boxes, of = new[f"{head}bbox_pred.{kind}"], there[f"{head}bbox_pred.{kind}"]
        fresh = before[f"{head}bbox_pred.{kind}"]
        if class_agnostic:
            assert torch.equal(boxes, of)
        else:
            assert torch.equal(boxes, torch.cat((of[12:16], fresh[4:8], of[4:8], of[:4])))
    for name, tensor in new.items():
        if not name.startswith(head):
            assert torch.equal(tensor, there[name]), name
    assert report == (
        f"{path}: 3 of 4 classes by name of its 4: sofa (couch), Aeroplane (airplane), person; "
        "fresh: zebra"
    )


def test_a_pyramid_moves_with_the_rows_of_its_aspect_ratios(tmp_path):
    config = check(ModelConfig, PYRAMID, "test")
    path, old = trained_on(tmp_path / "w.safetensors", COCO, config)
    anchors = {"sizes": [16, 32, 64, 128, 256], "aspect_ratios": [1.0, 3.0, 2.0]}
    other = check(ModelConfig, {**PYRAMID, "anchors": {**anchors, "style": "torchvision"}}, "test")
    detector, before, report = started(other, ("tv", "zebra"), path)
    new, there = detector.state_dict(), old.state_dict()
    assert report.endswith(
        "1 of 2 classes by name of its 4: tv; fresh: zebra; 2 of 3 anchors, the others fresh"
    )
    rows, fresh = there["rpn.head.objectness.bias"], before["rpn.head.objectness.bias"]
    assert torch.equal(new["rpn.head.objectness.bias"], torch.stack((rows[1], fresh[1], rows[2])))
    moved = [name for name in new if name.startswith(("fpn.", "roi_head.box_head.", "backbone."))]
    assert len(moved) > 20
    assert all(torch.equal(new[name], there[name]) for name in moved)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"fpn": {"width": 4}}, "model.fpn.width=8"),
        ({"roi": {**TINY["roi"], "fc_width": 99}}, "model.roi.fc_width=24"),
        ({"layout": "c4"}, "model.layout=fpn"),
    ],
)
def test_a_pyramid_of_another_shape_is_refused(tmp_path, change, words):
    theirs = check(ModelConfig, PYRAMID, "test")
    mine = check(ModelConfig, {**PYRAMID, **change}, "test")
    with pytest.raises(CheckpointError, match=words):
        require_agreement(mine, theirs, tmp_path)


@pytest.mark.parametrize("objectness", ["sigmoid", "softmax"])
def test_anchors_that_the_file_lacks_start_fresh(tmp_path, objectness):
    many = model_config(rpn={"objectness": objectness}, anchors={"sizes": [8, 16, 32]})
    few = model_config(rpn={"objectness": objectness}, anchors={"sizes": [16, 64, 8]})
    path, old = trained_on(tmp_path / "w.safetensors", COCO, many)
    detector, before, report = started(few, COCO, path)
    assert report.endswith("2 of 3 anchors, the others fresh")
    new, there = detector.state_dict(), old.state_dict()
    # anchor 0 (16 px) is their 1, anchor 2 (8 px) their 0
    of, fresh = there["rpn.head.objectness.weight"], before["rpn.head.objectness.weight"]
    expected = [of[1], fresh[1], of[0]]
    if objectness == "softmax":
        expected += [of[4], fresh[4], of[3]]
    assert torch.equal(new["rpn.head.objectness.weight"], torch.stack(expected))
    of, fresh = there["rpn.head.deltas.bias"], before["rpn.head.deltas.bias"]
    assert torch.equal(new["rpn.head.deltas.bias"], torch.cat((of[4:8], fresh[4:8], of[:4])))


def test_the_same_classes_move_whole(tmp_path):
    config = model_config()
    path, old = trained_on(tmp_path / "w.safetensors", COCO, config)
    detector, _, report = started(config, COCO, path)
    for name, tensor in old.state_dict().items():
        assert torch.equal(detector.state_dict()[name], tensor), name
    assert report.endswith(
        "4 of 4 classes by name of its 4: person, airplane, tv, couch; fresh: none"
    )


def test_a_frozen_norm_takes_over_one_that_counted(tmp_path):
    config = model_config()
    path, old = trained_on(tmp_path / "w.safetensors", COCO, config)
    backbone = {"norm": "frozen", "freeze_at": 2, "weights": "never-read.pth"}
    frozen = model_config(backbone=backbone)
    detector = build_detector(frozen, 4, pretrained=False)
    start_from(detector, frozen, ClassMap.of_names(COCO), path, print)
    assert torch.equal(detector.backbone.bn1.running_mean, old.backbone.bn1.running_mean)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"backbone": {"name": "resnet34"}}, "model.backbone.name=resnet18"),
        ({"backbone": {"stride_placement": "torchvision"}},
         "model.backbone.stride_placement=original"),
        ({"backbone": {"width": 0.5}}, "model.backbone.width=null"),
        ({"backbone": {"pool1": "caffe"}}, "model.backbone.pool1=null"),
        ({"input": {"channel_order": "bgr"}}, "model.input.channel_order=rgb"),
        ({"input": {"mean": [0, 0, 0]}}, r"model.input.mean=\[123.675, 116.28, 103.53\]"),
        ({"rpn": {"objectness": "sigmoid", "width": 8}},
         "model.rpn.width=16, model.rpn.objectness=softmax"),
        ({"roi": {"box_weights": [1, 1, 1, 1]}}, r"model.roi.box_weights=\[10.0, 10.0, 5.0, 5.0\]"),
        ({"roi": {"context": True}}, "model.roi.context=false"),
        ({"roi": {"class_agnostic": True}}, "model.roi.class_agnostic=false"),
    ],
)  # fmt: skip
def test_a_detector_whose_weights_mean_something_else_is_refused(tmp_path, change, words):
    path, _ = trained_on(tmp_path / "w.safetensors", COCO, model_config())
    config = model_config(**change)
    detector = build_detector(config, 4)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    with pytest.raises(CheckpointError, match=rf"w\.safetensors holds .* with {words}$"):
        start_from(detector, config, ClassMap.of_names(COCO), path, print)
    for name, tensor in detector.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("backbone", "written_out"),
    [
        ({"name": "resnet18"}, {"width": 1.0, "pool1": "torch", "shortcut": "B"}),
        ({"name": "vgg16", "norm": None}, {"fc_width": 4096}),
    ],
)
def test_a_default_that_is_written_out_is_the_same(backbone, written_out):
    plain, other = (
        model_config(backbone={**backbone, **more}, roi={"pool_size": 7})
        for more in ({}, written_out)
    )
    require_agreement(plain, other, Path("w"))
    require_agreement(other, plain, Path("w"))


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        (("cat", "dog"), ("dog", "cow"), {1: 0}),
        (("tvmonitor", "TV"), ("tv", "x"), {1: 0}),  # TV is the nearer one
        (("tv", "TV"), ("TV", "Tv"), {1: 0, 0: 1}),
        (("Cat", "CAT"), ("cat",), {}),  # which of the two?
        (("dining_table", "potted-plant"), ("diningtable", "pottedplant"), {0: 0, 1: 1}),
        (("motorcycle", "aeroplane"), ("airplane", "motorbike"), {0: 1, 1: 0}),
        ((), ("a",), {}),
        (("a",), (), {}),
    ],
)
def test_classes_of_the_same_name(mine, theirs, expected):
    assert same_classes(mine, theirs) == expected


DIFFERENT = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
"""Classes that PASCAL VOC and COCO name differently."""


def test_every_class_of_pascal_voc_is_one_of_coco():
    others = "bicycle bird boat bottle bus car cat chair cow dog horse person sheep train"
    voc = [*others.split(), *DIFFERENT]
    coco = ["traffic light", *DIFFERENT.values(), "toilet", *reversed(others.split()), "bed"]
    pairs = same_classes(voc, coco)
    assert len(pairs) == 20
    assert {voc[k]: coco[n] for k, n in pairs.items() if voc[k] != coco[n]} == DIFFERENT

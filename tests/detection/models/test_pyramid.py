"""The detector on a feature pyramid as a whole: what it is made of, padding, training, its file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detres.class_map import ClassMap
from detres.config import ConfigError, check
from detres.detection.build import build_detector
from detres.detection.config import DetectionConfig, ModelConfig
from detres.detection.models.box_head import ConvFcBoxHead
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.detection.structures import ImageBatch, Target
from detres.detection.weights_file import load_detector, save_detector
from tests.detection.configs import PYRAMID

SECOND = {
    **PYRAMID,
    "fpn": {**PYRAMID["fpn"], "norm": "batch"},
    "rpn": {**PYRAMID["rpn"], "num_convs": 2},
    "roi": {**PYRAMID["roi"], "num_convs": 2, "num_fc": 1},
}


def built(tree: dict, seed: int = 0) -> FasterRCNN:
    torch.manual_seed(seed)
    detector = build_detector(check(ModelConfig, tree, "test"), 3)
    with torch.no_grad():  # so that scores and boxes are lively
        detector.rpn.head.objectness.weight.mul_(30)
        detector.roi_head.predictor.cls_score.weight.mul_(60)
    return detector.eval()


def batch_of(images: list[torch.Tensor]) -> ImageBatch:
    sizes = tuple(tuple(image.shape[1:]) for image in images)
    height, width = (max(32, *(size[axis] for size in sizes)) for axis in (0, 1))
    pixels = torch.zeros((len(images), 3, height, width), dtype=torch.uint8)
    for row, image, (h, w) in zip(pixels, images, sizes, strict=True):
        row[:, :h, :w] = image
    return ImageBatch(pixels, sizes, sizes, ids=tuple(range(len(images))))


def photographs(*sizes: tuple[int, int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    coarse = [torch.rand((1, 3, 6, 6), generator=generator) * 255 for _ in sizes]
    return [
        torch.nn.functional.interpolate(each, size, mode="bilinear")[0].to(torch.uint8)
        for each, size in zip(coarse, sizes, strict=True)
    ]


def target_of(image_id: int, *boxes: list[float]) -> Target:
    num = len(boxes)
    flags = torch.zeros(num, dtype=torch.bool)
    labels = torch.arange(num) % 3 + 1
    return Target(
        image_id, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels, flags, flags
    )


def test_what_it_is_made_of() -> None:
    detector = built(PYRAMID)
    assert detector.stages == ("conv2", "conv3", "conv4", "conv5")
    assert detector.fpn.levels == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    assert list(detector.rpn.anchors) == list(detector.fpn.levels)
    sides = [anchors.cell[1, 2].item() * 2 for anchors in detector.rpn.anchors.values()]
    assert sides == [8, 16, 32, 64, 128]
    assert [anchors.stride for anchors in detector.rpn.anchors.values()] == [4, 8, 16, 32, 64]
    assert detector.roi_head.pooler.strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
    assert detector.roi_head.pooler.canonical_side == 64
    fc = detector.roi_head.box_head.layers
    assert [fc[0].in_features, fc[0].out_features, fc[2].in_features] == [8 * 16, 24, 24]
    second = built(SECOND)
    assert isinstance(second.roi_head.box_head, ConvFcBoxHead)
    assert len(second.roi_head.box_head.convs) == 2
    assert len(second.roi_head.box_head.fc.layers) == 2
    assert len(second.rpn.head.more_convs) == 1
    assert second.fpn.lateral["conv2"].norm is not None


@pytest.mark.parametrize("tree", [PYRAMID, SECOND], ids=["first", "second"])
@pytest.mark.parametrize("multiple_of", [None, 32])
def test_an_image_is_detected_in_a_padded_batch_as_it_is_alone(tree, multiple_of) -> None:
    tree = {**tree, "input": {**tree["input"], "multiple_of": multiple_of}}
    detector = built(tree)
    images = photographs((64, 90), (50, 40), (96, 70))
    with torch.no_grad():
        together = detector(batch_of(images))
        for image, found in zip(images, together, strict=True):
            (alone,) = detector(batch_of([image]))
            assert len(found) == len(alone) > 0
            torch.testing.assert_close(found.boxes, alone.boxes, rtol=0, atol=1e-2)
            torch.testing.assert_close(found.scores, alone.scores, rtol=0, atol=1e-4)


def test_sides_are_lengthened_with_zeros_that_count_as_image() -> None:
    """As if zeros, normalised, had been put beside the image; boxes end where the image does."""
    tree = {**PYRAMID, "input": {**PYRAMID["input"], "multiple_of": 32}}
    detector = built(tree)
    (image,) = photographs((50, 70))
    maps = detector.features(batch_of([image]))
    normal = detector.normalizer(image[None])
    padded = torch.nn.functional.pad(normal, (0, 26, 0, 14))
    stages = detector.backbone.feature_maps(padded, stages=detector.stages)
    assert [tuple(each.values.shape[2:]) for each in maps.values()][:3] == [
        (16, 24),
        (8, 12),
        (4, 6),
    ]
    assert maps["p2"].sizes == ((16, 24),)
    lateral = detector.fpn.lateral["conv5"](stages["conv5"], None)
    wanted = detector.fpn.output["conv5"](lateral, None)
    torch.testing.assert_close(maps["p5"].values, wanted, rtol=0, atol=1e-5)
    with torch.no_grad():
        (found,) = detector(batch_of([image]))
    assert found.boxes[:, 2].max() <= 70
    assert found.boxes[:, 3].max() <= 50


@pytest.mark.parametrize("tree", [PYRAMID, SECOND], ids=["first", "second"])
def test_every_part_learns(tree: dict) -> None:
    detector = built(tree).train()
    images = photographs((64, 90), (50, 40))
    targets = [target_of(0, [4, 4, 40, 50], [50, 10, 60, 20]), target_of(1)]
    losses = detector(batch_of(images), targets)
    assert set(losses.terms()) == {"loss_rpn_cls", "loss_rpn_box", "loss_roi_cls", "loss_roi_box"}
    losses.total().backward()
    without = [name for name, each in detector.named_parameters() if each.grad is None]
    assert without == []
    assert all(torch.isfinite(each.grad).all() for each in detector.parameters())
    assert all(layer.conv.weight.grad.abs().max() > 0 for layer in detector.fpn.lateral.values())


def test_its_file_is_enough(tmp_path: Path) -> None:
    tree = {"name": "t", "data": {"format": "shapes"}, "model": SECOND, "train": {"steps": 1}}
    config = check(DetectionConfig, tree, "test")
    detector, names = built(SECOND), ClassMap.of_names(["a", "b", "c"])
    save_detector(tmp_path / "w.safetensors", detector, config, names, 1)
    loaded, again, _ = load_detector(tmp_path / "w.safetensors")
    assert again.model == config.model
    images = batch_of(photographs((64, 90)))
    with torch.no_grad():
        (found,), (wanted,) = loaded.eval()(images), detector(images)
    assert torch.equal(found.boxes, wanted.boxes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": {"name": "vgg16", "freeze_at": 0}}, "is built on a ResNet"),
        ({"anchors": {"sizes": [32, 64], "style": "detectron2"}}, "give 5 anchors.sizes, there"),
        ({"layout": "dc5"}, "layout"),
        ({"fpn": {"norm": "group"}}, "norm"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(ModelConfig, {**PYRAMID, **change}, "test")

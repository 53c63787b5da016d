"""The feature pyramid detectors of torchvision, v1 and v2, and ours with the same random weights:
the same detections.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import detection

from detres.config import check
from detres.detection.build import build_detector
from detres.detection.config import ModelConfig
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.detection.structures import ImageBatch, Target

K = 20

SETTINGS = {
    "layout": "fpn",
    "backbone": {
        "name": "resnet50",
        "weights": "none",
        "stride_placement": "torchvision",
        "freeze_at": 0,
    },
    "input": {"short_side": 800, "max_side": 1333, "multiple_of": 32, "resize": "torchvision"},
    "anchors": {
        "sizes": [32, 64, 128, 256, 512],
        "aspect_ratios": [0.5, 1, 2],
        "style": "torchvision",
    },
    "rpn": {
        "width": 256,
        "objectness": "sigmoid",
        "min_size": 0,
        "test_pre_nms_top_n": 1000,
        "test_post_nms_top_n": 1000,
    },
    "roi": {"pool": "roi_align", "pool_size": 7, "nms_thresh": 0.5},
}
V2 = {
    "backbone": {**SETTINGS["backbone"], "norm": "batch"},
    "fpn": {"norm": "batch"},
    "rpn": {**SETTINGS["rpn"], "num_convs": 2},
    "roi": {**SETTINGS["roi"], "num_convs": 4, "num_fc": 1},
}
MODELS = {
    "v1": (detection.fasterrcnn_resnet50_fpn, SETTINGS),
    "v2": (detection.fasterrcnn_resnet50_fpn_v2, {**SETTINGS, **V2}),
}

RENAMED = (
    (r"backbone\.body\.", "backbone."),
    (r"backbone\.fpn\.inner_blocks\.", "fpn.lateral."),
    (r"backbone\.fpn\.layer_blocks\.", "fpn.output."),
    (r"(fpn\.\w+)\.(\d)\.0\.", lambda m: f"{m[1]}.conv{int(m[2]) + 2}.conv."),
    (r"(fpn\.\w+)\.(\d)\.1\.", lambda m: f"{m[1]}.conv{int(m[2]) + 2}.norm."),
    (r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv."),
    (r"rpn\.head\.conv\.1\.0\.", "rpn.head.more_convs.0."),
    (r"rpn\.head\.cls_logits\.", "rpn.head.objectness."),
    (r"rpn\.head\.bbox_pred\.", "rpn.head.deltas."),
    (r"roi_heads\.box_head\.fc6\.", "roi_head.box_head.layers.0."),
    (r"roi_heads\.box_head\.fc7\.", "roi_head.box_head.layers.2."),
    (r"roi_heads\.box_head\.(\d)\.0\.", r"roi_head.box_head.convs.\1."),
    (r"roi_heads\.box_head\.(\d)\.1\.", r"roi_head.box_head.norms.\1."),
    (r"roi_heads\.box_head\.5\.", "roi_head.box_head.fc.layers.0."),
    (r"roi_heads\.box_predictor\.", "roi_head.predictor."),
)


def with_livelier_outputs(theirs: nn.Module, generator: torch.Generator) -> nn.Module:
    """Random weights whose outputs have the size of a trained detector's, and differ from place to
    place as much.
    """
    for module in theirs.modules():
        if type(module).__name__ in ("FrozenBatchNorm2d", "BatchNorm2d"):
            module.weight.data.uniform_(0.4, 0.6, generator=generator)
            for values in (module.bias.data, module.running_mean):
                values.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.8, 1.2, generator=generator)
    theirs.transform.min_size, theirs.transform.max_size = (192,), 256
    image = torch.rand((3, 192, 256), generator=generator)
    predictor, head = theirs.roi_heads.box_predictor, theirs.rpn.head
    for layer, spread in (
        (head.cls_logits, 2.0),
        (head.bbox_pred, 0.3),
        (predictor.cls_score, 1.0),
        (predictor.bbox_pred, 1.0),
    ):
        outputs = []
        hook = layer.register_forward_hook(lambda _m, _i, out, seen=outputs: seen.append(out))
        with torch.no_grad():
            theirs([image])
        hook.remove()
        by_channel = torch.cat([out.movedim(1, -1).flatten(0, -2) for out in outputs])
        layer.bias.data.sub_(by_channel.mean(dim=0))
        factor = spread / (by_channel - by_channel.mean(dim=0)).std()
        layer.weight.data.mul_(factor)
        layer.bias.data.mul_(factor)
    return theirs


def ours_from(theirs: nn.Module, settings: dict) -> FasterRCNN:
    detector = build_detector(check(ModelConfig, settings, "test"), K, pretrained=False)
    state = {}
    for name, tensor in theirs.state_dict().items():
        for pattern, new in RENAMED:
            name = re.sub(f"^{pattern}", new, name)
        background = 4 if "bbox_pred" in name and "predictor" in name else 0
        state[name] = tensor[background:] if background else tensor
    detector.load_state_dict(state)
    return detector.eval()


@pytest.mark.parametrize("version", ["v1", pytest.param("v2", marks=pytest.mark.slow)])
def test_same_detections_as_torchvisions_model(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an image whose sides are no multiples of 32, fed as the same tensor; in float64, for of v2
    float32's rounding decides what NMS keeps.
    """
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    make, settings = MODELS[version]
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    theirs = make(weights=None, weights_backbone=None, num_classes=K + 1).eval()
    theirs = with_livelier_outputs(theirs, generator)
    ours = ours_from(theirs, settings)
    height, width = 200, 270
    pixels = np.random.default_rng(2).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for row in range(0, height, 50):  # not noise alone
        pixels[row : row + 30, row : row + 60] //= 4
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    theirs.transform.min_size, theirs.transform.max_size = (height,), width
    theirs.transform.normalize = lambda pixels: pixels
    ours.double().normalizer.register_forward_hook(lambda _m, _i, pixels: pixels.double())
    with torch.no_grad():
        (wanted,) = theirs.double()(list(ours.normalizer(image[None])))
        (found,) = ours(ImageBatch(image[None], ((height, width),), ((height, width),), ids=(0,)))
    assert len(found) == len(wanted["boxes"]) > 20
    torch.testing.assert_close(found.scores, wanted["scores"], rtol=0, atol=1e-9)
    unmatched = list(range(len(found)))
    for box, label in zip(wanted["boxes"], wanted["labels"], strict=True):  # equal scores swap
        near = [
            row
            for row in unmatched
            if found.labels[row] == label and (found.boxes[row] - box).abs().max() < 1e-6
        ]
        assert near
        unmatched.remove(near[0])


def test_same_gradients_as_torchvisions_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """From pixels to losses and back to every weight, all anchors and regions learnt from; in
    float64, for in float32 rounding alone changes those of conv1 by 1e-4.
    """
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.manual_seed(0)
    theirs = detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=K + 1
    )
    theirs = with_livelier_outputs(theirs.eval(), torch.Generator().manual_seed(1))
    training = {"train_pre_nms_top_n": 2000, "train_post_nms_top_n": 2000, "train_anchors": "all"}
    rpn = {**SETTINGS["rpn"], **training, "batch_size": 10**6, "smooth_l1_beta": 1 / 9}
    roi = {
        **SETTINGS["roi"],
        "batch_size": 10**6,
        "positive_fraction": 0.5,
        "smooth_l1_beta": 1 / 9,
    }
    ours = ours_from(theirs, {**SETTINGS, "rpn": rpn, "roi": roi}).train()
    for sampler in (theirs.rpn.fg_bg_sampler, theirs.roi_heads.fg_bg_sampler):
        sampler.batch_size_per_image, sampler.positive_fraction = 10**6, 0.5
    theirs.train()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):  # frozen in ours, as in its trained models
            module.eval().requires_grad_(False)
    height, width = 96, 160
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (1, 3, height, width), generator=generator, dtype=torch.uint8)
    theirs.transform.min_size, theirs.transform.max_size = (height,), width
    ours, theirs = ours.double(), theirs.double()
    ours.normalizer.register_forward_hook(lambda _module, _inputs, out: out.double())
    normalized = ours.normalizer(pixels)[0]
    monkeypatch.setattr(theirs.transform, "normalize", lambda image: image)
    boxes = torch.tensor([[8.0, 10, 70, 60], [60, 20, 150, 90], [100, 5, 130, 30]])
    labels = torch.tensor([3, 7, 7])
    flags = torch.zeros(3, dtype=torch.bool)
    size = ((height, width),)
    losses = ours(
        ImageBatch(pixels, size, size, ids=(0,)), [Target(0, boxes, labels, flags, flags)]
    )
    wanted = theirs([normalized], [{"boxes": boxes.double(), "labels": labels}])
    names = {
        "loss_rpn_cls": "loss_objectness",
        "loss_rpn_box": "loss_rpn_box_reg",
        "loss_roi_cls": "loss_classifier",
        "loss_roi_box": "loss_box_reg",
    }
    for name, value in losses.terms().items():
        assert value > 1e-4
        assert float(value.detach()) == pytest.approx(float(wanted[names[name]].detach()), rel=1e-6)
    losses.total().backward()
    sum(wanted.values()).backward()
    own = dict(ours.named_parameters())
    compared = 0
    learning = [(name, each) for name, each in theirs.named_parameters() if each.requires_grad]
    for name, parameter in learning:
        for pattern, new in RENAMED:
            name = re.sub(f"^{pattern}", new, name)
        given = parameter.grad[4:] if "predictor.bbox_pred" in name else parameter.grad
        difference = (own[name].grad - given).abs().max() / given.abs().max()
        assert difference < 1e-5, (name, float(difference))
        compared += 1
    assert compared == sum(each.grad is not None for each in own.values()) > 70

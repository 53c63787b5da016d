"""A detector rewritten for inference and the detector itself on 160 photographs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from detres.config import check
from detres.detection.build import build_detector
from detres.detection.config import ModelConfig
from detres.detection.inference.detect import batch_of, detect_batch
from detres.detection.inference.fast import fast_copy
from detres.images.decode import read_image
from tests.detection.test_torchvision_photographs import compared

PHOTOGRAPHS = 160
CASES = ("c4, stride in the 1x1", "c4, stride in the 3x3", "roi_pool")


def lively(weights: str, name: str) -> nn.Module:
    """Real features of photographs, and heads that find things in them."""
    torch.manual_seed(0)
    tree = {
        "backbone": {"name": "resnet50", "width": 0.5, "weights": weights, "pool1": "caffe"},
        "input": {
            "short_side": 320,
            "max_side": 533,
            "channel_order": "bgr",
            "mean": [104.0, 117.0, 123.0],
            "std": [1.0, 1.0, 1.0],
        },
        "rpn": {"test_post_nms_top_n": 300},
        "roi": {"pool": "roi_pool" if name == "roi_pool" else "roi_align", "nms_thresh": 0.5},
    }
    model = build_detector(check(ModelConfig, tree, "test"), 20).eval()
    if name == "c4, stride in the 3x3":  # where the weights were not trained, but real numbers
        for stage in (*model.backbone.children(), model.roi_head.box_head.conv5):
            if isinstance(stage, nn.Sequential):
                first = stage[0]
                first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
    nn.init.normal_(model.rpn.head.objectness.weight, std=0.05)
    nn.init.normal_(model.roi_head.predictor.cls_score.weight, std=0.15)
    nn.init.normal_(model.roi_head.predictor.bbox_pred.weight, std=0.01)
    return model


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_same_detections(name, shared_data):
    """Boxes to 1e-2 px, scores to 1e-4, but where two boxes' overlap, or a score, is so near a
    threshold that rounding decides: one in 1,000.
    """
    weights = shared_data("resnet50_half") / "resnet50_half.safetensors"
    model = lively(str(weights), name)
    rewritten, device = fast_copy(model), torch.device("cpu")
    files = sorted(shared_data("coco_mini").rglob("*.jpg"))[:PHOTOGRAPHS]
    assert len(files) == PHOTOGRAPHS
    wanted = common = extra = 0
    for file in files:
        batch = batch_of([read_image(file)], [0], (320, 533))
        (plain,), (fast,) = (detect_batch(each, batch, device) for each in (model, rewritten))
        found = (fast.boxes, fast.scores, fast.labels)
        theirs = {"boxes": plain.boxes, "scores": plain.scores, "labels": plain.labels}
        seen = compared(found, theirs, 1e-2)
        assert seen.score <= 1e-4, file.name
        wanted, common, extra = wanted + seen.wanted, common + seen.common, extra + seen.extra
    print(f"{name}: {common} of {wanted} in common, {extra} more")
    assert wanted > 20 * PHOTOGRAPHS
    assert max(wanted - common, extra) <= wanted // 1000

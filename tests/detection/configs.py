"""A detector that builds in milliseconds and configurations of it, for the tests."""

from __future__ import annotations

from detres.config import check
from detres.detection.config import DetectionConfig

RANDOM = {"norm": "batch", "freeze_at": 0}
TINY = {
    "backbone": {"name": "resnet18", **RANDOM},
    "input": {"short_side": 64, "max_side": 96},
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

PYRAMID = {
    **TINY,
    "layout": "fpn",
    "fpn": {"width": 8, "canonical_side": 64},
    "rpn": {**TINY["rpn"], "objectness": "sigmoid"},
    "anchors": {
        "sizes": [8, 16, 32, 64, 128],
        "aspect_ratios": [0.5, 1.0, 2.0],
        "style": "detectron2",
    },
    "roi": {**TINY["roi"], "fc_width": 24},
}


def coco_config(root, *, model=TINY, data=None) -> DetectionConfig:
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
    return check(DetectionConfig, tree, "test")


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

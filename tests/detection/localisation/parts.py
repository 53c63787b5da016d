"""Localisers that build in milliseconds, and configurations of them, for the tests."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from detres.config import check
from detres.detection.localisation.config import LocalisationConfig
from tests.detection.models.test_class_rpn import TINY_MODEL


def config_of(root: Path, **more: object) -> LocalisationConfig:
    """A configuration of `photographs`; more: its sections, or settings of them."""
    tree = {
        "name": "t",
        "data": {
            "format": "coco",
            "root": str(root),
            "train": ["annotations.json"],
            "train_images": ["images"],
            "val": ["annotations.json"],
            "val_images": ["images"],
            "workers": 0,
        },
        "model": TINY_MODEL,
        "train": {"steps": 2, "batch_size": 2, "warmup_steps": 0},
        "eval": {"short_side": 64, "scales": [64, 96]},
    }
    for key, value in more.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) else value
    return check(LocalisationConfig, tree, "test")


def noise(path: Path, height: int, width: int, seed: int = 0) -> None:
    """Write an image of which no two parts are alike."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)

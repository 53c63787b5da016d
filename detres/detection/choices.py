"""What flags and settings of detection have in common, in words that need no library."""

from __future__ import annotations

from typing import Literal, get_args

SPLITS = ("train", "val", "test")
TRAINING_SPLITS = SPLITS[:2]
"""Those that a run reads: it learns from one, and the other judges it."""

ProtocolName = Literal["coco", "voc07", "voc12", "imagenet_det"]
PROTOCOLS = get_args(ProtocolName)

CocoBackend = Literal["auto", "pycocotools", "hotcoco"]
BACKENDS = get_args(CocoBackend)
"""Who counts COCO's numbers; see the setting eval.backend."""

COUNTS = (100, 300, 1000)
"""Of the best proposals of an image: COCO's 100 and 1000, and 300, what the paper's detector looks
at.
"""

DRAWN_SCORE = 0.5
"""Detections of at least this score are drawn."""

TILE_OVERLAP = 0.2
"""Of the side of a tile, that two share at least."""

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp",
)  # fmt: skip
"""Of the files that are taken for videos."""

"""Random boxes and small data sets for the tests."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from detres.class_map import ClassMap
from detres.detection.structures import FeatureMap, ImageBatch, Target


def random_boxes(num: int, size: float = 200.0, *, seed: int = 0, min_side: float = 1.0) -> Tensor:
    """Return (num, 4) valid xyxy boxes within a square of `size` px."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand((num, 2), generator=generator) * size * 0.8
    side = min_side + torch.rand((num, 2), generator=generator) * (size - corner - min_side)
    return torch.cat((corner, corner + side), dim=1)


def make_target(
    boxes: list | Tensor, labels: list, *, image_id: int = 1, crowd: list | None = None
) -> Target:
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    flags = torch.tensor(crowd if crowd is not None else [False] * len(labels), dtype=torch.bool)
    return Target(
        image_id,
        boxes,
        torch.tensor(labels, dtype=torch.int64),
        flags,
        torch.zeros(len(labels), dtype=torch.bool),
    )


def make_batch(sizes: list[tuple[int, int]], *, seed: int = 0) -> ImageBatch:
    """Return random images of the given (h, w) padded to a multiple of 32."""
    height, width = (-(-max(size[axis] for size in sizes) // 32) * 32 for axis in (0, 1))
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(
        0, 256, (len(sizes), 3, height, width), generator=generator, dtype=torch.uint8
    )
    return ImageBatch(pixels, tuple(sizes), tuple(sizes), tuple(range(1, len(sizes) + 1)))


def whole_map(values: Tensor) -> FeatureMap:
    """Return (N, C, H, W) as the map of a batch without padding."""
    return FeatureMap(values, (tuple(values.shape[2:]),) * len(values))


CLASSES = ClassMap(names=("cat", "dog", "owl"), source_ids=(3, 7, 90))


def write_coco(
    root: Path, images: list[tuple[int, int]], annotations: list[dict]
) -> tuple[Path, Path]:
    """Write grey images 1.jpg, 2.jpg, ... of (h, w) and a COCO file over CLASSES; return
    (annotation file, image folder).
    """
    folder = root / "images"
    folder.mkdir(parents=True, exist_ok=True)
    for number, (height, width) in enumerate(images, start=1):
        cv2.imwrite(str(folder / f"{number}.jpg"), np.full((height, width, 3), 128, np.uint8))
    content = {
        "images": [
            {"id": n, "file_name": f"{n}.jpg", "height": h, "width": w}
            for n, (h, w) in enumerate(images, start=1)
        ],
        "annotations": annotations,
        "categories": [
            {"id": i, "name": name}
            for i, name in zip(CLASSES.source_ids, CLASSES.names, strict=True)
        ],
    }
    file = root / "annotations.json"
    file.write_text(json.dumps(content))
    return file, folder

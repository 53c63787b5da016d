"""Small annotated data sets with faults planted in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from detres.detection.annotations import Annotations
from detres.detection.config import AnchorConfig, BackboneConfig, ModelConfig
from detres.detection.data.audit import look_at
from detres.detection.data.coco import read_coco
from detres.detection.data.findings import Finding, Part
from tests.images.pixels import smooth
from tests.images.test_decode import save

WIDTH, HEIGHT = 160, 96

MODEL = ModelConfig(
    backbone=BackboneConfig(norm="batch", freeze_at=0),
    anchors=AnchorConfig(sizes=(80.0, 160.0, 320.0), aspect_ratios=(0.5, 1.0, 2.0)),
)
"""Of short side 600 px; its anchors cover a box of 50x50 px in pictures of these sides."""

Box = tuple[float, float, float, float]


def picture(seed: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """Return a picture (h, w, 3) unlike that of any other seed."""
    return cv2.resize(smooth(24, 40, seed), size[::-1])


def write_split(
    root: Path,
    name: str,
    files: Mapping[str, np.ndarray | bytes],
    objects: Sequence[tuple[str, str, Box]] = (),
    *,
    classes: Sequence[str] = ("cat", "dog"),
    sizes: Mapping[str, tuple[int, int]] | None = None,
    orientations: Mapping[str, int] | None = None,
) -> Annotations:
    """Write ROOT/NAME/FILE and ROOT/NAME.json, and return them as they are written.

    objects: (file, class, (x1, y1, x2, y2)). sizes: (h, w) stated in place of that of the pixels.
    orientations: EXIF, of files that have one.
    """
    folder = root / name
    folder.mkdir(parents=True)
    stated = {}
    for file, content in files.items():
        if isinstance(content, bytes):
            (folder / file).write_bytes(content)
        else:
            save(content, folder / file, (orientations or {}).get(file))
            stated[file] = content.shape[:2]
    stated |= sizes or {}
    ids = {file: number for number, file in enumerate(files, start=1)}
    images = [
        {"id": ids[file], "file_name": file}
        | dict(zip(("height", "width"), stated.get(file, (HEIGHT, WIDTH)), strict=True))
        for file in files
    ]
    annotations = [
        {
            "id": 100 + number,
            "image_id": ids[file],
            "category_id": classes.index(of_class) + 1,
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
        }
        for number, (file, of_class, box) in enumerate(objects)
    ]
    categories = [{"id": number, "name": each} for number, each in enumerate(classes, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = root / f"{name}.json"
    path.write_text(json.dumps(content))
    return read_coco(path, folder, box_policy="as_written")


def parts(**splits: Annotations) -> list[Part]:
    """Return the splits with their files looked at."""
    return look_at(splits, 0)


def told(findings: Sequence[Finding]) -> dict[str, list[str]]:
    """Return kind -> its examples in words."""
    return {finding.kind: [str(example) for example in finding.examples] for finding in findings}

"""The embedded data set: shapes drawn on textured backgrounds, written once as JPEG files and COCO JSON.

Afterwards it is an ordinary COCO data set and is read as one.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
VERSION = 1
"""Part of the folder's name: raised whenever the drawing changes, so that old and new never mix."""

MIN_VISIBLE = 0.35
"""Share of a shape that must be seen; one hidden further by those on top of it is not annotated."""

_SUBPIXEL_BITS = 4


def ensure_shapes(cache: Path | None = None, *, num_train: int = 1000, num_val: int = 200, seed: int = 0) -> Path:
    """Return the folder of the shapes data, drawing them first if they are not there.

    cache: where such folders are kept; None: $DETRES_CACHE, else ~/.cache/detres. Layout: train/*.jpg, val/*.jpg,
    annotations/train.json, annotations/val.json. Image i of a split depends on (seed, split, i) alone. The folder is drawn
    under a temporary name and renamed, so a crash leaves nothing half done and two processes may draw at once.
    """
    base = Path(cache) if cache else Path(os.environ.get("DETRES_CACHE") or Path.home() / ".cache" / "detres")
    folder = base / f"shapes-v{VERSION}-{num_train}-{num_val}-{seed}"
    if folder.is_dir():
        return folder
    base.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=base))
    try:
        (temporary / "annotations").mkdir()
        for number, (split, count) in enumerate((("train", num_train), ("val", num_val))):
            _write_split(temporary, split, count, (seed, number))
        temporary.chmod(0o755)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first, with the same images
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_split(root: Path, split: str, count: int, seed: tuple[int, int]) -> None:
    (root / split).mkdir()
    images, annotations = [], []
    for index in range(count):
        pixels, objects = draw_image(np.random.default_rng((*seed, index)))
        name = f"{index:05d}.jpg"
        cv2.imwrite(str(root / split / name), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])
        images.append({"id": index + 1, "file_name": name, "height": pixels.shape[0], "width": pixels.shape[1]})
        for record in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": index + 1, **record})
    content = {
        "info": {"description": f"detres shapes v{VERSION}, {split}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in enumerate(SHAPES, start=1)],
    }
    (root / "annotations" / f"{split}.json").write_text(json.dumps(content), encoding="utf-8")


def draw_image(rng: np.random.Generator) -> tuple[np.ndarray, list[dict]]:
    """Return one image (H, W, 3) uint8 BGR and its COCO annotations (category_id, bbox, area, iscrowd).

    0 to 7 shapes of 16 to 110 px, turned, stretched, partly covered by later ones or cut by the border; sometimes a crowd: a
    heap of tiny shapes of one class, annotated as one iscrowd box. A box encloses the whole outline inside the image,
    hidden parts included; area is the same outline's.
    """
    height, width = (int(side) for side in rng.integers(192, 257, 2))
    image = _background(rng, height, width)
    for _ in range(rng.integers(0, 7)):
        _draw_clutter(rng, image)
    objects: list[tuple[int, np.ndarray, np.ndarray]] = []  # class, whole mask, mask still visible
    crowd = _draw_crowd(rng, image) if rng.random() < 0.06 else None
    num_shapes = 0 if rng.random() < 0.06 else int(rng.integers(1, 8))
    for _ in range(num_shapes):
        size = float(np.exp(rng.uniform(np.log(18), np.log(110))))
        kind = int(rng.integers(len(SHAPES)))
        mask = _shape_mask(rng, kind, size, height, width, margin=0.25 * size)
        if crowd is not None and (mask & crowd[1]).any():
            continue
        covered = [(visible & ~mask).sum() < MIN_VISIBLE * whole.sum() for _, whole, visible in objects]
        if mask.sum() < 80 or any(covered):
            continue
        _paint(rng, image, mask)
        objects = [(k, whole, visible & ~mask) for k, whole, visible in objects] + [(kind, mask, mask)]
    records = [_record(kind, whole, is_crowd=False) for kind, whole, _ in objects]
    if crowd is not None:
        records.append(_record(*crowd, is_crowd=True))
    grain = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(1, 6)
    image = np.clip(image + grain, 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        image = cv2.GaussianBlur(image, (3, 3), 0)
    return image, records


def _record(kind: int, mask: np.ndarray, *, is_crowd: bool) -> dict:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    x, y = int(columns[0]), int(rows[0])
    return {
        "category_id": kind + 1,
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "area": int(mask.sum()),
        "iscrowd": int(is_crowd),
    }


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Noise of several octaves between two colours, with a gradient and sometimes stripes."""
    field = np.zeros((height, width), np.float32)
    for octave in range(1, 6):
        cells = rng.random((2**octave + 1, 2**octave + 1), dtype=np.float32)
        field += cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC) * rng.uniform(0.3, 1.0) / octave
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    along = x * np.cos(angle) + y * np.sin(angle)
    field += along / 250 * rng.uniform(0, 1)
    if rng.random() < 0.35:
        field += np.sin(along * 2 * np.pi / rng.uniform(8, 40)) * rng.uniform(0.1, 0.5)
    field = (field - field.min()) / max(float(np.ptp(field)), 1e-6)
    low, high = _color(rng), _color(rng)
    return (low + (high - low) * field[..., None]).astype(np.uint8)


def _color(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(15, 240, 3).astype(np.float32)


def _draw_clutter(rng: np.random.Generator, image: np.ndarray) -> None:
    """Lines, specks and open arcs: things to be told from shapes."""
    height, width = image.shape[:2]
    color = tuple(float(value) for value in _color(rng))
    start = (int(rng.integers(width)), int(rng.integers(height)))
    kind = rng.integers(3)
    if kind == 0:
        end = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.line(image, start, end, color, int(rng.integers(1, 4)), cv2.LINE_AA)
    elif kind == 1:
        for _ in range(rng.integers(3, 12)):
            offset = rng.normal(0, 15, 2)
            center = (int(start[0] + offset[0]), int(start[1] + offset[1]))
            cv2.circle(image, center, int(rng.integers(1, 4)), color, -1, cv2.LINE_AA)
    else:
        axes = (int(rng.integers(10, 50)), int(rng.integers(10, 50)))
        cv2.ellipse(image, start, axes, float(rng.uniform(0, 180)), 0, float(rng.uniform(60, 200)), color, 2, cv2.LINE_AA)


def _draw_crowd(rng: np.random.Generator, image: np.ndarray) -> tuple[int, np.ndarray]:
    """Draw a heap of small shapes of one class; return the class and the mask of them all."""
    height, width = image.shape[:2]
    kind = int(rng.integers(len(SHAPES)))
    center = rng.uniform((40, 40), (width - 40, height - 40))
    heap = np.zeros((height, width), bool)
    for _ in range(rng.integers(15, 31)):
        mask = _shape_mask(rng, kind, float(rng.uniform(9, 15)), height, width, at=center + rng.uniform(-30, 30, 2))
        _paint(rng, image, mask)
        heap |= mask
    return kind, heap


def _shape_mask(
    rng: np.random.Generator,
    kind: int,
    size: float,
    height: int,
    width: int,
    *,
    margin: float = 0.0,
    at: np.ndarray | None = None,
) -> np.ndarray:
    """Return the mask (H, W) bool of a randomly turned and stretched shape whose centre is at most `margin` px from the border."""
    center = rng.uniform((margin, margin), (width - margin, height - margin)) if at is None else at
    angle, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0.75, 1.0)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    outlines = [(outline * (1.0, stretch)) @ turn.T * size / 2 + center for outline in _OUTLINES[SHAPES[kind]]]
    canvas = np.zeros((height, width), np.uint8)
    points = [np.round(outline * (1 << _SUBPIXEL_BITS)).astype(np.int32) for outline in outlines]
    cv2.fillPoly(canvas, points, 1, shift=_SUBPIXEL_BITS)  # even-odd: the inner outline of a ring is a hole
    return canvas.astype(bool)


def _paint(rng: np.random.Generator, image: np.ndarray, mask: np.ndarray) -> None:
    """Fill the mask with a colour that stands out from what lies under it, sometimes shaded, striped or outlined."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if len(rows) == 0:
        return
    window = np.s_[max(rows[0] - 2, 0) : rows[-1] + 3, max(columns[0] - 2, 0) : columns[-1] + 3]
    patch, mask = image[window], mask[window]
    under = patch[mask].mean(axis=0)
    color = max((_color(rng) for _ in range(4)), key=lambda c: min(float(np.abs(c - under).sum()), 150.0) + rng.uniform(0, 1))
    fill = np.broadcast_to(color, patch.shape).astype(np.float32).copy()
    style = rng.random()
    if style < 0.4:
        fill += np.linspace(-1, 1, patch.shape[1], dtype=np.float32)[None, :, None] * rng.uniform(-25, 25)
    elif style < 0.55:
        stripes = np.arange(patch.shape[0], dtype=np.float32)[:, None, None]
        fill += np.sign(np.sin(stripes * 2 * np.pi / rng.uniform(6, 14))) * rng.uniform(8, 25)
    alpha = cv2.GaussianBlur(mask.astype(np.float32), (3, 3), 0.6)[..., None]
    painted = np.clip(patch * (1 - alpha) + fill * alpha, 0, 255).astype(np.uint8)
    if rng.random() < 0.35:
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(painted, contours, -1, tuple(float(v) for v in color * rng.uniform(0.3, 0.7)), 1, cv2.LINE_AA)
    image[window] = painted


def _outlines() -> dict[str, list[np.ndarray]]:
    """Return the outlines of every shape around (0, 0) within the unit circle."""
    around = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    circle = np.stack((np.cos(around), np.sin(around)), axis=1)
    corners = np.pi / 4 + np.pi / 2 * np.arange(4)
    thirds = 2 * np.pi / 3 * np.arange(3)
    tips = np.pi / 5 * np.arange(10)
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    arm = 0.3
    cross = np.array([
        (arm, 1), (arm, arm), (1, arm), (1, -arm), (arm, -arm), (arm, -1),
        (-arm, -1), (-arm, -arm), (-1, -arm), (-1, arm), (-arm, arm), (-arm, 1),
    ])  # fmt: skip
    return {
        "circle": [circle],
        "square": [np.stack((np.cos(corners), np.sin(corners)), axis=1)],
        "triangle": [np.stack((np.cos(thirds), np.sin(thirds)), axis=1)],
        "star": [np.stack((np.cos(tips) * radius, np.sin(tips) * radius), axis=1)],
        "cross": [cross * 0.95],
        "ring": [circle, circle * 0.55],
    }


_OUTLINES = _outlines()

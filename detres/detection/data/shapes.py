"""shapes: the embedded default data set, drawn by OpenCV into ordinary JPEG files and COCO JSON.

Six outlines on textured backgrounds. Colours, sizes, rotations and aspect ratios are shared by all
classes, so only the outline tells them apart. Objects hide and leave the image in part, some images
have none, and a few hold a crowd region.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from detres.detection.structures import index_of, label_of
from detres.files import cache_folder
from detres.images.processes import made_by_processes, starts_by_fork, usable_cores
from detres.waiting import counted

SHAPES_CLASSES = ("circle", "square", "triangle", "star", "cross", "ring")
"""The classes in label order; category ids are 1..6."""

# of the drawing: part of the folder's name, raised whenever a pixel or a box would change
_VERSION = 3
_SPLITS = ("train", "val")

_SIDES = (160, 192)  # px, of the image
_SIZES = (24.0, 100.0)  # px, longest side of an object, log-uniform but for fewer small ones
_CROWD_SIZES = (9.0, 16.0)
_EMPTY_SHARE, _CROWD_SHARE = 0.06, 0.04  # of the images
_MAX_OBJECTS = 6
_MIN_INSIDE = 0.5  # share of an object inside the image
_MIN_VISIBLE = 0.6  # share of an object neither outside the image nor hidden
_MAX_TURN = 25.0  # degrees, either way
_MAX_STRETCH = 0.15  # of the logarithm of width to height
_MAX_CLUTTER = 5  # marks that are no object
_MIN_CONTRAST = 110.0  # RGB distance between a fill and what it covers


def ensure_shapes(
    cache: Path | None = None, *, num_train: int = 2500, num_val: int = 200, seed: int = 0
) -> Path:
    """Return the folder of the shapes data, drawing it on the first call with all cores (4 ms of
    one of them an image).

    The folder holds train/*.jpg, val/*.jpg, annotations/train.json and annotations/val.json. It is
    a sub-folder of `cache` (default: the environment variable DETRES_CACHE, else ~/.cache/detres)
    named after version and arguments; it appears whole or not at all, also when several processes
    ask at once. Image i of a split depends on (seed, split, i) alone.

    Boxes are amodal and clipped: they hold the whole outline, hidden parts too, as far as it is
    inside the image, tight to the pixel. `area` counts the same pixels. Every object has at least
    60 % of its area in sight. A crowd is 15 to 30 small overlapping shapes of one class under one
    box with iscrowd 1.

    Raises ValueError for fewer than one image a split or a negative seed, NotADirectoryError when
    `cache` is a file.
    """
    if num_train < 1 or num_val < 1 or seed < 0:
        raise ValueError(
            f"shapes: num_train {num_train}, num_val {num_val} and seed {seed} must be at least 1, "
            "1 and 0"
        )
    cache = cache or cache_folder()
    if cache.exists() and not cache.is_dir():
        raise NotADirectoryError(
            f"the cache folder {cache} is a file; give another folder in DETRES_CACHE"
        )
    folder = cache / f"shapes-v{_VERSION}-{num_train}-{num_val}-{seed}"
    if folder.is_dir():
        return folder

    unfinished = cache / f".{folder.name}-{uuid.uuid4().hex}"
    try:
        for split, num_images in zip(_SPLITS, (num_train, num_val), strict=True):
            _write_split(unfinished, split, num_images, seed)
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first, with the same content
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


@dataclass(frozen=True)
class ShapesObject:
    """One annotated object: label 1..6, mask (H, W) bool of its whole outline inside the image,
    crowd.
    """

    label: int
    mask: np.ndarray
    crowd: bool


def draw_shapes_image(seed: int, split: str, index: int) -> tuple[np.ndarray, list[ShapesObject]]:
    """Return image `index` of a split, (H, W, 3) uint8 RGB with sides of 160 to 192 px, and its
    objects, later ones on top.

    A pure function of its arguments; about 6 % of the images have no object. Raises ValueError for
    an unknown split.
    """
    if split not in _SPLITS:
        raise ValueError(f"shapes has the splits {_SPLITS}, not '{split}'")
    rng = np.random.default_rng((seed, _SPLITS.index(split), index))
    height, width = rng.integers(_SIDES[0], _SIDES[1] + 1, size=2)
    canvas = _background(rng, height, width)
    _clutter(rng, canvas)
    objects: list[ShapesObject] = []
    if rng.random() < _EMPTY_SHARE:
        return canvas, objects
    in_sight: list[np.ndarray] = []
    least_visible: list[float] = []
    if rng.random() < _CROWD_SHARE:
        crowd = _paint_crowd(rng, canvas)
        objects.append(crowd)
        in_sight.append(crowd.mask)
        least_visible.append(_MIN_VISIBLE * crowd.mask.sum())
    for _ in range(rng.integers(1, _MAX_OBJECTS + 1)):
        label = label_of(int(rng.integers(len(SHAPES_CLASSES))))
        size = _SIZES[0] * (_SIZES[1] / _SIZES[0]) ** (rng.random() ** 0.55)
        for _ in range(10):
            alpha, whole_area = _rasterise(
                rng, label, size, _centre(rng, height, width, size), (height, width)
            )
            mask = alpha >= 128
            # the smooth edge makes small shapes a little larger than their outline
            whole_area = max(whole_area, mask.sum())
            remaining = [seen & ~mask for seen in in_sight]
            hides = any(
                seen.sum() < least for seen, least in zip(remaining, least_visible, strict=True)
            )
            if not hides and mask.sum() >= _MIN_INSIDE * whole_area:
                _paint(rng, canvas, alpha)
                objects.append(ShapesObject(label, mask, crowd=False))
                in_sight = [*remaining, mask]
                least_visible.append(_MIN_VISIBLE * whole_area)
                break
    return canvas, objects


def _write_split(root: Path, split: str, num_images: int, seed: int) -> None:
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    draw = partial(_write_image, root / split, split, seed)
    numbers = counted(range(num_images), f"drawing the shapes, {split}", "images")
    # others would run the user's script anew
    workers = usable_cores() if starts_by_fork() else 0
    with closing(made_by_processes(draw, range(num_images), workers)) as drawn:
        for _, (image, objects) in zip(numbers, drawn, strict=True):
            images.append(image)
            for item in objects:
                annotations.append({"id": len(annotations) + 1, "image_id": image["id"], **item})
    content = {
        "info": {"description": f"detres shapes v{_VERSION}, {split}, seed {seed}"},
        "images": images,
        "annotations": annotations,
        "categories": [
            {"id": label, "name": name}
            for label, name in enumerate(SHAPES_CLASSES, start=label_of(0))
        ],
    }
    _write(root / "annotations" / f"{split}.json", json.dumps(content).encode())


def _write_image(folder: Path, split: str, seed: int, index: int) -> tuple[dict, list[dict]]:
    """Write image `index`, and return what COCO JSON has of it and of its objects."""
    pixels, objects = draw_shapes_image(seed, split, index)
    name = f"{index + 1:06d}.jpg"
    _, data = cv2.imencode(
        ".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90]
    )
    _write(folder / name, data.tobytes())
    height, width = pixels.shape[:2]
    return {"id": index + 1, "file_name": name, "height": height, "width": width}, [
        {
            "category_id": item.label,
            "bbox": [float(value) for value in cv2.boundingRect(item.mask.astype(np.uint8))],
            "area": float(item.mask.sum()),
            "iscrowd": int(item.crowd),
        }
        for item in objects
    ]


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _outline(label: int) -> list[np.ndarray]:
    """Contours (P, 2) of a class, upright, about the origin (y down); a second contour is a
    hole.
    """

    def around(num: int, radii: tuple[float, ...] = (1.0,), first: float = -90.0) -> np.ndarray:
        angles = np.arange(num) * (2 * math.pi / num) + math.radians(first)
        return np.stack((np.cos(angles), np.sin(angles)), axis=1) * np.resize(radii, num)[:, None]

    match SHAPES_CLASSES[index_of(label)]:
        case "circle":
            return [around(48)]
        case "square":
            return [around(4, first=-45.0)]
        case "triangle":
            return [around(3)]
        case "star":
            return [around(10, (1.0, 0.42))]
        case "cross":
            arm = 0.3
            quarter = np.array([(1.0, -arm), (1.0, arm), (arm, arm)])
            turn = np.array([(0.0, 1.0), (-1.0, 0.0)])
            return [np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])]
        case _:
            return [around(48), around(48, (0.55,))]


def _centre(rng: np.random.Generator, height: int, width: int, size: float) -> tuple[float, float]:
    """Centre (x, y) px: mostly with the object inside the image, sometimes anywhere, so that the
    border cuts it.
    """
    margin = 0.0 if rng.random() < 0.15 else size / 2
    return rng.uniform(margin, width - margin), rng.uniform(margin, height - margin)


def _rasterise(
    rng: np.random.Generator,
    label: int,
    size: float,
    centre: tuple[float, float],
    canvas_size: tuple[int, int],
) -> tuple[np.ndarray, float]:
    """Coverage (H, W) uint8 of a shape turned and stretched at random, and its area in px^2 with
    what is outside.
    """
    stretch = math.exp(rng.uniform(-_MAX_STRETCH, _MAX_STRETCH))
    angle = math.radians(rng.uniform(-_MAX_TURN, _MAX_TURN))
    turn = np.array([(math.cos(angle), math.sin(angle)), (-math.sin(angle), math.cos(angle))])
    contours = [points @ np.diag((stretch, 1 / stretch)) @ turn for points in _outline(label)]
    low, high = contours[0].min(axis=0), contours[0].max(axis=0)
    scale = size / (high - low).max()
    contours = [(points - (low + high) / 2) * scale + centre for points in contours]
    areas = [cv2.contourArea(points.astype(np.float32)) for points in contours]
    alpha = np.zeros(canvas_size, np.uint8)
    cv2.fillPoly(
        alpha,
        [np.round(points * 16).astype(np.int32) for points in contours],
        255,
        cv2.LINE_AA,
        shift=4,
    )
    return alpha, areas[0] - sum(areas[1:])


def _paint(rng: np.random.Generator, canvas: np.ndarray, alpha: np.ndarray) -> None:
    """Blend one shape into the canvas: fill, and by chance texture, outline, shadow, soft edge."""
    x, y, w, h = cv2.boundingRect(alpha)
    patch = np.s_[max(0, y - 8) : y + h + 8, max(0, x - 8) : x + w + 8]
    cover, below = alpha[patch].astype(np.float32) / 255, canvas[patch].astype(np.float32)
    size = max(w, h)
    if rng.random() < 0.3:
        dx, dy = rng.uniform(-0.08, 0.08, size=2) * size
        moved = cv2.warpAffine(
            cover, np.array([(1, 0, dx), (0, 1, dy)], np.float32), cover.shape[::-1]
        )
        below *= (
            1
            - rng.uniform(0.25, 0.55)
            * cv2.GaussianBlur(moved, (0, 0), rng.uniform(1.0, 3.0))[..., None]
        )
    covered = below[cover > 0].mean(axis=0)
    colour = rng.uniform(0, 255, size=3)
    while np.linalg.norm(colour - covered) < _MIN_CONTRAST:
        colour = rng.uniform(0, 255, size=3)
    fill = np.broadcast_to(colour.astype(np.float32), below.shape)
    if rng.random() < 0.3:
        fill = fill + _pattern(rng, *cover.shape)[..., None] * rng.normal(0, 30, size=3).astype(
            np.float32
        )
    if rng.random() < 0.35:
        thickness = 1 + 2 * int(rng.integers(0, 1 + max(1, size // 30)))
        inner = cv2.erode(
            cover, np.ones((thickness + 2, thickness + 2)), borderType=cv2.BORDER_REPLICATE
        )[..., None]
        fill = inner * fill + (1 - inner) * (colour * rng.uniform(0.2, 0.6)).astype(np.float32)
    if rng.random() < 0.2:
        cover = cv2.GaussianBlur(cover, (0, 0), rng.uniform(0.5, 1.1))
    canvas[patch] = np.clip(below + cover[..., None] * (fill - below), 0, 255).astype(np.uint8)


def _paint_crowd(rng: np.random.Generator, canvas: np.ndarray) -> ShapesObject:
    label = label_of(int(rng.integers(len(SHAPES_CLASSES))))
    height, width = canvas.shape[:2]
    spread = rng.uniform(10, 18, size=2)
    middle = np.array([rng.uniform(60, width - 60), rng.uniform(60, height - 60)])
    mask = np.zeros((height, width), bool)
    for _ in range(rng.integers(15, 31)):
        centre = middle + spread * rng.standard_normal(2).clip(-2, 2)
        alpha, _ = _rasterise(
            rng, label, rng.uniform(*_CROWD_SIZES), tuple(centre), (height, width)
        )
        _paint(rng, canvas, alpha)
        mask |= alpha >= 128
    return ShapesObject(label, mask, crowd=True)


def _pattern(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A field (H, W) float32 in about -1..1: a ramp, stripes or noise of several octaves."""
    kind = rng.integers(3)
    if kind == 0:
        return _noise(rng, height, width, 1)[..., 0]
    angle = rng.uniform(0, 2 * math.pi)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    along = x * math.cos(angle) + y * math.sin(angle)
    return along if kind == 1 else np.sin(along * rng.uniform(4, 40) + rng.uniform(0, 2 * math.pi))


def _noise(rng: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    """Smooth noise (H, W, channels) float32, the sum of random grids of growing fineness and
    falling weight.
    """
    total = np.zeros((height, width, channels), np.float32)
    for octave in range(5):
        cells = 2 ** (octave + 1)
        grid = rng.uniform(-1, 1, size=(cells, cells, channels)).astype(np.float32)
        layer = cv2.resize(grid, (int(width), int(height)), interpolation=cv2.INTER_CUBIC)
        total += layer.reshape(total.shape) * rng.uniform(0.3, 1.0) * 0.7**octave
    return total


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    colour, drift = (
        rng.uniform(20, 235, size=3).astype(np.float32),
        rng.normal(0, 30, size=3).astype(np.float32),
    )
    canvas = colour + _pattern(rng, height, width)[..., None] * drift
    canvas += _noise(rng, height, width, 3) * rng.uniform(4, 16)
    canvas += rng.standard_normal(canvas.shape, dtype=np.float32) * rng.uniform(1, 7)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def _clutter(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Marks that are no class: lines, fragments of ellipses, small irregular specks."""
    height, width = canvas.shape[:2]
    for _ in range(rng.integers(0, _MAX_CLUTTER + 1)):
        colour = rng.uniform(0, 255, size=3).tolist()
        x, y = int(rng.integers(width)), int(rng.integers(height))
        kind = rng.integers(3)
        if kind == 0:
            end = (int(rng.integers(width)), int(rng.integers(height)))
            cv2.line(canvas, (x, y), end, colour, int(rng.integers(1, 4)), cv2.LINE_AA)
        elif kind == 1:
            axes, start = rng.integers(8, 50, size=2).tolist(), rng.uniform(0, 360)
            turn, sweep = rng.uniform(0, 180), rng.uniform(40, 150)
            cv2.ellipse(
                canvas,
                (x, y),
                axes,
                turn,
                start,
                start + sweep,
                colour,
                int(rng.integers(1, 4)),
                cv2.LINE_AA,
            )
        else:
            points = rng.normal((x, y), 4, size=(6, 2))
            cv2.fillPoly(canvas, [np.round(points).astype(np.int32)], colour, cv2.LINE_AA)

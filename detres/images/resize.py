"""The resize rules: to what size an image goes, and how its pixels get there."""

from __future__ import annotations

import math
from typing import Literal

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

Resizing = Literal["cv2", "pillow", "torchvision"]
"""Whose rounding of sizes and whose pixels a detector sees.

cv2: py-faster-rcnn's sizes, OpenCV's bilinear pixels. pillow: detectron2's sizes (its
ResizeShortestEdge), Pillow's bilinear pixels, which average where an image shrinks. torchvision:
those of its detection models, bilinear between the four nearest and not rounded to whole grey
levels.
"""


def resized_size(
    height: int, width: int, *, short_side: int, max_side: int, resizing: Resizing = "cv2"
) -> tuple[int, int]:
    """Return (h, w) px of an image for detection: its short side at `short_side`, or less where its
    long side would exceed `max_side`.

    py-faster-rcnn's rule (600 and 1000): scale = short_side / min, unless that rounds the long side
    beyond the cap; both sides are rounded. detectron2 and torchvision, which `resizing` stands for,
    round otherwise, by at most a pixel, and fail where that leaves no pixel: here one stays.
    """
    scale = short_side / min(height, width)
    if resizing == "pillow":
        sides = [height * scale, short_side] if width <= height else [short_side, width * scale]
        shrink = min(1.0, max_side / max(sides))
        size = int(sides[0] * shrink + 0.5), int(sides[1] * shrink + 0.5)
    elif resizing == "torchvision":
        scale = min(scale, max_side / max(height, width))
        size = math.floor(height * scale), math.floor(width * scale)
    else:
        if round(scale * max(height, width)) > max_side:
            scale = max_side / max(height, width)
        size = round(height * scale), round(width * scale)
    return max(1, size[0]), max(1, size[1])


def scaled_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return (h, w) px of an image for classification: its short side at `short_side` and the long
    one rounded down, as torchvision does.
    """
    if height <= width:
        return short_side, short_side * width // height
    return short_side * height // width, short_side


def rounded_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Return (h, w) px of an image for fully convolutional evaluation: its short side at
    `short_side` and the long one rounded (paper, section 3.4, does not say how).
    """
    factor = short_side / min(height, width)
    return round(height * factor), round(width * factor)


def resize_image(
    image: np.ndarray, size: tuple[int, int], resizing: Resizing = "cv2"
) -> np.ndarray:
    """Return `image` (H, W, 3) uint8 resized to `size` (h, w), bilinear as `resizing` says (cv2:
    py-faster-rcnn); the image itself when it has that size. uint8, but by torchvision float32 on
    the same scale.
    """
    if image.shape[:2] == size:
        return image
    if resizing == "pillow":
        return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
    if resizing == "torchvision":
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()  # (1, 3, H, W)
        pixels = F.interpolate(pixels, size, mode="bilinear", align_corners=False)
        return pixels[0].permute(1, 2, 0).numpy()
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def resized_window(
    image: np.ndarray, size: tuple[int, int], corner: tuple[int, int], side: int
) -> np.ndarray:
    """Return the (side, side, 3) window at `corner` (top, left) of `image` (H, W, 3) uint8 resized
    to `size` (h, w), bilinear as Caffe resized.

    Only the window's own pixels are computed, to a 32nd of a pixel.
    """
    scale_y, scale_x = image.shape[0] / size[0], image.shape[1] / size[1]
    # pixel centres sit at +0.5: source = (target + corner + 0.5) * scale - 0.5
    x_to_source = (scale_x, 0, (corner[1] + 0.5) * scale_x - 0.5)
    y_to_source = (0, scale_y, (corner[0] + 0.5) * scale_y - 0.5)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        image,
        np.array([x_to_source, y_to_source]),
        (side, side),
        flags=flags,
        borderMode=cv2.BORDER_REPLICATE,
    )


def warped_region(
    image: np.ndarray, box: np.ndarray, side: int
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Return the part of `image` (H, W, 3) uint8 under `box` (4,) xyxy px, warped to (side, side,
    3), and what was taken: the whole pixels that hold the box, x1, y1, x2, y2, cut to the image and
    at least one wide and high.
    """
    height, width = image.shape[:2]
    x1, x2 = _whole_pixels(box[0], box[2], width)
    y1, y2 = _whole_pixels(box[1], box[3], height)
    return resize_image(image[y1:y2, x1:x2], (side, side)), (x1, y1, x2, y2)


def _whole_pixels(low: float, high: float, limit: int) -> tuple[int, int]:
    first = min(max(math.floor(low), 0), limit - 1)
    return first, max(first + 1, min(math.ceil(high), limit))

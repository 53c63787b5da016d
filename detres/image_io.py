"""Images: files -> uint8 RGB arrays, resizing, and padding into one batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from detres.structures import ImageBatch, ImageId

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

_EXIF_ORIENTATION = 0x0112
_TRANSPOSING = (5, 6, 7, 8)


class ImageReadError(OSError):
    """An image file that is missing, damaged or no image; the message names it."""


def read_image(path: str | Path, stated_size: tuple[int, int] | None = None) -> np.ndarray:
    """Return an image file as (H, W, 3) uint8 RGB, turned as its EXIF orientation says.

    Grey, palette and CMYK images become RGB; an alpha channel is dropped; 16-bit values are divided by 257, not clipped.
    stated_size: (h, w) px that the annotations give, 0 where they do not. When it fits only the pixels as stored, the labels
    were made on those, so they are returned unturned. Raises ImageReadError for a file that is missing, truncated or no
    image, ValueError naming file and sizes when the stated size fits neither way.
    """
    path = Path(path)
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(_EXIF_ORIENTATION, 1)
            height, width = image.height, image.width
            shown = (width, height) if turned in _TRANSPOSING else (height, width)
            stored = (height, width)
            apply_turn = turned != 1
            if stated_size is not None and min(stated_size) > 0 and stated_size != shown:
                if stated_size != stored:
                    raise ValueError(
                        f"{path}: the annotations say {stated_size[1]}x{stated_size[0]} px, the file is {shown[1]}x{shown[0]}; "
                        "boxes would be misplaced. Correct the size in the annotations, or the file"
                    )
                apply_turn = False
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                return _decode_jpeg(path, apply_turn)
            pixels = ImageOps.exif_transpose(image) if apply_turn else image
            return _to_rgb(pixels)
    except ImageReadError:
        raise
    except FileNotFoundError:
        raise ImageReadError(f"image file {path} does not exist") from None
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageReadError(f"image file {path} cannot be read: {error}") from None


def _decode_jpeg(path: Path, apply_turn: bool) -> np.ndarray:
    """OpenCV's decoder: the same pixels as Pillow's, faster; it pads a truncated file silently, so the end is checked."""
    data = np.fromfile(path, dtype=np.uint8)
    flags = cv2.IMREAD_COLOR_RGB | (0 if apply_turn else cv2.IMREAD_IGNORE_ORIENTATION)
    pixels = cv2.imdecode(data, flags)
    # A whole JPEG ends with the marker FF D9, bar some trailing bytes that cameras and editors append.
    if pixels is None or b"\xff\xd9" not in data[-4096:].tobytes():
        with Image.open(path) as image:
            try:
                image.load()
            except OSError as error:
                raise ImageReadError(f"image file {path} cannot be read: {error}") from None
            return _to_rgb(ImageOps.exif_transpose(image) if apply_turn else image)
    return pixels


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.uint32)
        return np.repeat((grey.clip(0, 65535) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    return np.ascontiguousarray(np.asarray(image.convert("RGB")))


def resized_size(height: int, width: int, *, shorter: int, longer: int) -> tuple[int, int]:
    """Return (h, w) px after scaling the shorter side to `shorter`, or less where the longer side would exceed `longer`.

    py-faster-rcnn's rule (600 and 1000): scale = shorter / min, unless that rounds the longer side beyond the cap.
    """
    scale = shorter / min(height, width)
    if round(scale * max(height, width)) > longer:
        scale = longer / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return (H, W, 3) uint8 resized to `size` (h, w), bilinear as py-faster-rcnn; the image itself when it has that size."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def pad_images(
    images: Sequence[np.ndarray],
    *,
    original_sizes: Sequence[tuple[int, int]],
    ids: Sequence[ImageId],
    multiple: int = 32,
) -> ImageBatch:
    """Return N images (H, W, 3) uint8 as one batch, padded with zeros at the right and bottom.

    The common size is the smallest multiple of `multiple` that holds them all. Raises ValueError without images.
    """
    if not images:
        raise ValueError("a batch needs at least one image")
    height, width = (-(-max(image.shape[axis] for image in images) // multiple) * multiple for axis in (0, 1))
    pixels = torch.zeros((len(images), height, width, 3), dtype=torch.uint8)
    for row, image in zip(pixels, images, strict=True):
        row[: image.shape[0], : image.shape[1]] = torch.from_numpy(image)
    return ImageBatch(
        pixels=pixels.permute(0, 3, 1, 2),  # channels last in memory, as the model wants it
        sizes=tuple(image.shape[:2] for image in images),
        original_sizes=tuple(original_sizes),
        ids=tuple(ids),
    )

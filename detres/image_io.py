"""Images: files -> uint8 RGB arrays, resizing, and padding into one batch."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from detres.structures import ImageBatch, ImageId

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

_EXIF_ORIENTATION = 0x0112
# EXIF orientation -> (swap rows and columns, then flip rows, then flip columns) to show the picture
# upright.
_UPRIGHT = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
# What Pillow raises on damaged bytes, depending on the format.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


class ImageReadError(OSError):
    """An image file that is missing, damaged or no image; the message names it."""


def read_image(path: str | Path, stated_size: tuple[int, int] | None = None) -> np.ndarray:
    """Return an image file as `decode_image` does; raises ImageReadError also when it is missing or
    cannot be opened.
    """
    return decode_image(read_bytes(path), str(path), stated_size)


def read_bytes(path: str | Path) -> bytes:
    """Return an image file as it is; raises ImageReadError when it is missing or cannot be
    opened.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ImageReadError(f"image file {path} does not exist") from None
    except OSError as error:
        raise ImageReadError(f"image file {path} cannot be read: {error}") from None


def decode_image(data: bytes, name: str, stated_size: tuple[int, int] | None = None) -> np.ndarray:
    """Return an encoded image as (H, W, 3) uint8 RGB, C-contiguous and writable, turned as its EXIF
    orientation says.

    Grey, palette, 1-bit and CMYK images become RGB; an alpha channel is dropped and the colours
    under it kept, as detection toolkits have it; 16-bit values are scaled by 1/257 (colour: their
    high byte), not clipped. name: of the file, for messages. stated_size: (h, w) px that the
    annotations give, 0 where they do not. When it fits only the pixels as stored, the labels were
    made on those, so they are returned unturned (TIFF excepted: always turned). Raises
    ImageReadError for data that are truncated, no image, or of 32-bit pixels; ValueError naming
    file and sizes when the stated size fits neither way.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            pixels = (
                _decode_jpeg(data)
                if image.format == "JPEG" and image.mode in ("RGB", "L")
                else None
            )
            if pixels is None:
                pixels = _to_rgb(image)
            # Asked for after decoding: Pillow turns TIFF files by itself and then clears the tag.
            swap, flip_rows, flip_columns = _UPRIGHT.get(
                image.getexif().get(_EXIF_ORIENTATION, 1), _UPRIGHT[1]
            )
    except _DECODER_ERRORS as error:
        raise ImageReadError(f"image file {name} cannot be read: {error}") from None

    stored = pixels.shape[:2]
    upright = stored[::-1] if swap else stored
    stated = upright if stated_size is None or min(stated_size) <= 0 else tuple(stated_size)
    if stated == upright:
        pixels = pixels.swapaxes(0, 1) if swap else pixels
        pixels = pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
    elif stated != stored:
        raise ValueError(
            f"{name}: the annotations say {stated[1]}x{stated[0]} px, the file is "
            f"{upright[1]}x{upright[0]}; "
            "boxes would be misplaced. Correct the size in the annotations, or the file"
        )
    return np.ascontiguousarray(pixels)


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """OpenCV's decoder gives Pillow's pixels in less time, but fills up a truncated file: None
    unless the last scan has its end.
    """
    last_scan = data.rfind(b"\xff\xda")
    if last_scan < 0 or data.find(b"\xff\xd9", last_scan) < 0:
        return None
    return cv2.imdecode(
        np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    )


def _to_rgb(image: Image.Image) -> np.ndarray:
    """Pillow's decoder; it clips 16-bit grey when asked for RGB, so that is scaled here."""
    image.load()
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(
                "its pixels have 32 bits, which have no agreed range; save it with 8 or 16"
            )
        return np.repeat(((grey + 128) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError(
            "its pixels are floats of 32 bits, which have no agreed range; save it with 8 or 16"
        )
    # Through RGBA a palette's transparent entry keeps its colour and Pillow does not warn.
    return np.array(
        image.convert("RGBA").convert("RGB") if image.mode == "P" else image.convert("RGB")
    )


def resized_size(height: int, width: int, *, shorter: int, longer: int) -> tuple[int, int]:
    """Return (h, w) px after scaling the shorter side to `shorter`, or less where the longer side
    would exceed `longer`.

    py-faster-rcnn's rule (600 and 1000): scale = shorter / min, unless that rounds the longer side
    beyond the cap.
    """
    scale = shorter / min(height, width)
    if round(scale * max(height, width)) > longer:
        scale = longer / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return (H, W, 3) uint8 resized to `size` (h, w), bilinear as py-faster-rcnn; the image itself
    when it has that size.
    """
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

    original_sizes: N (h, w) px of the files as read. ids: N image ids. The common size is the
    smallest multiple of `multiple` that holds them all. Raises ValueError without images, when the
    three are not of one length, and for an image of another shape or dtype, naming its id.
    """
    if not images:
        raise ValueError("a batch needs at least one image")
    if not len(images) == len(original_sizes) == len(ids):
        raise ValueError(
            f"a batch of {len(images)} images has {len(original_sizes)} original sizes and "
            f"{len(ids)} ids"
        )
    for image, image_id in zip(images, ids, strict=True):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"image {image_id} is {image.dtype} {image.shape}, expected uint8 (H, W, 3)"
            )
    height, width = (
        -(-max(image.shape[axis] for image in images) // multiple) * multiple for axis in (0, 1)
    )
    pixels = torch.zeros((len(images), height, width, 3), dtype=torch.uint8)
    for row, image in zip(pixels.numpy(), images, strict=True):
        row[: image.shape[0], : image.shape[1]] = image
    return ImageBatch(
        pixels=pixels.permute(0, 3, 1, 2),  # channels last in memory, as the model wants it
        sizes=tuple(image.shape[:2] for image in images),
        original_sizes=tuple(original_sizes),
        ids=tuple(ids),
    )

"""Image files -> uint8 RGB arrays."""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from detres.console import shown
from detres.user_files import fault_of

Picture = np.ndarray | Image.Image | str | Path
"""An image as a user gives it: a (H, W, 3) uint8 RGB array, a picture of Pillow, or a path."""

IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".jfif", ".gif", ".jpe",
)  # fmt: skip
"""Of the files that are taken for images in a folder."""

OTHER_SUFFIXES = (
    ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jpx", ".jxl", ".psd", ".svg", ".dng", ".cr2",
    ".cr3", ".nef", ".arw", ".raw", ".tga", ".ico", ".ppm", ".pgm", ".pbm", ".pnm", ".apng", ".mpo",
    ".exr", ".hdr",
)  # fmt: skip
"""Of image files that are left out of a folder, and this said: they need decoders that not every
Pillow has.
"""

_PIXEL_LIMIT = 2 * 89_478_485
_PIXEL_SETTING = "DETRES_MAX_PIXELS"
"""Environment variable: largest image that is decoded, in pixels (default: where Pillow
refuses, half a GiB as RGB); beyond it lie decompression bombs.
"""

_EXIF_ORIENTATION = 0x0112

_REDUCED = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
}
"""The scales at which a JPEG file can be decoded from a part of its DCT coefficients."""

Needed = Callable[[tuple[int, int]], tuple[int, int]]
"""(h, w) px of a picture -> the (h, w) px that it will be resized to; of (w, h) px it is (w, h)."""

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
    MemoryError,
    cv2.error,
)


class ImageReadError(OSError):
    """An image file that is missing, damaged or no image; the message names it."""


def read_image(path: str | Path, stated_size: tuple[int, int] | None = None) -> np.ndarray:
    """Return an image file as `decode_image` does; raises ImageReadError also when it is missing or
    cannot be opened.
    """
    return decode_image(read_bytes(path), str(path), stated_size)


class DecodedImage(NamedTuple):
    """Pixels (h, w, 3) uint8 RGB of a picture of `size` (H, W) px, of which one is `scale` wide and
    high: h = ceil(H / scale), w = ceil(W / scale). They begin `before` (rows, columns) px of the
    picture, 0 unless it was turned and its sides are no multiples of the scale.
    """

    pixels: np.ndarray
    size: tuple[int, int]
    scale: int = 1
    before: tuple[int, int] = (0, 0)

    def carried(self, boxes: Tensor) -> Tensor:
        """Return boxes (N, 4) xyxy px of the picture, on its pixels."""
        if self.scale == 1:
            return boxes
        rows, columns = self.before
        return (boxes + boxes.new_tensor((columns, rows, columns, rows))) / self.scale


def read_reduced(
    path: str | Path, stated_size: tuple[int, int] | None, needed: Needed
) -> DecodedImage:
    """Return an image file as `read_image` does, but one in JPEG that will be made smaller at an
    eighth, a quarter or half of its size, the smallest that has as many pixels as are `needed`:
    near the means of the pixels that they stand for, and quicker to be had.

    Raises as `read_image` does.
    """
    return _decode(read_bytes(path), str(path), stated_size, needed)


def as_rgb(image: Picture, name: str) -> np.ndarray:
    """Return an image given as a path, read by `read_image`, as a picture of Pillow, made of it as
    a file of that picture is, EXIF orientation included, or as a (H, W, 3) uint8 RGB array, as it
    is.

    name: what a message calls one without a path. Raises ImageReadError for a file or a picture
    that cannot be read, ValueError for an array of another shape or dtype, and for anything else.
    """
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, Image.Image):
        return _of_pillow(image, name)
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"{name} is a {type(image).__name__}, expected a path, an array or a picture of Pillow"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"{name} is {image.dtype} {image.shape}, expected uint8 (H, W, 3) RGB")
    return image


def read_bytes(path: str | Path) -> bytes:
    """Return an image file as it is; raises ImageReadError when it is missing, a dangling link, no
    regular file, or cannot be opened.
    """
    if fault := fault_of(path):
        raise ImageReadError(f"image file {path} {fault}")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ImageReadError(f"image file {path} cannot be read: {error}") from None


def read_size(path: str | Path) -> tuple[int, int]:
    """Return the (h, w) px that an image file has once `read_image` has turned it upright, told by
    its header; no pixel is decoded but those of TIFF files.

    Raises ImageReadError as `read_image` does, but for damage behind the header.
    """
    if fault := fault_of(path):
        raise ImageReadError(f"image file {path} {fault}")
    try:
        with _own_settings(), Image.open(path) as image:
            _require_size(*image.size)
            if image.format == "TIFF":
                image.load()  # which turns it; what its header says until then, versions differ in
            swap, _, _ = _UPRIGHT[_orientation(image)]
            width, height = image.size
    except UnidentifiedImageError:
        what = _what_it_is(read_bytes(path))
        raise ImageReadError(f"image file {path} cannot be read: {what}") from None
    except _DECODER_ERRORS as error:
        raise ImageReadError(f"image file {path} cannot be read: {_reason(error)}") from None
    return (width, height) if swap else (height, width)


def decode_image(data: bytes, name: str, stated_size: tuple[int, int] | None = None) -> np.ndarray:
    """Return an encoded image as (H, W, 3) uint8 RGB, C-contiguous and writable, turned as its EXIF
    orientation says; one in damaged EXIF data that cannot be read counts as none.

    Grey, palette, 1-bit and CMYK images become RGB; of an animated image the first frame is taken;
    an alpha channel is dropped and the colours
    under it kept, as detection toolkits have it; 16-bit values are scaled by 1/257 (colour: their
    high byte), not clipped. name: of the file, for messages. stated_size: (h, w) px that the
    annotations give, 0 where they do not. When it fits only the pixels as stored, the labels were
    made on those, so they are returned unturned (TIFF excepted: always turned). Raises
    ImageReadError for data that are truncated, no image, of 32-bit pixels, or of more pixels than
    DETRES_MAX_PIXELS allows; ValueError naming file and sizes when the stated size fits neither
    way.
    """
    return _decode(data, name, stated_size, None).pixels


def _decode(
    data: bytes, name: str, stated_size: tuple[int, int] | None, needed: Needed | None
) -> DecodedImage:
    stored = decode_stored(data, name, needed)
    if stated_size is None or stored.fits_upright(stated_size):
        return DecodedImage(
            stored.upright(), stored.upright_size, stored.scale, stored.upright_before
        )
    if not stored.fits_as_stored(stated_size):
        (height, width), (upright_height, upright_width) = stated_size, stored.upright_size
        raise ValueError(
            f"{name}: the annotations say {width}x{height} px, the file is "
            f"{upright_width}x{upright_height}; boxes would be misplaced. Correct the size in the "
            "annotations, or the file"
        )
    return DecodedImage(np.ascontiguousarray(stored.pixels), stored.size, stored.scale)


class StoredImage(NamedTuple):
    """Pixels uint8 RGB as a file of `size` (H, W) px stores them, (H, W, 3) or as a DecodedImage
    has them at a `scale`, and the EXIF orientation, 1 (upright) to 8, in which they are to be
    shown.
    """

    pixels: np.ndarray
    orientation: int
    size: tuple[int, int]
    scale: int = 1

    @property
    def upright_size(self) -> tuple[int, int]:
        """The (h, w) px of the picture upright."""
        return self.size[::-1] if _UPRIGHT[self.orientation][0] else self.size

    @property
    def upright_before(self) -> tuple[int, int]:
        """The (rows, columns) px by which the pixels begin before the picture upright: what the
        last of those stored have too much, where they come to be the first.
        """
        _, *flips = _UPRIGHT[self.orientation]
        height, width = (
            -side % self.scale if flip else 0
            for side, flip in zip(self.upright_size, flips, strict=True)
        )
        return height, width

    def fits_upright(self, stated_size: tuple[int, int]) -> bool:
        """Whether a size (h, w) px that annotations state, 0 where they do not, is that of the
        picture upright.
        """
        return min(stated_size) <= 0 or tuple(stated_size) == self.upright_size

    def fits_as_stored(self, stated_size: tuple[int, int]) -> bool:
        """Whether a size (h, w) px that annotations state is that of the pixels as stored."""
        return tuple(stated_size) == self.size

    def upright(self) -> np.ndarray:
        """Return the pixels (h, w, 3) turned as the orientation says, C-contiguous."""
        swap, flip_rows, flip_columns = _UPRIGHT[self.orientation]
        pixels = self.pixels.swapaxes(0, 1) if swap else self.pixels
        pixels = pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
        return np.ascontiguousarray(pixels)


def upright_boxes(boxes: np.ndarray, size: tuple[int, int], orientation: int) -> np.ndarray:
    """Return boxes (M, 4) float64 xyxy px on the pixels as stored, in the picture upright.

    size: (h, w) px of the picture upright. orientation: EXIF, 1 to 8.
    """
    swap, flip_rows, flip_columns = _UPRIGHT[orientation]
    x1, y1, x2, y2 = (boxes[:, [1, 0, 3, 2]] if swap else boxes).T
    height, width = size
    if flip_rows:
        y1, y2 = height - y2, height - y1
    if flip_columns:
        x1, x2 = width - x2, width - x1
    return np.stack((x1, y1, x2, y2), axis=1)


def decode_stored(data: bytes, name: str, needed: Needed | None = None) -> StoredImage:
    """Return an encoded image as `decode_image` does, but its pixels as the file stores them; those
    of TIFF files are turned and said upright. needed: see read_reduced; None: at full size. Raises
    ImageReadError as `decode_image` does.
    """
    try:
        with _own_settings(), Image.open(io.BytesIO(data)) as image:
            _require_size(*image.size)
            size, scale, pixels = image.size[::-1], 1, None
            if image.format == "JPEG" and image.mode in ("RGB", "L"):
                scale = 1 if needed is None else _scale_for(size, needed(size))
                pixels = _decode_jpeg(data, scale)
            if pixels is None:
                pixels = _to_rgb(image)
                size, scale = pixels.shape[:2], 1
            # Asked for after decoding: Pillow turns TIFF files by itself and then clears the tag.
            return StoredImage(pixels, _orientation(image), size, scale)
    except UnidentifiedImageError:
        raise ImageReadError(f"image file {name} cannot be read: {_what_it_is(data)}") from None
    except _DECODER_ERRORS as error:
        raise ImageReadError(f"image file {name} cannot be read: {_reason(error)}") from None


def _of_pillow(image: Image.Image, name: str) -> np.ndarray:
    """A picture of Pillow as (H, W, 3) uint8 RGB, turned upright."""
    try:
        with _own_settings():
            _require_size(*image.size)
            pixels = _to_rgb(image)
            return StoredImage(pixels, _orientation(image), pixels.shape[:2]).upright()
    except _DECODER_ERRORS as error:
        raise ImageReadError(f"{name} cannot be read: {_reason(error)}") from None


@contextlib.contextmanager
def _own_settings() -> Iterator[None]:
    """Within, Pillow's limit on pixels, a global without a setting of ours, is off, and so are its
    warnings of damaged EXIF data, whose reader is that of TIFF tags.
    """
    earlier, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.TiffImagePlugin")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = earlier


def _require_size(width: int, height: int) -> None:
    """Raise ValueError for an image of too many pixels, told by its header."""
    given = os.environ.get(_PIXEL_SETTING) or str(_PIXEL_LIMIT)
    if not (given.isascii() and given.isdigit()):
        raise ValueError(
            f"the environment variable {_PIXEL_SETTING} is {shown(given)}, expected a number of "
            "pixels"
        )
    limit = int(given)
    if width * height > limit:
        raise ValueError(
            f"it has {width}x{height} px, more than the {limit} that are allowed; set the "
            f"environment variable {_PIXEL_SETTING}={width * height} to read it all the same"
        )


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where there is none that is known or the EXIF data are
    damaged.
    """
    try:
        found = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _DECODER_ERRORS:
        return 1
    return int(found) if found in _UPRIGHT else 1


def _what_it_is(data: bytes) -> str:
    """What data that are no known image look like."""
    if not data:
        return "the file is empty"
    kinds = {
        "HEIC or another format of its family": data[4:8] == b"ftyp",
        "a page of HTML, not an image": data.lstrip()[:1] == b"<",
        "a pointer of Git LFS; fetch the file itself": data.startswith(b"version https://git-lfs"),
    }
    kind = next((kind for kind, fits in kinds.items() if fits), None)
    return f"it is {kind}" if kind else "it is no image, or damaged at its beginning"


def _reason(error: Exception) -> str:
    """The first line of what a decoder raised, without the address of the buffer it read."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"\s*<_io\.BytesIO[^>]*>", " data", text)


def _scale_for(size: tuple[int, int], needed: tuple[int, int]) -> int:
    """The largest scale at which an image of `size` has the pixels that are needed in both
    directions; 1: none has.
    """
    fitting = (
        scale
        for scale in _REDUCED
        if all(-(-side // scale) >= least for side, least in zip(size, needed, strict=True))
    )
    return next(fitting, 1)


def _decode_jpeg(data: bytes, scale: int) -> np.ndarray | None:
    """OpenCV's decoder gives Pillow's pixels in less time, but fills up a truncated file: None
    unless the last scan has its end.
    """
    last_scan = data.rfind(b"\xff\xda")
    if last_scan < 0 or data.find(b"\xff\xd9", last_scan) < 0:
        return None
    encoded = np.frombuffer(data, np.uint8)
    if scale == 1:
        return cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    reduced = cv2.imdecode(encoded, _REDUCED[scale] | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if reduced is None else cv2.cvtColor(reduced, cv2.COLOR_BGR2RGB)


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

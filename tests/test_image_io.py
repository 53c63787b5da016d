"""Image files of every kind -> RGB arrays; resizing; padding."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from detres.image_io import (
    IMAGE_SUFFIXES,
    ImageReadError,
    pad_images,
    read_image,
    resize_image,
    resized_size,
)

ORIENTATION = 0x0112


@pytest.fixture
def photo() -> np.ndarray:
    """(24, 40, 3), smooth enough for JPEG to keep, with no symmetry: any turn or channel swap is
    seen.
    """
    rows, columns = np.mgrid[0:24, 0:40]
    return np.stack((rows * 10, columns * 6, 255 - rows * 5 - columns * 3), axis=2).astype(np.uint8)


def save(pixels: np.ndarray, path: Path, orientation: int | None = None, **options: object) -> Path:
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, exif=exif, **options)
    return path


def png_16_bit(values: np.ndarray, path: Path) -> Path:
    """Write (H, W) or (H, W, 3) uint16 as PNG by hand: Pillow writes no 16-bit colour."""
    height, width = values.shape[:2]
    color_type = 0 if values.ndim == 2 else 2
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )
    return path


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_every_suffix_is_read_as_contiguous_rgb(
    tmp_path: Path, photo: np.ndarray, suffix: str
) -> None:
    options = {".jpg": {"quality": 95}, ".jpeg": {"quality": 95}, ".webp": {"lossless": True}}.get(
        suffix, {}
    )
    image = read_image(save(photo, tmp_path / f"a{suffix}", **options))
    assert image.shape == (24, 40, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable
    assert np.abs(image.astype(int) - photo).max() <= (12 if "jp" in suffix else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_exif_orientation_is_applied(
    tmp_path: Path, photo: np.ndarray, suffix: str, orientation: int
) -> None:
    path = save(photo, tmp_path / f"a{suffix}", orientation)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    image = read_image(path)
    np.testing.assert_array_equal(image, expected)
    assert image.shape == ((40, 24, 3) if orientation >= 5 else (24, 40, 3))
    assert image.flags.c_contiguous


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_meaningless_orientation_is_ignored(
    tmp_path: Path, photo: np.ndarray, orientation: int
) -> None:
    assert read_image(save(photo, tmp_path / "a.jpg", orientation)).shape == (24, 40, 3)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_stated_size_decides_whether_labels_follow_stored_or_shown_pixels(
    tmp_path: Path, photo: np.ndarray, suffix: str
) -> None:
    path = save(photo, tmp_path / f"a{suffix}", 6)
    plain = read_image(save(photo, tmp_path / f"plain{suffix}"))
    np.testing.assert_array_equal(read_image(path, stated_size=(24, 40)), plain)
    np.testing.assert_array_equal(read_image(path, stated_size=(40, 24)), np.rot90(plain, -1))
    np.testing.assert_array_equal(read_image(path, stated_size=(0, 0)), np.rot90(plain, -1))


def test_half_turn_is_applied_where_stated_size_fits_both(
    tmp_path: Path, photo: np.ndarray
) -> None:
    path = save(photo, tmp_path / "a.png", 3)
    np.testing.assert_array_equal(read_image(path, stated_size=(24, 40)), photo[::-1, ::-1])


def test_stated_size_that_fits_neither_names_file_and_both_sizes(
    tmp_path: Path, photo: np.ndarray
) -> None:
    path = save(photo, tmp_path / "a.jpg", 6)
    with pytest.raises(
        ValueError, match=r"a\.jpg: the annotations say 30x20 px, the file is 24x40"
    ):
        read_image(path, stated_size=(20, 30))


def test_grey_jpeg_has_three_equal_channels(tmp_path: Path, photo: np.ndarray) -> None:
    grey = photo[:, :, 0]
    image = read_image(save(grey, tmp_path / "a.jpg", quality=95))
    assert np.abs(image.astype(int) - grey[:, :, None]).max() <= 4
    assert (image[:, :, 0] == image[:, :, 2]).all()


def test_palette_1_bit_and_alpha_keep_their_colours(tmp_path: Path) -> None:
    colours = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [9, 8, 7]]], np.uint8)
    palette = Image.fromarray(colours).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "palette.png", transparency=0)
    np.testing.assert_array_equal(read_image(tmp_path / "palette.png"), colours)

    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bit.png"), [[[255] * 3, [0] * 3]])

    transparent = np.dstack((colours, np.array([[0, 255], [128, 0]], np.uint8)))
    Image.fromarray(transparent).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), colours)


def test_cmyk_jpeg_is_converted(tmp_path: Path) -> None:
    ink = np.zeros((16, 16, 4), np.uint8)
    ink[:, :, 0] = 255  # full cyan: no red
    Image.fromarray(ink, mode="CMYK").save(tmp_path / "a.jpg", quality=100)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - (0, 255, 255)).max() <= 3


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 257, 300, 32896, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif")
    for path in (png_16_bit(values, tmp_path / "a.png"), tmp_path / "a.tif"):
        np.testing.assert_array_equal(read_image(path)[0, :, 0], [0, 1, 1, 128, 255])


def test_16_bit_colour_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[[0, 65535, 32896], [257, 514, 40000]]], np.uint16)
    image = read_image(png_16_bit(values, tmp_path / "a.png"))
    assert np.abs(image.astype(int) - values / 257).max() <= 1


def test_pixels_without_an_agreed_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((4, 4), 70000, np.int32)).save(tmp_path / "int.tif")
    for name in ("float.tif", "int.tif"):
        with pytest.raises(ImageReadError, match=rf"{name} cannot be read.*no agreed range"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
def test_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = save(noise, tmp_path / f"cut{suffix}")
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageReadError, match=rf"cut\{suffix}"):
            read_image(path)


def test_truncation_after_an_embedded_thumbnail_is_noticed(
    tmp_path: Path, photo: np.ndarray
) -> None:
    """The end marker of the thumbnail inside EXIF must not pass for that of the image."""
    whole = save(photo, tmp_path / "whole.jpg").read_bytes()
    thumbnail = b"Exif\0\0" + whole
    app1 = b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    cut = tmp_path / "cut.jpg"
    cut.write_bytes((whole[:2] + app1 + whole[2:])[:-40])
    with pytest.raises(ImageReadError, match=r"cut\.jpg"):
        read_image(cut)


def test_bytes_appended_to_a_whole_jpeg_do_not_matter(tmp_path: Path, photo: np.ndarray) -> None:
    path = save(photo, tmp_path / "a.jpg", 6)
    before = read_image(path)
    path.write_bytes(path.read_bytes() + b"camera notes" * 1000)
    np.testing.assert_array_equal(read_image(path), before)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_raise_an_image_error_or_nothing(tmp_path: Path, photo: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for suffix in (".png", ".tif", ".bmp", ".webp", ".jpg"):
        path = save(photo, tmp_path / f"a{suffix}", 6)
        whole = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[rng.integers(0, len(damaged), 8)] = rng.integers(0, 256, 8)
            path.write_bytes(damaged.tobytes())
            try:
                image = read_image(path)
            except ImageReadError:
                refused += 1
            else:
                assert image.shape[2] == 3
    assert refused > 100


def test_missing_empty_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match=r"gone\.jpg does not exist"):
        read_image(tmp_path / "gone.jpg")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("empty.jpg", "text.jpg", "folder.jpg"):
        with pytest.raises(ImageReadError, match=rf"{name} cannot be read"):
            read_image(tmp_path / name)
    assert issubclass(ImageReadError, OSError)


def test_photographs_are_read_as_by_pillow(shared_data) -> None:
    files = sorted((shared_data("coco_mini") / "val2017").glob("*.jpg"))[:20]
    files += sorted((shared_data("bccd") / "BCCD" / "JPEGImages").glob("*.jpg"))[:5]
    assert len(files) == 25
    for path in files:
        with Image.open(path) as image:
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        np.testing.assert_array_equal(read_image(path), expected, err_msg=path.name)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((375, 500), (600, 800)),
        ((500, 375), (800, 600)),
        ((480, 640), (600, 800)),
        ((200, 500), (400, 1000)),  # the cap: 600 x 1500 otherwise
        ((600, 1000), (600, 1000)),
        ((1200, 3000), (400, 1000)),
        ((1, 5000), (1, 1000)),
    ],
)
def test_resized_size_by_hand(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_size(*size, shorter=600, longer=1000) == expected


def test_resized_size_never_exceeds_the_cap_and_keeps_the_shape() -> None:
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 3000, (500, 2)).tolist():
        new = resized_size(height, width, shorter=600, longer=1000)
        assert max(new) <= 1000
        assert min(new) >= 1
        assert min(new) == 600 or max(new) == 1000
        scale = new[0] / height if height > width else new[1] / width
        assert abs(new[0] - height * scale) <= 1
        assert abs(new[1] - width * scale) <= 1


def test_resize_image_is_bilinear(photo: np.ndarray) -> None:
    assert resize_image(photo, (24, 40)) is photo
    ours = resize_image(photo, (48, 100))
    # Independent witness: torch's bilinear with half-pixel centres and no antialiasing, as
    # OpenCV's.
    tensor = torch.from_numpy(photo).permute(2, 0, 1)[None].float()
    theirs = (
        torch.nn.functional.interpolate(tensor, (48, 100), mode="bilinear", align_corners=False)[0]
        .permute(1, 2, 0)
        .numpy()
    )
    assert ours.shape == (48, 100, 3)
    assert np.abs(ours - theirs).max() <= 1


def test_pad_images_puts_zeros_right_and_below() -> None:
    images = [np.full((30, 40, 3), 7, np.uint8), np.full((33, 20, 3), 9, np.uint8)]
    batch = pad_images(images, original_sizes=[(60, 80), (66, 40)], ids=[4, "b"])
    assert batch.pixels.shape == (2, 3, 64, 64)
    assert batch.pixels.dtype == torch.uint8
    assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
    assert batch.sizes == ((30, 40), (33, 20))
    assert batch.original_sizes == ((60, 80), (66, 40))
    assert batch.ids == (4, "b")
    assert (batch.pixels[0, :, :30, :40] == 7).all()
    assert batch.pixels[0].sum() == 7 * 30 * 40 * 3
    assert batch.pixels[1].sum() == 9 * 33 * 20 * 3


def test_pad_images_takes_the_smallest_multiple() -> None:
    image = np.ones((32, 33, 3), np.uint8)
    assert pad_images([image], original_sizes=[(32, 33)], ids=[1]).pixels.shape == (1, 3, 32, 64)
    assert pad_images([image], original_sizes=[(32, 33)], ids=[1], multiple=1).pixels.shape == (
        1,
        3,
        32,
        33,
    )


def test_pad_images_refuses_nothing_and_unequal_lengths() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        pad_images([], original_sizes=[], ids=[])
    image = np.ones((8, 8, 3), np.uint8)
    with pytest.raises(ValueError, match="2 images has 1 original sizes and 2 ids"):
        pad_images([image, image], original_sizes=[(8, 8)], ids=[1, 2])


@pytest.mark.parametrize(
    "image",
    [np.ones((8, 8), np.uint8), np.ones((8, 8, 4), np.uint8), np.ones((8, 8, 3), np.float32)],
)
def test_pad_images_names_an_image_of_another_kind(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"image b is .*, expected uint8 \(H, W, 3\)"):
        pad_images(
            [np.ones((8, 8, 3), np.uint8), image], original_sizes=[(8, 8)] * 2, ids=["a", "b"]
        )


def test_pad_images_takes_views_with_negative_strides(photo: np.ndarray) -> None:
    batch = pad_images([photo[:, ::-1, ::-1]], original_sizes=[(24, 40)], ids=[1])
    np.testing.assert_array_equal(
        batch.pixels[0, :, :24, :40].permute(1, 2, 0).numpy(), photo[:, ::-1, ::-1]
    )

"""Image files of every kind -> RGB arrays."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from detres.images import decode
from detres.images.decode import (
    IMAGE_SUFFIXES,
    ImageReadError,
    as_rgb,
    decode_stored,
    read_image,
    read_size,
    upright_boxes,
)

ORIENTATION = 0x0112


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
    lossy = suffix in (".jpg", ".jpeg", ".jfif", ".jpe")
    options = {"quality": 95} if lossy else {"lossless": True} if suffix == ".webp" else {}
    if suffix == ".gif":  # 256 colours
        photo = (photo // 64) * 64
    image = read_image(save(photo, tmp_path / f"a{suffix}", **options))
    assert image.shape == (24, 40, 3)
    assert image.dtype == np.uint8
    assert image.flags.c_contiguous
    assert image.flags.writeable
    assert np.abs(image.astype(int) - photo).max() <= (12 if lossy else 0)


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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_turned_with_the_pixels(
    tmp_path: Path, photo: np.ndarray, orientation: int
) -> None:
    """The pixels under a box stay the same ones."""
    path = save(photo, tmp_path / "a.png", orientation)
    stored = decode_stored(path.read_bytes(), "a.png")
    assert stored.orientation == orientation
    np.testing.assert_array_equal(stored.pixels, photo)
    assert stored.upright_size == stored.upright().shape[:2]

    boxes = np.array([[3.0, 5.0, 10.0, 7.0], [0.0, 0.0, 40.0, 24.0]])
    turned = upright_boxes(boxes, stored.upright_size, orientation)
    (x1, y1, x2, y2), (a1, b1, a2, b2) = boxes[0].astype(int), turned[0].astype(int)
    seen = np.sort(stored.upright()[b1:b2, a1:a2].reshape(-1, 3), axis=0)
    np.testing.assert_array_equal(seen, np.sort(photo[y1:y2, x1:x2].reshape(-1, 3), axis=0))
    height, width = stored.upright_size
    assert turned[1].tolist() == [0, 0, width, height]
    assert upright_boxes(boxes[:0], stored.upright_size, orientation).shape == (0, 4)


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
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html>")
    (tmp_path / "phone.jpg").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (tmp_path / "link.jpg").symlink_to("nowhere.jpg")
    os.mkfifo(tmp_path / "fifo.jpg")
    for name, why in {
        "empty.jpg": "cannot be read: the file is empty",
        "text.jpg": "cannot be read: it is no image, or damaged at its beginning",
        "page.jpg": "cannot be read: it is a page of HTML, not an image",
        "phone.jpg": "cannot be read: it is HEIC or another format of its family",
        "folder.jpg": "is a folder, expected a file",
        "link.jpg": "is a link to nowhere.jpg, which is not there",
        "fifo.jpg": "is a FIFO, expected a file",
    }.items():
        with pytest.raises(ImageReadError, match=f"{name} {why}$"):
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


def test_as_rgb_reads_a_path_and_gives_an_array_back_as_it_is(
    tmp_path: Path, photo: np.ndarray
) -> None:
    path = save(photo, tmp_path / "a.png", 6)
    for given in (path, str(path)):
        np.testing.assert_array_equal(as_rgb(given, "image 0"), np.rot90(photo, -1))
    assert as_rgb(photo, "image 0") is photo
    none = np.zeros((0, 4, 3), np.uint8)
    assert as_rgb(none, "image 0") is none


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_picture_of_pillow_is_what_its_file_is(
    tmp_path: Path, photo: np.ndarray, orientation: int, suffix: str
) -> None:
    path = save(photo, tmp_path / f"a{suffix}", orientation)
    with Image.open(path) as image:
        np.testing.assert_array_equal(as_rgb(image, "image 0"), read_image(path))
        np.testing.assert_array_equal(as_rgb(image, "image 0"), read_image(path))
        upright = ImageOps.exif_transpose(image)
    np.testing.assert_array_equal(as_rgb(upright, "image 0"), read_image(path))


def test_pictures_of_pillow_of_every_mode_become_rgb(photo: np.ndarray) -> None:
    image = Image.fromarray(photo)
    for mode in ("1", "L", "LA", "P", "RGBA", "CMYK", "I;16"):
        given = image.convert("L").convert(mode) if mode == "I;16" else image.convert(mode)
        found = as_rgb(given, "image 0")
        assert (found.shape, found.dtype) == (photo.shape, np.uint8)
        assert found.flags["C_CONTIGUOUS"]
    np.testing.assert_array_equal(as_rgb(image, "image 0"), photo)


def test_a_picture_of_pillow_that_cannot_be_read_is_named(
    tmp_path: Path, photo: np.ndarray
) -> None:
    path = save(photo, tmp_path / "a.jpg")
    path.write_bytes(path.read_bytes()[:-100])
    with Image.open(path) as image, pytest.raises(ImageReadError, match="image 3 cannot be read"):
        as_rgb(image, "image 3")


@pytest.mark.parametrize(
    ("image", "shown"),
    [
        (np.zeros((4, 5, 3), np.float32), r"float32 \(4, 5, 3\)"),
        (np.zeros((4, 5, 3), np.int64), r"int64 \(4, 5, 3\)"),
        (np.zeros((4, 5), np.uint8), r"uint8 \(4, 5\)"),
        (np.zeros((4, 5, 4), np.uint8), r"uint8 \(4, 5, 4\)"),
        (np.zeros((3, 4, 5), np.uint8), r"uint8 \(3, 4, 5\)"),
        (np.zeros((1, 4, 5, 3), np.uint8), r"uint8 \(1, 4, 5, 3\)"),
    ],
)
def test_as_rgb_names_an_array_of_another_kind(image: np.ndarray, shown: str) -> None:
    with pytest.raises(ValueError, match=rf"image 7 is {shown}, expected uint8 \(H, W, 3\) RGB"):
        as_rgb(image, "image 7")


def test_as_rgb_names_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ImageReadError, match=r"gone\.png does not exist"):
        as_rgb(tmp_path / "gone.png", "image 7")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ImageReadError, match=r"text\.png cannot be read"):
        as_rgb(str(tmp_path / "text.png"), "image 7")


def test_the_limit_on_pixels_is_a_setting(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(photo, tmp_path / "a.png")  # 40x24 px
    monkeypatch.setenv("DETRES_MAX_PIXELS", "960")
    np.testing.assert_array_equal(read_image(path), photo)
    monkeypatch.setenv("DETRES_MAX_PIXELS", "959")
    with pytest.raises(
        ImageReadError, match=r"it has 40x24 px, more than the 959 .* DETRES_MAX_PIXELS=960 to"
    ):
        read_image(path)
    for nonsense in ("1e9", "-1", "959 "):
        monkeypatch.setenv("DETRES_MAX_PIXELS", nonsense)
        with pytest.raises(
            ImageReadError, match=f"DETRES_MAX_PIXELS is '{nonsense}', expected a number of pixels"
        ):
            read_image(path)
    monkeypatch.setenv("DETRES_MAX_PIXELS", "")
    np.testing.assert_array_equal(read_image(path), photo)


def test_pillows_own_limit_is_neither_asked_nor_changed(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    np.testing.assert_array_equal(read_image(save(photo, tmp_path / "a.png")), photo)
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.delenv("DETRES_MAX_PIXELS", raising=False)
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", header), (b"IDAT", b"x")):
        bomb += struct.pack(">I", len(body)) + kind + body
        bomb += struct.pack(">I", zlib.crc32(kind + body))
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(ImageReadError, match=r"100000x100000 px, more than the 178956970"):
        read_image(tmp_path / "bomb.png")


def test_the_first_frame_of_an_animation_is_the_image(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(read_image(tmp_path / "a.gif"), np.full((4, 6, 3), (255, 0, 0)))


def test_damaged_exif_data_leave_the_image_upright(tmp_path: Path, photo: np.ndarray) -> None:
    whole = save(photo, tmp_path / "a.jpg", 6).read_bytes()
    at = whole.index(b"Exif\0\0") + 6
    (tmp_path / "a.jpg").write_bytes(whole[:at] + b"XX" + whole[at + 2 :])
    assert read_image(tmp_path / "a.jpg").shape == (24, 40, 3)


def with_exif(pixels: np.ndarray, tags: bytes) -> bytes:
    """A JPEG without a density of its own, whose EXIF segment holds `tags`: Pillow reads it for one
    when it opens the file, and again for the orientation.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    data = buffer.getvalue()
    assert data[2:4] == b"\xff\xe0"  # JFIF, which has the density
    rest = data[4 + int.from_bytes(data[4:6], "big") :]
    body = b"Exif\0\0" + tags
    return b"\xff\xd8\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + rest


# byte order, 42, offset 8, 2 tags: orientation 6, and a text of 64 bytes behind the directory
WHOLE_EXIF = (
    struct.pack("<2sHIH", b"II", 42, 8, 2)
    + struct.pack("<HHIHH", ORIENTATION, 3, 1, 6, 0)
    + struct.pack("<HHIII", 0x010E, 2, 64, 38, 0)
    + b"x" * 64
)


@pytest.mark.parametrize(
    ("length", "turned"),
    [(len(WHOLE_EXIF), True), (60, True), (30, True), (16, False), (9, False), (3, False)],
)
def test_exif_data_that_are_cut_short_say_nothing_but_what_is_there(
    tmp_path: Path, photo: np.ndarray, length: int, turned: bool
) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(with_exif(photo, WHOLE_EXIF[:length]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shape = read_image(path).shape
        assert read_size(path) == shape[:2]
    assert shape == ((40, 24, 3) if turned else (24, 40, 3))


def test_other_warnings_than_those_of_exif_data_are_heard() -> None:
    with pytest.warns(UserWarning, match="of ours"), decode._own_settings():
        warnings.warn("of ours", stacklevel=1)


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8])
def test_the_header_tells_the_size_that_the_image_is_read_in(
    tmp_path: Path, photo: np.ndarray, suffix: str, orientation: int | None
) -> None:
    pixels = np.ascontiguousarray(photo[:20, :33])
    form = {".jfif": "JPEG", ".jpe": "JPEG"}.get(suffix)
    try:
        path = save(pixels, tmp_path / f"a{suffix}", orientation, format=form)
    except (KeyError, OSError, ValueError):
        pytest.skip("a format without EXIF")
    assert read_size(path) == read_image(path).shape[:2]
    assert set(read_size(path)) == {20, 33}


def test_a_size_that_cannot_be_told_is_named(
    tmp_path: Path, photo: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content, message in (
        (b"", "the file is empty"),
        (b"no image", "it is no image"),
        (b"<html>", "a page of HTML"),
    ):
        (tmp_path / "bad.jpg").write_bytes(content)
        with pytest.raises(ImageReadError, match=rf"bad\.jpg cannot be read: .*{message}"):
            read_size(tmp_path / "bad.jpg")
    with pytest.raises(ImageReadError, match=r"gone\.jpg does not exist"):
        read_size(tmp_path / "gone.jpg")
    with pytest.raises(ImageReadError, match="is a folder, expected a file"):
        read_size(tmp_path)
    path = save(photo[:20, :33], tmp_path / "a.png")
    monkeypatch.setenv("DETRES_MAX_PIXELS", "659")
    with pytest.raises(ImageReadError, match="33x20 px, more than the 659"):
        read_size(path)
    monkeypatch.setenv("DETRES_MAX_PIXELS", "660")
    assert read_size(path) == (20, 33)

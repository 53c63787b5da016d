"""Resizing: interpolation in float64, OpenCV, torch and torchvision are the witnesses."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms import Resize

from detres.images.resize import (
    Resizing,
    resize_image,
    resized_size,
    resized_window,
    scaled_size,
)
from tests.images.pixels import SHIFT, noise, off_by, smooth, steps_of


def bilinear(
    image: np.ndarray, size: tuple[int, int], corner: tuple[int, int], side: int
) -> np.ndarray:
    """The window of the resized image in float64, pixel by pixel; pixel centres at + 0.5, the
    border repeated.
    """
    height, width = image.shape[:2]
    window = np.zeros((side, side, 3))
    for row in range(side):
        y = min(max((corner[0] + row + 0.5) * height / size[0] - 0.5, 0), height - 1)
        y0 = int(y)
        y1 = min(y0 + 1, height - 1)
        for column in range(side):
            x = min(max((corner[1] + column + 0.5) * width / size[1] - 0.5, 0), width - 1)
            x0 = int(x)
            x1 = min(x0 + 1, width - 1)
            top = image[y0, x0] * (1 - (x - x0)) + image[y0, x1] * (x - x0)
            bottom = image[y1, x0] * (1 - (x - x0)) + image[y1, x1] * (x - x0)
            window[row, column] = top * (1 - (y - y0)) + bottom * (y - y0)
    return window


def random_window(seed: int, side: int) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
    """Return (H, W) of an image, (h, w) it is resized to and the corner of a window of `side`
    px.
    """
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(30, 150, 2))
    size = scaled_size(height, width, int(rng.integers(side, 220)))
    return (
        (height, width),
        size,
        (int(rng.integers(0, size[0] - side + 1)), int(rng.integers(0, size[1] - side + 1))),
    )


# ---- the sizes ----


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
    assert resized_size(*size, short_side=600, max_side=1000) == expected


@pytest.mark.parametrize("resizing", ["cv2", "pillow", "torchvision"])
def test_a_strip_keeps_a_pixel(resizing: Resizing) -> None:
    """1333 / 4000 of a pixel, by each one's rounding: none."""
    for size in ((4000, 1), (1, 4000)):
        new = resized_size(*size, short_side=800, max_side=1333, resizing=resizing)
        assert new == tuple(min(side, 1333) for side in size)
        image = np.full((*size, 3), 7, dtype=np.uint8)
        assert (resize_image(image, new, resizing) == 7).all()


def test_resized_size_never_exceeds_the_cap_and_keeps_the_shape() -> None:
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 3000, (500, 2)).tolist():
        new = resized_size(height, width, short_side=600, max_side=1000)
        assert max(new) <= 1000
        assert min(new) >= 1
        assert min(new) == 600 or max(new) == 1000
        scale = new[0] / height if height > width else new[1] / width
        assert abs(new[0] - height * scale) <= 1
        assert abs(new[1] - width * scale) <= 1


def test_scaled_sizes_by_hand() -> None:
    assert scaled_size(100, 205, 33) == (33, 67)  # 33 * 205 / 100 = 67.65
    assert scaled_size(205, 100, 33) == (67, 33)
    assert scaled_size(640, 480, 256) == (341, 256)  # 341.33
    assert scaled_size(7, 7, 224) == (224, 224)
    assert scaled_size(1, 3, 2) == (2, 6)


def test_scaled_sizes_are_torchvisions() -> None:
    rng = np.random.default_rng(0)
    for height, width, short_side in rng.integers(1, 60, (200, 3)).tolist():
        assert scaled_size(height, width, short_side) == tuple(
            Resize(short_side)(torch.zeros(1, height, width)).shape[1:]
        )


# ---- the pixels ----


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


@pytest.mark.parametrize("corner", [(0, 0), (0, 14), (24, 0), (24, 14), (5, 9)])
def test_a_window_at_the_images_own_size_is_its_pixels(corner: tuple[int, int]) -> None:
    image = noise(40, 30)
    window = resized_window(image, (40, 30), corner, 16)
    assert window.dtype == np.uint8
    assert np.array_equal(window, image[corner[0] : corner[0] + 16, corner[1] : corner[1] + 16])


def test_a_window_twice_as_large_by_hand() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    image[:, 1] = 100  # columns 0 and 100, read at -0.25 (border), 0.25, 0.75 and 1.25 (border)
    image[1] += 80  # and rows: 80 more at the bottom
    window = resized_window(image, (4, 4), (0, 0), 4)
    assert window[0, :, 0].tolist() == [0, 25, 75, 100]
    assert window[:, 0, 2].tolist() == [0, 20, 60, 80]
    assert window[2, 1].tolist() == [85] * 3


@pytest.mark.parametrize("factor", [2, 4, 8, 0.5, 0.25])
def test_windows_of_noise_are_exact_where_the_coordinates_are_32nds_of_a_pixel(
    factor: float,
) -> None:
    image = noise(96, 112)
    size = (round(96 * factor), round(112 * factor))
    for corner in ((0, 0), (size[0] - 20, size[1] - 20), (3, 5)):
        window = resized_window(image, size, corner, 20)
        assert off_by(window, bilinear(image, size, corner, 20)) <= 0.5 + 1e-9  # rounding alone


@pytest.mark.parametrize("seed", range(12))
def test_any_window_is_the_one_interpolated_in_float(seed: int) -> None:
    shape, size, corner = random_window(seed, 20)
    image = smooth(*shape, seed)
    tolerance = 0.5 + SHIFT * steps_of(image) + 0.01  # rounding, misplacement, weights of 15 bits
    assert tolerance < 2
    window = resized_window(image, size, corner, 20)
    assert off_by(window, bilinear(image, size, corner, 20)) <= tolerance


@pytest.mark.parametrize("seed", range(40))
def test_a_window_is_cut_from_the_image_that_opencv_resizes(seed: int) -> None:
    shape, size, corner = random_window(seed, 24)
    image = smooth(*shape, seed)
    resized = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
    expected = resized[corner[0] : corner[0] + 24, corner[1] : corner[1] + 24]
    assert SHIFT * steps_of(image) < 1.5
    # The window is off by that and its rounding; resize, whose weights have 11 bits, by less than
    # 1: together below 3.
    assert off_by(resized_window(image, size, corner, 24), expected) <= 2


SIDES = [
    (480, 640),
    (640, 480),
    (427, 640),
    (375, 500),
    (1, 7),
    (333, 1000),
    (600, 600),
    (99, 1999),
]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((427, 640), (800, 1199)),  # 1199.06
        ((333, 1000), (444, 1333)),  # capped: 443.889
        ((600, 600), (800, 800)),
        ((641, 480), (1068, 800)),  # 1068.33
        ((480, 641), (800, 1068)),
    ],
)
def test_sizes_of_detectron2_by_hand(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_size(*size, short_side=800, max_side=1333, resizing="pillow") == expected


@pytest.mark.parametrize("size", SIDES)
def test_sizes_and_pixels_of_torchvisions_detectors(size: tuple[int, int]) -> None:
    transform = GeneralizedRCNNTransform(80, 133, [0.0] * 3, [1.0] * 3)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    wanted, _ = transform.resize(torch.from_numpy(image).permute(2, 0, 1).float(), None)
    height, width = resized_size(*size, short_side=80, max_side=133, resizing="torchvision")
    assert (height, width) == tuple(wanted.shape[1:])
    resized = resize_image(image, (height, width), "torchvision")
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized, wanted.permute(1, 2, 0).numpy(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [(37, 53), (200, 90), (64, 64)])
def test_pixels_of_detectron2_are_pillows(size: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    resized = resize_image(image, size, "pillow")
    wanted = Image.fromarray(image).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    assert resized.dtype == np.uint8
    assert np.array_equal(resized, np.asarray(wanted))
    of_opencv = resize_image(image, size)
    assert np.array_equal(resized, of_opencv) is (size == (64, 64))

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from detres.classification.data.object_crops import crop_objects
from detres.detection.annotations import Annotations
from detres.images.decode import ImageReadError
from tests.helpers import CLASSES

Object = tuple[tuple[float, float, float, float], int]


def write_set(
    root: Path,
    images: list[np.ndarray],
    objects: list[list[Object]],
    *,
    crowd: tuple[int, ...] = (),
    difficult: tuple[int, ...] = (),
) -> Annotations:
    """Write images as PNG files and annotate them; crowd, difficult: rows of all objects that are
    such.
    """
    files = [root / f"{number}.png" for number in range(len(images))]
    for file, image in zip(files, images, strict=True):
        Image.fromarray(image).save(file)
    flat = [one for of_image in objects for one in of_image]
    rows = np.arange(len(flat))
    boxes = np.array([box for box, _ in flat], np.float64).reshape(-1, 4)
    return Annotations(
        source="a set",
        class_map=CLASSES,
        image_ids=np.arange(len(images)),
        image_files=np.array([str(file) for file in files]),
        image_sizes=np.array([image.shape[:2] for image in images], np.int32).reshape(-1, 2),
        offsets=np.cumsum([0, *map(len, objects)]),
        boxes=boxes,
        labels=np.array([label for _, label in flat], np.int64),
        areas=(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]),
        crowd=np.isin(rows, crowd),
        difficult=np.isin(rows, difficult),
        ids=rows,
        dropped={},
    )


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        (
            (10, 5, 20, 10),
            (2, 14),
            (9, 21),
        ),  # side 10 * 1.2 = 12 about (15, 7.5); half to even: top 1.5 -> 2
        (
            (12, 4, 17, 14),
            (3, 15),
            (8, 20),
        ),  # the taller side counts: 12 about (14.5, 9); left 8.5 -> 8
        ((0, 0, 5, 5), (0, 6), (0, 6)),  # half a pixel out at the top left
        (
            (26, 16, 30, 20),
            (15, 20),
            (25, 30),
        ),  # side 4.8 -> 5 about (28, 18): shifted by one to the left and up
        ((0, 8, 5, 18), (7, 19), (0, 12)),  # about (2.5, 13): left -3.5 -> 0
        ((0, 0, 30, 10), (0, 20), (5, 25)),  # 36 px do not fit into 20 rows: 20 about (15, 5)
        (
            (5.25, 5.25, 5.5, 5.75),
            (5, 6),
            (5, 6),
        ),  # less than a pixel: one, about (5.4, 5.5); left 4.9 -> 5
        ((5, 5, 5, 5), (4, 5), (4, 5)),  # nothing: one pixel all the same; 4.5 -> 4
        ((-8, -2, 2, 8), (0, 12), (0, 12)),  # sticks out of the image itself
    ],
)
def test_squares_by_hand(
    tmp_path: Path, box: tuple[float, ...], rows: tuple[int, int], columns: tuple[int, int]
) -> None:
    image = noise(20, 30)
    side = rows[1] - rows[0]
    crops = crop_objects(
        write_set(tmp_path, [image], [[(box, 2)]]), side
    )  # of its own size: not resized
    np.testing.assert_array_equal(
        crops.pixels, image[None, rows[0] : rows[1], columns[0] : columns[1]]
    )
    assert crops.labels.tolist() == [1]


def test_the_margin_of_a_large_box_by_hand(tmp_path: Path) -> None:
    image = noise(80, 90)
    crops = crop_objects(
        write_set(tmp_path, [image], [[((15, 30, 70, 45), 3)]]), 66
    )  # 55 * 1.2 about (42.5, 37.5)
    np.testing.assert_array_equal(
        crops.pixels[0], image[4:70, 10:76]
    )  # corner (9.5, 4.5), half to even


def test_a_set_by_hand(tmp_path: Path) -> None:
    images = [noise(20, 30, seed) for seed in range(4)]
    first, second, last = (10, 5, 20, 10), (0, 0, 30, 10), (0, 0, 5, 5)
    objects = [[(first, 3), (second, 1)], [], [(last, 2), (first, 2)], [(last, 1), (last, 3)]]
    annotations = write_set(tmp_path, images, objects, crowd=(3,), difficult=(4,))
    crops = crop_objects(annotations, 8)
    windows = [images[0][2:14, 9:21], images[0][:20, 5:25], images[2][:6, :6], images[3][:6, :6]]
    expected = [cv2.resize(window, (8, 8), interpolation=cv2.INTER_LINEAR) for window in windows]
    np.testing.assert_array_equal(crops.pixels, np.stack(expected))
    assert crops.pixels.dtype == np.uint8
    assert crops.labels.tolist() == [2, 0, 1, 2]
    assert crops.labels.dtype == np.int64
    assert crops.class_map == CLASSES
    assert crops.source == "objects of a set"
    assert len(crops) == 4


def test_squares_lie_about_the_boxes_and_inside_the_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    height, width, size = 60, 80, 16
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :, 0], image[:, :, 1] = (
        np.arange(width),
        np.arange(height)[:, None],
    )  # red says x, green y
    corners = rng.uniform((0, 0), (width - 4, height - 4), (100, 2))
    ends = corners + rng.uniform(2, (width, height) - corners)
    crops = crop_objects(
        write_set(tmp_path, [image], [[(tuple(box), 1) for box in np.hstack((corners, ends))]]),
        size,
    )
    assert crops.pixels.shape == (100, size, size, 3)
    side = np.minimum(1.2 * (ends - corners).max(axis=1), height)
    for axis, length in enumerate((width, height)):
        found = crops.pixels[..., axis].astype(np.float64).mean(axis=(1, 2)) + 0.5
        expected = np.clip((corners + ends)[:, axis] / 2, side / 2, length - side / 2)
        # half a pixel by rounding the corner, a quarter by rounding the side, half a level by
        # rounding the resized values
        assert np.abs(found - expected).max() <= 1.25


def test_objects_lie_in_their_crops_as_a_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    cut = 0
    for _ in range(60):
        height, width = (int(n) for n in rng.integers(10, 50, 2))
        x1, y1 = int(rng.integers(0, width)), int(rng.integers(0, height))
        x2, y2 = int(rng.integers(x1 + 1, width + 1)), int(rng.integers(y1 + 1, height + 1))
        image = np.zeros((height, width, 3), np.uint8)
        image[y1:y2, x1:x2] = 255
        longer, shorter = max(x2 - x1, y2 - y1), min(x2 - x1, y2 - y1)
        side = min(round(1.2 * longer), height, width)
        crop = crop_objects(write_set(tmp_path, [image], [[((x1, y1, x2, y2), 1)]]), side).pixels[
            0, ..., 0
        ]  # not resized
        assert int((crop == 255).sum()) == min(longer, side) * shorter
        cut += longer > side
    assert 3 < cut < 40  # boxes longer than the image's shorter side


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    box = (1, 1, 5, 5)
    with pytest.raises(ValueError, match="a set: no object to cut out"):
        crop_objects(write_set(tmp_path, [], []), 8)
    with pytest.raises(ValueError, match="a set: no object to cut out"):
        crop_objects(write_set(tmp_path, [noise(9, 9)], [[]]), 8)
    with pytest.raises(ValueError, match="a set: no object to cut out"):
        crop_objects(
            write_set(tmp_path, [noise(9, 9)], [[(box, 1), (box, 2)]], crowd=(0,), difficult=(1,)),
            8,
        )


def test_damaged_and_other_files_are_named_unless_nothing_is_wanted_of_them(tmp_path: Path) -> None:
    box = (1, 1, 5, 5)
    images = [noise(9, 9), noise(9, 9)]
    annotations = write_set(tmp_path, images, [[(box, 1)], [(box, 1)]])
    Image.fromarray(noise(9, 8)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"1\.png: the annotations say 9x9 px, the file is 8x9"):
        crop_objects(annotations, 4)
    (tmp_path / "1.png").write_bytes(b"no image")
    with pytest.raises(ImageReadError, match=r"1\.png cannot be read"):
        crop_objects(annotations, 4)
    annotations.crowd[1] = True
    assert len(crop_objects(annotations, 4)) == 1

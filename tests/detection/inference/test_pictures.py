from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest

from detres.detection.annotations import Annotations
from detres.detection.inference.pictures import captions_of, write_jpeg, write_sheet
from detres.images.decode import ImageReadError, read_image
from tests.detection.evaluation.scenes import TWO, predictions_of, truth_of

CELL = 384


@pytest.fixture
def truth(tmp_path: Path) -> Annotations:
    """Fourteen grey images of 60 x 80 px (h x w)."""
    ids = list(range(14))
    files = [str(tmp_path / f"{n}.png") for n in ids]
    for file in files:
        cv2.imwrite(file, np.full((60, 80, 3), 128, np.uint8))
    data = truth_of([], ids, size=(60, 80))
    return dataclasses.replace(data, image_files=np.array(files))


def colourful(image: np.ndarray) -> np.ndarray:
    """Whether each pixel (h, w) is far from grey."""
    return np.ptp(image.astype(int), axis=2) > 60


def cell(sheet: np.ndarray, number: int) -> np.ndarray:
    row, column = divmod(number, 4)
    return sheet[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]


def test_captions_by_hand() -> None:
    captions = captions_of(TWO, np.array([2, 1, 2]), np.array([0.5, 0.987, 1.0]))
    assert captions == ["dog 0.50", "cat 0.99", "dog 1.00"]
    assert captions_of(TWO, np.zeros(0, np.int64), np.zeros(0)) == []
    with pytest.raises(IndexError, match=r"outside 0\.\.1"):
        captions_of(TWO, np.array([3]), np.array([0.5]))


def test_a_sheet_shows_what_was_found_in_the_first_images(
    tmp_path: Path, truth: Annotations
) -> None:
    box = (10, 20, 60, 50)
    found = predictions_of(
        [(1, 1, 0.9, box), (2, 1, 0.49, box), (5, 2, 0.5, box), (13, 1, 0.9, box)]
    )
    write_sheet(tmp_path / "sheet.jpg", truth, found)
    sheet = read_image(tmp_path / "sheet.jpg")
    assert sheet.shape == (3 * CELL, 4 * CELL, 3)  # twelve images, four in a row
    drawn = [number for number in range(12) if colourful(cell(sheet, number)).any()]
    assert drawn == [1, 5]  # from a score of 0.5 on, and of the thirteenth image nothing
    rows, columns = np.nonzero(colourful(cell(sheet, 1)))
    scale = CELL / 80
    assert columns.min() == pytest.approx(10 * scale, abs=scale + 2)
    assert rows.max() == pytest.approx(50 * scale, abs=scale + 2)


def test_a_sheet_of_no_detections_and_of_fewer_images(tmp_path: Path, truth: Annotations) -> None:
    few = truth_of([], [0, 1], size=(60, 80))
    few = dataclasses.replace(few, image_files=truth.image_files[:2])
    write_sheet(tmp_path / "sheet.jpg", few, predictions_of([]))
    sheet = read_image(tmp_path / "sheet.jpg")
    assert sheet.shape == (CELL, 4 * CELL, 3)
    assert not colourful(sheet).any()
    assert (cell(sheet, 1)[:200] > 100).all()
    assert (cell(sheet, 2) < 30).all()


def test_an_image_that_cannot_be_read_is_named_and_no_sheet_is_left(
    tmp_path: Path, truth: Annotations
) -> None:
    Path(str(truth.image_files[3])).write_text("no image")
    with pytest.raises(ImageReadError, match=r"3\.png"):
        write_sheet(tmp_path / "sheet.jpg", truth, predictions_of([]))
    assert not (tmp_path / "sheet.jpg").exists()


def test_a_jpeg_holds_the_pixels_in_rgb(tmp_path: Path) -> None:
    image = np.zeros((32, 48, 3), np.uint8)
    image[:] = (200, 40, 90)
    write_jpeg(tmp_path / "a.jpg", image)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - image).max() <= 6
    assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]
    with pytest.raises(OSError, match=r"a\.jpg"):  # which is a file, no folder
        write_jpeg(tmp_path / "a.jpg" / "b.jpg", image)

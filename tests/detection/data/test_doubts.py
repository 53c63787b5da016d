from __future__ import annotations

import numpy as np
import pytest

from detres.detection.data.doubts import doubts

SIZE = (480, 640)


def told(boxes, size=SIZE, *, written_as_sides=True) -> list[str]:
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    sizes = np.repeat(np.array([size], np.int32), len(boxes), axis=0)
    return doubts(boxes, sizes, written_as_sides=written_as_sides)


def xyxy_as_sides(boxes):
    """What a reader of [x, y, width, height] makes of (x1, y1, x2, y2)."""
    boxes = np.array(boxes, np.float64)
    return np.concatenate((boxes[:, :2], boxes[:, :2] + boxes[:, 2:]), axis=1)


def random_boxes(num, seed):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((num, 2, 2)), axis=1) * (640, 480)
    return corners.reshape(num, 4)


@pytest.mark.parametrize("seed", range(20))
def test_usual_boxes_and_no_boxes_are_not_doubted(seed):
    assert told(random_boxes(30, seed)) == []
    assert told(random_boxes(1, seed)) == []
    assert told([]) == []


@pytest.mark.parametrize("size", [SIZE, (0, 0)])
def test_fractions(size):
    fractions = random_boxes(40, 0) / (640, 480, 640, 480)
    (line,) = told(fractions, size)
    assert line.startswith("all 40 boxes lie within 0..1 px")
    assert ("of images of up to 640 px" in line) == (size == SIZE)
    assert "multiply what runs along x by the width" in line
    (line,) = told([*fractions, (5, 5, 90, 90)], size)
    assert line.startswith("40 of 41 boxes lie within 0..1 px")
    assert told([*fractions[:10], (5, 5, 90, 90)], size) == []  # one in eleven is no slip


def test_boxes_of_a_pixel_in_tiny_images_are_usual():
    assert told([(0, 0, 1, 1)], (4, 4)) == []
    assert told([(0, 0, 1, 1)], (10, 10)) == []
    assert "lie within 0..1" in told([(0, 0, 1, 1)], (11, 11))[0]


def test_boxes_of_at_most_a_pixel():
    (line,) = told([(5, 5, 6, 6), (100, 30, 100.5, 31)])
    assert line.startswith("none of 2 boxes is larger than 1 px")
    assert told([(5, 5, 6, 6), (100, 30, 101.5, 31)]) == []


@pytest.mark.parametrize("seed", range(10))
def test_corners_written_where_sides_are_expected(seed):
    boxes = xyxy_as_sides(random_boxes(30, seed))
    (line,) = told(boxes)
    assert "read as (x1, y1, x2, y2) 30 fit it: expected is [x, y, width, height]" in line
    assert "read as" not in "".join(told(boxes, written_as_sides=False))


def test_boxes_of_images_of_another_size():
    boxes = random_boxes(40, 3) * 4
    (line,) = told(boxes, written_as_sides=False)
    assert "leave their image: are they in pixels of images of another size?" in line
    assert told(boxes, (0, 0), written_as_sides=False) == []  # sizes unknown: nothing to say


def test_a_few_boxes_over_the_border_are_usual():
    assert told([*random_boxes(40, 5), (600, 10, 700, 60), (10, 400, 60, 500)]) == []
    assert told([(600, 400, 641, 481)] * 3) == []  # by a pixel


def test_boxes_that_are_not_finite_have_no_say():
    assert told([(np.nan, 0, 1, 1), (5, 5, np.inf, 9)]) == []
    assert "all 1 boxes lie" in told([(np.nan, 0, 9, 9), (0.1, 0.1, 0.9, 0.9)])[0]

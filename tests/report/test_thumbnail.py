"""Small pictures whose boxes can be seen."""

from __future__ import annotations

import numpy as np
import pytest

from detres.report.thumbnail import thumbnail

BLUE = (0, 0, 200)


def image(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), BLUE, np.uint8)


def boxes(*each: tuple[float, ...]) -> np.ndarray:
    return np.array(each, np.float64).reshape(-1, 4)


def red(picture: np.ndarray) -> np.ndarray:
    return (picture == (230, 30, 40)).all(axis=2)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((100, 200), (100, 200)), ((640, 1280), (160, 320)), ((3000, 10), (320, 1)), ((1, 1), (1, 1))],
)
def test_it_is_at_most_as_large_as_asked_for(size: tuple, expected: tuple) -> None:
    assert thumbnail(image(*size), boxes()).shape == (*expected, 3)


def test_a_box_is_where_it_is() -> None:
    picture = thumbnail(image(640, 640), boxes((100, 200, 400, 600)))
    rows, columns = np.nonzero(red(picture))
    assert (rows.min(), rows.max()) == (99, 301)  # the line is 3 px thick
    assert (columns.min(), columns.max()) == (49, 201)
    assert picture[0, 0].tolist() == list(BLUE)


def test_a_second_box_is_seen_on_an_equal_one() -> None:
    picture = thumbnail(image(100, 100), boxes((20, 20, 80, 80), (20, 20, 80, 80)))
    assert red(picture).any()
    assert (picture == (255, 205, 0)).all(axis=2).any()


@pytest.mark.parametrize("box", [(50, 50, 50, 50), (50, 50, 52, 51), (50, 20, 50, 80)])
def test_a_box_without_area_is_seen(box: tuple) -> None:
    assert red(thumbnail(image(1000, 1000), boxes(box))).sum() > 40


def test_grey_around_where_a_box_leaves_the_image() -> None:
    picture = thumbnail(image(100, 200), boxes((150, 50, 230, 140)))
    assert picture.shape == (140, 230, 3)
    assert picture[0, 0].tolist() == list(BLUE)
    assert picture[0, 229].tolist() == [128] * 3
    picture = thumbnail(image(100, 200), boxes((-30, -20, 50, 50)))
    assert picture.shape == (120, 230, 3)
    assert picture[0, 0].tolist() == [128] * 3
    assert picture[119, 229].tolist() == list(BLUE)


@pytest.mark.parametrize(
    "box",
    [(np.nan, 0, 9, 9), (0, 0, np.inf, 9), (1e30, 0, 2e30, 9), (-1e30, -1e30, 1e30, 1e30)],
)
def test_boxes_beyond_all_bounds_draw_nothing_or_a_part(box: tuple) -> None:
    assert max(thumbnail(image(100, 200), boxes(box)).shape) <= 320


def test_the_image_is_not_drawn_on() -> None:
    picture = image(50, 50)
    thumbnail(picture, boxes((10, 10, 40, 40)))
    assert (picture == BLUE).all()

"""What the numbers of a box tell."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from detres.boxes import paired_iou
from detres.detection.data.box_checks import (
    are_equal,
    doubled_boxes,
    find_faults,
    training_scales,
)
from detres.images.resize import resized_size

SIZE = (80, 200)  # h, w

# In an image of 200 x 80 px (w x h): the box, and its one fault.
CASES = [
    ((10, 20, 30, 40), None),
    ((0, 0, 200, 80), None),
    ((-1, 0, 200.9, 81), None),  # rounding
    ((-1.5, 0, 10, 10), "leaving"),
    ((190, 70, 201.5, 80), "leaving"),
    ((10, 70, 30, 82), "leaving"),  # fits with x and y exchanged, but is beyond by little
    ((150, 70, 190, 120), "leaving"),  # far beyond, and exchanged it leaves the image too
    ((10, 70, 30, 150), "exchanged_axes"),
    ((20, 100, 60, 190), "exchanged_axes"),  # wholly outside, but exchanged it fits
    ((200, 0, 220, 20), "outside"),
    ((-20, 10, 0, 20), "outside"),
    ((210, 90, 250, 120), "outside"),
    ((30, 10, 20, 40), "swapped_corners"),
    ((10, 40, 30, 20), "swapped_corners"),
    ((30, 40, 10, 20), "swapped_corners"),
    ((10, 10, 10, 20), "without_area"),
    ((10, 10, 20, 10), "without_area"),
    ((190, 10, 190 + 1e-9, 20), "without_area"),  # its width is lost in float32
    ((np.nan, 0, 10, 10), "not_finite"),
    ((0, 0, np.inf, 10), "not_finite"),
    ((0, 0, 1e300, 10), "not_finite"),
]


@pytest.mark.parametrize(("box", "fault"), CASES)
def test_a_box_and_its_fault(box: tuple[float, ...], fault: str | None) -> None:
    found = find_faults(np.array([box], np.float64), np.array([SIZE]))
    names = [each.name for each in dataclasses.fields(found) if getattr(found, each.name)[0]]
    assert names == ([fault] if fault else [])
    assert found.usable[0] == (fault in (None, "leaving"))


def test_each_box_is_judged_by_its_own_image() -> None:
    boxes = np.array([[0, 0, 50, 90], [0, 0, 50, 90], [0, 0, 50, 90]], np.float64)
    found = find_faults(boxes, np.array([[90, 50], [50, 90], [40, 40]]))
    assert found.exchanged_axes.tolist() == [False, True, False]
    assert found.leaving.tolist() == [False, False, True]


def test_of_an_image_of_unknown_size_only_what_can_be_told() -> None:
    boxes = np.array([[0, 0, 5000, 10], [-30, 0, -10, 10], [9, 0, 3, 5]], np.float64)
    found = find_faults(boxes, np.zeros((3, 2), int))
    assert found.outside.tolist() == [False, True, False]
    assert found.swapped_corners.tolist() == [False, False, True]
    assert not found.leaving.any()
    assert not found.exchanged_axes.any()


def test_no_boxes_have_no_faults() -> None:
    found = find_faults(np.zeros((0, 4)), np.zeros((0, 2), int))
    assert found.usable.shape == (0,)


# ---- boxes that are there twice ----


def test_boxes_that_overlap_enough_in_one_image() -> None:
    boxes = np.array(
        [
            [0, 0, 10, 10],
            [0, 0, 10, 9],  # IoU 0.9 with the first
            [0, 0, 10, 10],  # in another image
            [0, 0, 10, 8.9],  # 0.89 with the first, 0.9889 with the second
            [5, 5, 15, 15],
        ],
        np.float64,
    )
    images = np.array([0, 0, 1, 0, 0])
    assert doubled_boxes(boxes, images, 0.9).tolist() == [[0, 1], [1, 3]]
    assert doubled_boxes(boxes, images, 0.89).tolist() == [[0, 1], [0, 3], [1, 3]]


@pytest.mark.parametrize("least_iou", [0.3, 0.5, 0.9, 1.0])
def test_the_same_pairs_as_by_comparing_all(least_iou: float) -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        number = int(random.integers(0, 40))
        corners = random.integers(0, 12, (number, 2))
        boxes = np.concatenate((corners, corners + random.integers(1, 9, (number, 2))), axis=1)
        boxes, images = boxes.astype(np.float64), random.integers(0, 3, number)
        expected = [
            [a, b]
            for a in range(number)
            for b in range(a + 1, number)
            if images[a] == images[b] and paired_iou(boxes[a], boxes[b]) >= least_iou
        ]
        assert doubled_boxes(boxes, images, least_iou).tolist() == expected


def test_many_equal_boxes_are_all_pairs() -> None:
    boxes = np.tile(np.array([[3.0, 4, 9, 8]]), (30, 1))
    assert len(doubled_boxes(boxes, np.zeros(30, int), 0.9)) == 30 * 29 / 2


def test_no_box_and_one_box_are_no_pair() -> None:
    for number in (0, 1):
        found = doubled_boxes(np.ones((number, 4)), np.zeros(number, int), 0.9)
        assert found.shape == (0, 2)


def test_equal_but_for_rounding_in_text() -> None:
    boxes = np.array([[1, 2, 3, 4], [1.004, 2, 3, 4], [1, 2, 3, 4.02]])
    assert are_equal(boxes, np.array([[0, 1], [0, 2], [1, 2]])).tolist() == [True, False, False]


# ---- scales ----


def test_the_scale_of_each_image_is_that_of_the_resize_rule() -> None:
    sizes = np.array([[300, 400], [600, 2000], [0, 0], [300, 400], [10, 0], [0, 10], [1, 1]])
    found = training_scales(sizes, 600, 1000)
    assert found[[0, 1, 3, 6]].tolist() == [2, 0.5, 2, 600]
    assert np.isnan(found[[2, 4, 5]]).all()
    height, width = 333, 517
    expected = resized_size(height, width, short_side=600, max_side=1000)[0] / height
    assert training_scales(np.array([[height, width]]), 600, 1000)[0] == expected
    assert training_scales(np.zeros((0, 2), int), 600, 1000).shape == (0,)

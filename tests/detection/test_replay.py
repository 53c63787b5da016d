"""Which boxes and proposals of a step are called wrong."""

from __future__ import annotations

import math

import torch

from detres.detection.replay import _faults
from detres.detection.structures import ImageBatch, Target


def faults_of(boxes: list[list[float]], proposals: list[list[float]] | None = None) -> list[str]:
    """Of an image of 100 x 80 px (w x h), padded to 200 x 160."""
    flags = torch.zeros(len(boxes), dtype=torch.bool)
    labels = torch.ones(len(boxes), dtype=torch.int64)
    target = Target(7, torch.tensor(boxes).view(-1, 4), labels, flags, flags)
    given = None if proposals is None else (torch.tensor(proposals).view(-1, 4),)
    pixels = torch.zeros((1, 3, 160, 200), dtype=torch.uint8)
    images = ImageBatch(pixels, ((80, 100),), ((80, 100),), (7,), proposals=given)
    return _faults(images, [target], 0)


def test_a_box_may_reach_two_sides_of_its_image_beyond_it() -> None:
    assert faults_of([[-200.0, -200.0, 300.0, 300.0], [0.0, 0.0, 5.0, 5.0]]) == []
    assert faults_of([[0.0, 0.0, 5.0, 5.0], [0.0, 0.0, 301.0, 5.0], [0.0, -201.0, 5.0, 5.0]]) == [
        "box 1 of 3 (counted from 0) is (0, 0, 301, 5), huge beside an image of 100 px",
        "box 2 of 3 (counted from 0) is (0, -201, 5, 5), huge beside an image of 100 px",
    ]


def test_what_is_not_finite_is_said_of_boxes_and_of_proposals() -> None:
    found = faults_of(
        [[0.0, math.nan, 5.0, 5.0]], [[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, math.inf, 9.0]]
    )
    assert found == [
        "box 0 of 1 (counted from 0) is (0, nan, 5, 5), not finite",
        "proposal 1 of 2 (counted from 0) is (0, 0, inf, 9), not finite",
    ]


def test_an_image_without_boxes_has_no_wrong_ones() -> None:
    assert faults_of([], []) == []

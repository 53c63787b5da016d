"""Boxes that were planted wrong are found by file and record."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from detres.detection.data.box_findings import (
    doubled,
    doubtful_boxes,
    faulty_boxes,
    tiny_boxes,
)
from detres.detection.data.findings import LISTED
from tests.detection.data.planted import Box, parts, picture, told, write_split

GOOD = (10.0, 10.0, 60.0, 60.0)


def of_boxes(tmp_path: Path, *boxes: Box, classes: str = "") -> list:
    """The parts of a data set whose only image has these boxes, cats but where classes says d."""
    names = {"c": "cat", "d": "dog"}
    objects = [
        ("a.png", names[(classes or "c" * len(boxes))[number]], box)
        for number, box in enumerate(boxes)
    ]
    return parts(train=write_split(tmp_path, "train", {"a.png": picture(0)}, objects))


def test_each_fault_with_its_record_and_picture(tmp_path: Path) -> None:
    found = faulty_boxes(
        of_boxes(
            tmp_path,
            GOOD,
            (40, 10, 20, 60),
            (30, 10, 30, 60),
            (float("nan"), 0, 9, 9),
            (10, 90, 40, 150),
            (170, 10, 190, 40),
            (150, 10, 165, 40),
        )
    )
    assert told(found) == {
        "not_finite": ["train a.png, annotation 103 (cat): box [nan, 0, nan, 9] in 160x96 px"],
        "swapped_corners": ["train a.png, annotation 101 (cat): box [40, 10, 20, 60] in 160x96 px"],
        "without_area": ["train a.png, annotation 102 (cat): box [30, 10, 30, 60] in 160x96 px"],
        "exchanged_axes": ["train a.png, annotation 104 (cat): box [10, 90, 40, 150] in 160x96 px"],
        "outside": ["train a.png, annotation 105 (cat): box [170, 10, 190, 40] in 160x96 px"],
        "leaving": ["train a.png, annotation 106 (cat): box [150, 10, 165, 40] in 160x96 px"],
    }
    assert [finding.level for finding in found] == ["error"] * 5 + ["warning"]
    (shown,) = found[1].examples[0].pictures
    assert shown.boxes.tolist() == [[40, 10, 20, 60]]
    assert (shown.split, shown.names, shown.size) == ("train", ("cat",), (96, 160))
    assert shown.file == str(tmp_path / "train" / "a.png")


def test_good_boxes_are_no_finding(tmp_path: Path) -> None:
    found = of_boxes(tmp_path, GOOD, (0, 0, 160, 96), (70, 10, 90, 30))
    assert faulty_boxes(found) + doubled(found) + doubtful_boxes(found) == []


def test_where_all_boxes_mean_something_else_one_finding_says_so(tmp_path: Path) -> None:
    """Fractions of the image; corners where sides are expected leave it, and that is not said
    of every box too.
    """
    found = of_boxes(tmp_path / "fractions", (0.1, 0.1, 0.5, 0.4), (0.3, 0.2, 0.6, 0.9))
    (finding,) = doubtful_boxes(found)
    assert finding.level == "error"
    assert "they look like fractions of the image" in finding.examples[0].what
    assert tiny_boxes(found, (96, 160)) == []

    corners = [(x, y, 2 * x + 40, 2 * y + 30) for x, y in ((30, 20), (50, 40), (80, 50))]
    found = of_boxes(tmp_path / "corners", *corners)
    (finding,) = doubtful_boxes(found)
    assert "read as (x1, y1, x2, y2)" in finding.examples[0].what
    assert faulty_boxes(found) == []


def test_boxes_that_are_there_twice(tmp_path: Path) -> None:
    near = (10.0, 10.0, 60.0, 58.0)  # IoU 0.96
    found = doubled(of_boxes(tmp_path, GOOD, GOOD, near, (70, 10, 90, 30), GOOD, classes="cccdd"))
    assert told(found) == {
        "duplicate_boxes": [
            "train a.png, annotation 101 (cat): box [10, 10, 60, 60]; [10, 10, 60, 60] is "
            "annotation 100 (cat)"
        ],
        "near_duplicate_boxes": [
            "train a.png, annotation 102 (cat): box [10, 10, 60, 58]; [10, 10, 60, 60] is "
            "annotation 100 (cat)"
        ],
        "two_classes": [
            "train a.png, annotation 104 (dog): box [10, 10, 60, 60]; [10, 10, 60, 60] is "
            "annotation 100 (cat)"
        ],
    }
    assert found[0].examples[0].pictures[0].boxes.tolist() == [list(GOOD), list(GOOD)]
    assert [finding.level for finding in found] == ["error", "warning", "warning"]


def test_three_equal_boxes_are_two_too_many(tmp_path: Path) -> None:
    (finding,) = doubled(of_boxes(tmp_path, GOOD, GOOD, GOOD))
    assert finding.count == 2


def test_crowds_are_not_compared(tmp_path: Path) -> None:
    (part,) = of_boxes(tmp_path, GOOD, GOOD)
    crowd = replace(part.annotations, crowd=np.array([False, True]))
    assert doubled([replace(part, annotations=crowd)]) == []


def test_tiny_is_said_at_the_training_scale(tmp_path: Path) -> None:
    """A side of 8 px there is not tiny; crowds are not counted."""
    found = of_boxes(tmp_path, (0, 0, 4, 40), (0, 0, 3.9, 40), GOOD, (70, 70, 73, 73))
    (finding,) = tiny_boxes(found, (192, 320))
    assert finding.title.endswith("(short side 192 px), 50.0% of those to learn from")
    assert [str(example) for example in finding.examples] == [
        "train a.png, annotation 101 (cat): 3.9x40 px, 7.8x80 at the training scale",
        "train a.png, annotation 103 (cat): 3x3 px, 6x6 at the training scale",
    ]
    assert tiny_boxes(found, (960, 1600)) == []


def test_the_count_is_of_all_and_the_list_ends(tmp_path: Path) -> None:
    number = LISTED + 7
    (finding,) = faulty_boxes(of_boxes(tmp_path, *[(30, 10, 30, 60)] * number))
    assert finding.count == number
    assert len(finding.examples) == LISTED


def test_an_image_without_an_id_of_its_own_has_numbered_objects(tmp_path: Path) -> None:
    """As in formats whose files have no ids: images are named, objects counted from 1."""
    (part,) = of_boxes(tmp_path, GOOD, (30, 10, 30, 60))
    named = replace(part.annotations, image_ids=np.array(["a"]))
    (finding,) = faulty_boxes([replace(part, annotations=named)])
    assert finding.examples[0].where == "train a.png, object 2 (cat)"

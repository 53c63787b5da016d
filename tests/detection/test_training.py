"""What of a detector's data counts as a change between two parts of a run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from detres.class_map import ClassMap
from detres.detection.annotations import Annotations
from detres.detection.structures import Proposals
from detres.detection.training import fingerprint_of, fingerprint_of_proposals


def annotations() -> Annotations:
    """Three images, of which the second has no object."""
    return Annotations(
        source="truth",
        class_map=ClassMap.of_names(("a", "b")),
        image_ids=np.array([7, 9, 8]),
        image_files=np.array(["/x/7.jpg", "/x/9.jpg", "/x/8.jpg"]),
        image_sizes=np.array([[20, 20], [20, 30], [30, 20]], np.int32),
        offsets=np.array([0, 2, 2, 3]),
        boxes=np.array([[0, 0, 10, 10], [5, 5, 9, 9], [1, 2, 3, 4]], np.float64),
        labels=np.array([1, 2, 2]),
        areas=np.array([100, 16, 4], np.float64),
        crowd=np.array([False, True, False]),
        difficult=np.zeros(3, bool),
        ids=np.arange(3),
        dropped={},
    )


def changed(**other: object) -> str | None:
    before = fingerprint_of(annotations()).state()
    return fingerprint_of(replace(annotations(), **other)).what_changed(before)


def test_the_same_annotations_from_elsewhere_are_the_same():
    files = np.array(["/moved/to/7.jpg", "/moved/to/9.jpg", "/moved/to/8.jpg"])
    assert changed() is changed(source="copy") is changed(image_files=files) is None
    other = np.array(["/x/7.jpg", "/x/9.png", "/x/8.jpg"])
    assert changed(image_files=other) == (
        "the files of 1 of 3 records have another name or size, the first is image 9"
    )


@pytest.mark.parametrize(
    ("name", "row", "value", "image"),
    [
        ("boxes", 2, 1.25, 8),
        ("labels", 0, 2, 7),
        ("areas", 1, 17, 7),
        ("crowd", 1, False, 7),
        ("difficult", 2, True, 8),
        ("image_sizes", 1, 31, 9),
        ("image_ids", 1, 10, 10),
        ("offsets", 1, 1, 7),
    ],
)
def test_whatever_is_trained_on_or_judged_by_counts(name, row, value, image):
    values = getattr(annotations(), name).copy()
    values[row] = value
    number = 2 if name == "offsets" else 1  # an object that goes from one image to the next
    assert changed(**{name: values}) == f"{number} of 3 records differ, the first is image {image}"


def test_annotation_ids_do_not_count():
    assert changed(ids=np.arange(3) + 5) is None


def proposals() -> Proposals:
    """Two boxes in the first image, none in the second, one in the third."""
    return Proposals(
        source="proposals",
        image_ids=np.array([7, 9, 8]),
        offsets=np.array([0, 2, 2, 3]),
        boxes=np.arange(12.0).reshape(3, 4),
        scores=np.array([0.9, 0.1, 0.5], np.float32),
    )


@pytest.mark.parametrize(
    ("name", "row", "value", "said"),
    [
        ("boxes", 2, 1.25, "1 of 3 records differ, the first is image 8"),
        ("scores", 0, 0.8, "1 of 3 records differ, the first is image 7"),
        ("image_ids", 1, 10, "1 of 3 records differ, the first is image 10"),
        ("offsets", 2, 3, "2 of 3 records differ, the first is image 9"),
    ],
)
def test_other_proposals_are_other_data(name, row, value, said):
    values = getattr(proposals(), name).copy()
    values[row] = value
    before = fingerprint_of_proposals(proposals()).state()
    other = fingerprint_of_proposals(replace(proposals(), **{name: values}))
    assert other.what_changed(before) == said
    assert fingerprint_of_proposals(proposals()).what_changed(before) is None

"""A score of nothing is explained by its cause, and a score of something is left alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from detres.class_map import ClassMap
from detres.detection.annotations import Annotations
from detres.detection.evaluation.diagnose import explain
from detres.detection.structures import Predictions
from tests.detection.evaluation.scenes import predictions_of, truth_of

MANY = ClassMap(tuple(f"c{k}" for k in range(1, 7)), tuple(range(1, 7)))


@pytest.fixture
def truth() -> Annotations:
    rng = np.random.default_rng(0)
    objects = []
    for image in range(20):
        for _ in range(3):
            x, y = rng.uniform(40, 110, 2)
            w, h = rng.uniform(20, 80, 2)
            objects.append((image, int(rng.integers(1, 6)), (x, y, x + w, y + h)))
    return truth_of(objects, list(range(20)), MANY)


def found(
    truth: Annotations, *, boxes: np.ndarray | None = None, labels: np.ndarray | None = None
) -> Predictions:
    """Return perfect predictions but for the boxes or labels given."""
    owners = np.repeat(truth.image_ids, np.diff(truth.offsets))
    boxes = truth.boxes if boxes is None else boxes.astype(np.float32)
    return Predictions(
        truth.class_map,
        owners,
        boxes,
        np.full(len(boxes), 0.9, np.float32),
        truth.labels if labels is None else labels,
    )


def test_a_score_is_left_alone(truth: Annotations) -> None:
    assert explain(truth, predictions_of([], MANY), 0.05) == []


def test_between_nothing_and_low_only_evidence_is_told(truth: Annotations) -> None:
    elsewhere = found(truth, boxes=np.tile((0, 0, 30, 30), (60, 1)))
    assert explain(truth, elsewhere, 0.002) == []
    assert len(explain(truth, elsewhere, 0.0009)) == 1
    assert "exchanged" in explain(truth, found(truth, boxes=truth.boxes[:, [1, 0, 3, 2]]), 0.04)[0]


def test_each_cause_comes_first_for_its_own_case(truth: Annotations) -> None:
    x1y1, x2y2 = truth.boxes[:, :2], truth.boxes[:, 2:]
    cases = {
        "fractions of the image": found(truth, boxes=truth.boxes / 200),
        "perhaps the boxes were written as (x1, y1, x2, y2)": found(
            truth, boxes=np.concatenate((x1y1, x1y1 + x2y2), axis=1)
        ),
        "perhaps the boxes were written as [x, y, width, height]": found(
            truth, boxes=np.concatenate((x1y1, x2y2 - x1y1), axis=1)
        ),
        "perhaps x and y are exchanged": found(truth, boxes=truth.boxes[:, [1, 0, 3, 2]]),
        "lie outside their images": found(truth, boxes=truth.boxes * 8),
        "most labels are off by -1": found(truth, labels=truth.labels + 1),
        "most classes are wrong": found(truth, labels=7 - truth.labels),
        "0.0% of the best 60 detections overlap": found(
            truth, boxes=truth.boxes[:, [0, 1, 0, 1]] * 0.1 + np.array((0, 0, 15, 15))
        ),
    }
    for expected, predictions in cases.items():
        causes = explain(truth, predictions, 0.0)
        assert expected in causes[0], (expected, causes)


def test_the_commonest_confusion_is_the_example() -> None:
    objects = [(0, label, (50 * k, 0, 50 * k + 40, 40)) for k, label in enumerate((1, 1, 2))]
    truth = truth_of(objects, [0], size=(40, 150))
    predictions = found(truth, labels=np.array([2, 2, 1]))
    assert "most labels are off by -1" in explain(truth, predictions, 0.0)[0]
    even = truth_of([*objects, (0, 2, (150, 0, 190, 40))], [0], size=(40, 200))
    assert (
        "often 'cat' is called 'dog'"
        in explain(even, found(even, labels=np.array([2, 2, 1, 1])), 0.0)[0]
    )


def test_nothing_to_compare(truth: Annotations) -> None:
    box = (0, 0, 20, 20)
    nothing = predictions_of([])
    assert "no objects in its 2 images" in explain(truth_of([], ["a", "b"]), nothing, None)[0]
    assert (
        "all 1 objects of truth are crowd or difficult"
        in explain(truth_of([("a", 1, box, "difficult")], ["a"]), nothing, None)[0]
    )
    (cause,) = explain(truth, predictions_of([], MANY), 0.0)
    assert "no detections at all" in cause
    (cause,) = explain(truth, predictions_of([("x.jpg", 1, 0.5, box)], MANY), 0.0)
    assert "its ids are like [0, 1, 2], theirs ['x.jpg']" in cause
    (cause,) = explain(truth_of([("a", 1, box)], ["a"]), predictions_of([("a", 2, 0.5, box)]), 0.0)
    assert "objects are of cat, detections of dog" in cause


@pytest.mark.parametrize(
    ("num", "listed"), [(5, "c1, c2, c3, c4, c5,"), (6, "c1, c2, c3, c4, c5, ...,")]
)
def test_five_classes_are_listed(num: int, listed: str) -> None:
    classes = ClassMap.of_names([f"c{k}" for k in range(1, 8)])
    truth = truth_of([("a", k + 1, (0, 0, 9, 9)) for k in range(num)], ["a"], classes)
    (cause,) = explain(truth, predictions_of([("a", 7, 0.5, (0, 0, 9, 9))], classes), 0.0)
    assert f"objects are of {listed} detections of c7" in cause


LONG, AWAY = (100, 20, 160, 40), (10, 150, 20, 190)
"""An object, and a box that overlaps it neither as it is nor read in another way."""


def of_twenty(groups: list[tuple[int, tuple[float, ...], int]]) -> list[str]:
    """Causes of a low score of one detection in each of 20 images with LONG of class 1: groups of
    (how many, box, label), the rest AWAY.
    """
    truth = truth_of([(n, 1, LONG) for n in range(20)], list(range(20)), MANY)
    rows = [(box, label) for num, box, label in groups for _ in range(num)]
    rows += [(AWAY, 1)] * (20 - len(rows))
    found = predictions_of([(n, label, 0.5, box) for n, (box, label) in enumerate(rows)], MANY)
    return explain(truth, found, 0.04)


SWAPPED, HALF = (20, 100, 40, 160), (100, 20, 130, 40)
FAR_RIGHT, FAR_DOWN = (201.5, 20, 230, 60), (20, 201.5, 60, 230)


@pytest.mark.parametrize(
    ("below", "above", "cause"),
    [
        ([(2, SWAPPED, 1)], [(3, SWAPPED, 1)], "15% of the detections overlap an object by half"),
        (
            [(4, LONG, 1), (8, SWAPPED, 1)],
            [(4, LONG, 1), (9, SWAPPED, 1)],
            "x and y are exchanged: read that way, 45% of the detections overlap an object by "
            "half, now 20%",
        ),
        ([(6, LONG, 2)], [(7, LONG, 2)], "most labels are off by -1"),
        ([(6, LONG, 2), (1, (100, 20, 129, 40), 2)], [(6, LONG, 2), (1, HALF, 2)], "off by -1"),
        ([(8, LONG, 2), (8, LONG, 1)], [(9, LONG, 2), (8, LONG, 1)], "off by -1"),
        (
            [(4, LONG, 2), (4, LONG, 3), (8, LONG, 1)],
            [(5, LONG, 2), (4, LONG, 3), (8, LONG, 1)],
            "most classes are wrong (often 'c1' is called 'c2')",
        ),
        ([(10, FAR_RIGHT, 1)], [(11, FAR_RIGHT, 1)], "55% of the boxes lie outside"),
        ([(11, (201, 20, 230, 60), 1)], [(11, FAR_RIGHT, 1)], "55% of the boxes lie outside"),
        ([(11, (20, 201, 60, 230), 1)], [(11, FAR_DOWN, 1)], "55% of the boxes lie outside"),
    ],
)
def test_a_cause_is_told_from_its_threshold_on(
    below: list[tuple], above: list[tuple], cause: str
) -> None:
    assert of_twenty(below) == []
    (told,) = of_twenty(above)
    assert cause in told


def test_right_classes_are_left_alone_and_labels_may_be_too_low() -> None:
    assert of_twenty([(8, LONG, 1)]) == []
    truth = truth_of([(n, 2 + n % 2, LONG) for n in range(20)], list(range(20)), MANY)
    (cause,) = explain(truth, found(truth, labels=truth.labels - 1), 0.0)
    assert "most labels are off by +1" in cause


def test_images_of_unknown_size_have_no_outside(truth: Annotations) -> None:
    far = found(truth, boxes=truth.boxes * 8)
    assert any("lie outside" in cause for cause in explain(truth, far, 0.04))
    for sizes in ((0, 0), (0, 200), (200, 0)):
        unknown = dataclasses.replace(truth, image_sizes=np.full((20, 2), sizes))
        assert explain(unknown, far, 0.04) == []
    some = np.where(np.arange(20)[:, None] < 10, 0, truth.image_sizes)
    half = np.where(np.arange(60)[:, None] < 30, truth.boxes, truth.boxes * 8)
    known = dataclasses.replace(truth, image_sizes=some)
    assert any("100% of the boxes lie" in c for c in explain(known, found(truth, boxes=half), 0.0))


def test_images_that_the_truth_lacks_have_no_outside() -> None:
    truth = truth_of([(0, 1, LONG)], [0], MANY)
    rows = [(0, 1, 0.5, AWAY), *[(n, 1, 0.5, FAR_RIGHT) for n in range(1, 9)]]
    assert explain(truth, predictions_of(rows, MANY), 0.04) == []


def test_fractions_reach_one_and_a_half(truth: Annotations) -> None:
    # so that boxes beyond the border of their image count
    for most, expected in ((1.5, 1), (1.6, 0)):
        boxes = truth.boxes / truth.boxes.max() * most
        causes = explain(truth, found(truth, boxes=boxes), 0.04)
        assert sum("fractions of the image" in cause for cause in causes) == expected


def test_the_limits_of_a_low_score(truth: Annotations) -> None:
    boxes = truth.boxes[:, [1, 0, 3, 2]]
    assert explain(truth, found(truth, boxes=boxes), np.nextafter(0.05, 0))
    assert explain(truth, found(truth, boxes=boxes), 0.05) == []
    elsewhere = found(truth, boxes=np.tile((0, 0, 30, 30), (60, 1)))
    assert explain(truth, elsewhere, np.nextafter(0.001, 0))
    assert explain(truth, elsewhere, 0.001) == []
    assert explain(truth, elsewhere, None)


def test_the_best_two_thousand_are_looked_at() -> None:
    # 2,000 boxes of fractions score best; one of pixels that comes after them is not looked at.
    truth = truth_of([("a", 1, LONG)], ["a"])
    small, scores = [(0.1, 0.1, 0.5, 0.5)] * 2000, np.linspace(0.9, 0.5, 2000)
    rows = [("a", 1, float(score), box) for score, box in zip(scores, small, strict=True)]
    last = ("a", 1, 0.1, (5, 5, 9, 9))
    assert "fractions" in explain(truth, predictions_of([last, *rows]), 0.0)[0]
    assert "fractions" not in explain(truth, predictions_of([last, *rows[1:]]), 0.0)[0]


def as_read_from_sides(corners: np.ndarray) -> np.ndarray:
    """Boxes that were written as corners, once read as [x, y, width, height]."""
    return np.concatenate((corners[:, :2], corners[:, :2] + corners[:, 2:]), axis=1)


@pytest.mark.parametrize("metric", [0.0, 0.28, 0.9])
def test_corners_read_as_sides_are_told_at_any_score(metric: float) -> None:
    # 13 of 45 lie at the image's corner, where both readings are the same: those score.
    rng = np.random.default_rng(0)
    corners = np.where(np.arange(45)[:, None] < 13, 0, rng.integers(60, 150, (45, 2)))
    boxes = np.concatenate((corners, corners + rng.integers(20, 50, (45, 2))), axis=1).astype(float)
    owners = list(range(45))
    truth = truth_of([(n, 1, tuple(boxes[n])) for n in owners], owners, MANY)
    misread = found(truth, boxes=as_read_from_sides(boxes))
    (cause,) = explain(truth, misread, metric)
    num = int((misread.boxes[13:, 2:] > 205).any(axis=1).sum())
    assert num > 16
    assert cause == (
        "perhaps the boxes were written as (x1, y1, x2, y2) where [x, y, width, height] is "
        f"expected: read that way, 0 of 32 leave their images, now {num}, and 100% of the "
        "detections overlap an object by half, now 0%"
    )
    assert explain(truth, found(truth), 0.9) == []


def test_corners_read_as_sides_are_told_though_they_hit_nothing_or_sizes_are_unknown(
    truth: Annotations,
) -> None:
    misread = found(truth, boxes=as_read_from_sides(truth.boxes))
    unknown = dataclasses.replace(truth, image_sizes=np.zeros_like(truth.image_sizes))
    (cause,) = explain(unknown, misread, 0.3)
    assert "0 of 60 leave their images, now 0, and 100% of" in cause
    rng = np.random.default_rng(1)
    strays = rng.uniform(60, 140, (60, 2))
    strays = np.concatenate((strays, strays + rng.uniform(2, 9, (60, 2))), axis=1)
    (cause,) = explain(truth, found(truth, boxes=as_read_from_sides(strays)), 0.3)
    assert "leave their images" in cause


@pytest.mark.parametrize("seed", range(20))
def test_true_sides_are_not_taken_for_corners(seed: int) -> None:
    rng = np.random.default_rng(seed)
    num = int(rng.integers(1, 40))
    # small objects anywhere; large ones that fill their image; both without clipping at the border
    for low, high, side in ((5, 150, (10, 50)), (2, 12, (170, 200))):
        corners = rng.uniform(low, high, (num, 2))
        boxes = np.concatenate((corners, corners + rng.uniform(*side, (num, 2))), axis=1)
        owners = list(range(num))
        truth = truth_of([(n, 1, tuple(boxes[n])) for n in owners], owners, MANY)
        noisy = boxes + rng.normal(0, 6, boxes.shape)
        for metric in (0.02, 0.3, 0.8):
            causes = explain(truth, found(truth, boxes=noisy), metric)
            assert not any("(x1, y1, x2, y2)" in cause for cause in causes)
        everywhere = rng.uniform(0, 180, (num, 2))
        everywhere = np.concatenate((everywhere, everywhere + rng.uniform(5, 60, (num, 2))), axis=1)
        assert num < 8 or explain(truth, found(truth, boxes=everywhere), 0.3) == []


def told_as_corners(
    written: list[tuple[float, ...]],
    objects: list[tuple[float, ...]] | None = None,
    *,
    size: tuple[int, int] = (200, 200),
) -> bool:
    """Whether boxes that were written so, an image each, and read as [x, y, width, height] are
    said to be corners; objects: one an image, at the image's corner where not given.
    """
    images = list(range(len(written)))
    objects = objects or [(0, 0, 1, 1)] * len(written)
    truth = truth_of([(n, 1, objects[n]) for n in images], images, MANY, size=size)
    boxes = as_read_from_sides(np.array(written, np.float64))
    causes = explain(truth, found(truth, boxes=boxes), 0.5)
    return any("(x1, y1, x2, y2)" in cause for cause in causes)


def read(box: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(as_read_from_sides(np.array([box], np.float64))[0])


INSIDE, BEYOND, BELOW = (100, 10, 104.5, 12), (100, 10, 105.5, 12), (10, 100, 12, 105.5)
"""As read they end at 204.5, and at 205.5 of an image of 200, whose limit is 205."""
BOTH, UNKNOWN = (100, 10, 206, 12), (0, 0)


@pytest.mark.parametrize(
    ("silent", "told"),
    [
        ([BEYOND] + [INSIDE] * 19, [BEYOND] * 2 + [INSIDE] * 18),  # from a tenth on
        ([BELOW] + [INSIDE] * 19, [BELOW] * 2 + [INSIDE] * 18),
        ([BEYOND] + [BOTH] * 3, [BEYOND] * 2 + [BOTH] * 2),  # half as many as corners, at most
        # one of a hundred may be no corners
        ([BEYOND] * 98 + [(100, 10, 99, 12)] * 2, [BEYOND] * 99 + [(100, 10, 99, 12)]),
        ([BEYOND] * 98 + [(10, 100, 12, 99)] * 2, [BEYOND] * 99 + [(10, 100, 12, 99)]),
        ([(100, 10, 99.9, 250)] * 5, [(100, 10, 100, 250), (10, 150, 250, 150), *[BEYOND] * 8]),
        # both readings of a box at the image's corner are the same
        ([(1, 1, 300, 300)] * 5, [(1, 1.1, 204, 204)] * 5),
        ([(1, 1, 300, 300)] * 5, [(1.1, 1, 204, 204)] * 5),
        ([(1, 1, 300, 300)] * 5 + [BEYOND, *[INSIDE] * 10], [(1, 1, 1, 0), *[BEYOND] * 3]),
    ],
)
def test_corners_are_told_from_their_thresholds_on(
    silent: list[tuple[float, ...]], told: list[tuple[float, ...]]
) -> None:
    assert not told_as_corners(silent)
    assert told_as_corners(told)


def test_corners_that_fit_their_objects_are_told_and_boxes_that_fit_are_not() -> None:
    # of images of unknown size: those that fit as corners are more than a tenth more
    objects = [INSIDE] * 20
    for num, expected in ((2, False), (3, True)):
        written = [INSIDE] * num + [(150, 150, 160, 160)] * (20 - num)
        assert told_as_corners(written, objects, size=UNKNOWN) == expected
    # all leave their images, and more than half fit an object as they are read
    for num, expected in ((10, True), (11, False)):
        objects = [read(BEYOND)] * num + [(0, 0, 1, 1)] * (20 - num)
        assert told_as_corners([BEYOND] * 20, objects) == expected
    x1, y1, x2, y2 = read(BEYOND)
    half = (x1, y1, x2, y1 + 2 * (y2 - y1))  # an overlap of exactly a half fits
    assert not told_as_corners([BEYOND] * 20, [half] * 11 + [(0, 0, 1, 1)] * 9)


def test_each_side_of_an_image_is_its_own_limit() -> None:
    low, right = (10, 60, 12, 62), (60, 10, 62, 12)  # as read they end at 122
    for size, leaving, inside in (((100, 200), low, right), ((200, 100), right, low)):
        assert told_as_corners([leaving] * 5, size=size)
        assert not told_as_corners([inside] * 5, size=size)


def test_corners_that_fit_as_well_as_they_are_read_are_told() -> None:
    objects = [(n, 1, box) for n in range(4) for box in (BEYOND, read(BEYOND))]
    truth = truth_of(objects, list(range(4)), MANY)
    misread = found(truth, boxes=as_read_from_sides(np.array([BEYOND] * 8)))
    assert "0 of 8 leave their images, now 8, and 100%" in explain(truth, misread, 0.5)[0]


def test_the_share_that_fits_as_corners_counts_halves() -> None:
    written, half = (100, 10, 140, 30), (100, 10, 140, 50)
    truth = truth_of([(n, 1, half) for n in range(4)], list(range(4)), MANY)
    misread = found(truth, boxes=as_read_from_sides(np.array([written] * 4)))
    (cause,) = explain(truth, misread, 0.5)
    assert "and 100% of the detections overlap an object by half, now 0%" in cause

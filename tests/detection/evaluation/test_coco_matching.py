"""COCO's matching: by hand, in parts as at once, and without anything. Its witness, pycocotools, is
in test_coco_backends.
"""

from __future__ import annotations

import numpy as np
import pytest

from detres.detection.evaluation import coco_matching
from detres.detection.evaluation.coco_matching import CocoBoxes, CocoMatches, match_coco

ALL, SMALL = (0.0, 1e10), (0.0, 50.0)


def boxes_of(rows: list[tuple]) -> CocoBoxes:
    """rows: (image, class, x, y, w, h)."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    xywh = table[:, 2:]
    images, classes = table[:, :2].astype(np.int64).T
    return CocoBoxes(images, classes, xywh, xywh[:, 2] * xywh[:, 3])


def match(
    truth: list[tuple],
    found: list[tuple],
    scores: list[float],
    *,
    crowd: tuple[int, ...] = (),
    threshs: tuple[float, ...] = (0.5,),
    ranges: tuple[tuple[float, float], ...] = (ALL,),
    most: int = 100,
) -> CocoMatches:
    return match_coco(
        boxes_of(truth),
        np.isin(np.arange(len(truth)), crowd),
        boxes_of(found),
        np.array(scores, np.float64),
        num_images=3,
        iou_threshs=np.array(threshs),
        area_ranges=np.array(ranges),
        max_detections=most,
    )


def test_the_better_detection_takes_what_it_overlaps_most_and_leaves_the_rest():
    truth = [(0, 0, 0, 0, 10, 10), (0, 0, 2, 0, 10, 10)]
    # row 1 comes first: IoU 9/11 with object 0, and 1 - 2/11 = 9/11 with object 1 as well: the last
    found = [(0, 0, 0, 0, 10, 10), (0, 0, 1, 0, 10, 10), (0, 0, 1, 0, 10, 10)]
    result = match(truth, found, [0.5, 0.9, 0.5])
    assert result.rows.tolist() == [1, 0, 2]
    assert result.ranks.tolist() == [0, 1, 2]
    assert result.objects.tolist() == [[[1, 0, -1]]]
    assert not result.ignored.any()


def test_a_threshold_decides_who_is_left_for_whom():
    truth = [(0, 0, 0, 0, 10, 10)]
    found = [(0, 0, 0, 0, 10, 6), (0, 0, 0, 0, 10, 9)]  # IoU 0.6 and 0.9
    result = match(truth, found, [0.9, 0.8], threshs=(0.5, 0.7, 0.95))
    assert result.objects.tolist() == [[[0, -1], [-1, 0], [-1, -1]]]


def test_classes_and_images_keep_to_themselves():
    truth = [(0, 0, 0, 0, 10, 10)]
    found = [(1, 0, 0, 0, 10, 10), (0, 1, 0, 0, 10, 10), (0, 0, 0, 0, 10, 10)]
    result = match(truth, found, [0.9, 0.8, 0.7])
    assert result.rows.tolist() == [2, 0, 1]  # by class, then image
    assert result.objects.tolist() == [[[0, -1, -1]]]


def test_a_crowd_is_taken_again_and_only_where_there_is_no_other():
    truth = [(0, 0, 0, 0, 100, 100), (0, 0, 0, 0, 10, 10)]
    found = [(0, 0, 0, 0, 10, 6), (0, 0, 1, 1, 8, 8), (0, 0, 5, 5, 5, 5)]
    # each lies within the crowd: IoU 1; the first has 0.6 with the object beside it
    result = match(truth, found, [0.9, 0.8, 0.7], crowd=(0,))
    assert result.objects.tolist() == [[[1, 0, 0]]]
    assert result.ignored.tolist() == [[[False, True, True]]]
    assert result.objects_ignored.tolist() == [[True, False]]


def test_what_is_outside_an_area_is_ignored_there():
    truth = [(0, 0, 0, 0, 10, 10), (0, 0, 50, 50, 7, 7)]  # 100 and 49 px^2
    found = [(0, 0, 0, 0, 10, 10), (0, 0, 50, 50, 7, 7), (0, 0, 80, 80, 9, 9), (0, 0, 90, 0, 2, 2)]
    result = match(truth, found, [0.9, 0.8, 0.7, 0.6], ranges=(ALL, SMALL))
    assert result.objects_ignored.tolist() == [[False, False], [True, False]]
    assert result.objects.tolist() == [[[0, 1, -1, -1]], [[0, 1, -1, -1]]]
    assert result.ignored.tolist() == [[[False] * 4], [[True, False, True, False]]]


def test_only_the_best_of_an_image_and_class_are_looked_at():
    found = [(image, 0, 0, 0, 10, 10) for image in (0, 0, 1, 0)]
    result = match([(0, 0, 0, 0, 10, 10)], found, [0.1, 0.3, 0.05, 0.2], most=2)
    assert result.rows.tolist() == [1, 3, 2]
    assert result.ranks.tolist() == [0, 1, 0]


@pytest.mark.parametrize(("truth", "found"), [(0, 0), (2, 0), (0, 2)])
def test_nothing_to_match(truth: int, found: int):
    box = (0, 0, 0, 0, 10, 10)
    result = match([box] * truth, [box] * found, [0.5] * found, threshs=(0.5, 0.9))
    assert result.objects.shape == (1, 2, found)
    assert (result.objects == -1).all()
    assert not result.ignored.any()
    assert result.objects_ignored.shape == (1, truth)


@pytest.mark.parametrize("seed", range(5))
def test_in_parts_as_at_once(seed: int, monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(seed)

    def drawn(number: int) -> list[tuple]:
        cells = rng.integers(0, (3, 2), (number, 2))
        return np.column_stack(
            (cells, rng.integers(0, 12, (number, 2)), rng.integers(6, 14, (number, 2)))
        ).tolist()

    given = drawn(60), drawn(200), (rng.integers(0, 9, 200) / 9).tolist()
    options = {"crowd": (3, 9), "threshs": (0.5, 0.75), "ranges": (ALL, SMALL)}
    at_once = match(*given, **options)
    monkeypatch.setattr(coco_matching, "_PAIRS", 7)
    in_parts = match(*given, **options)
    for name in ("rows", "ranks", "objects", "ignored", "objects_ignored"):
        np.testing.assert_array_equal(getattr(at_once, name), getattr(in_parts, name))
    assert (at_once.objects >= 0).any()

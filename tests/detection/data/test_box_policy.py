"""Which boxes are left out, what is counted, and what an empty data set says."""

from __future__ import annotations

import numpy as np
import pytest

from detres.class_map import ClassMap
from detres.detection.annotations import Annotations
from detres.detection.data.box_policy import (
    NOT_FINITE,
    AnnotationError,
    apply_box_policy,
    known_classes,
    require_objects,
)

# In an image of 100 x 80 px (w x h): the box, what becomes of it, the reason counted.
CASES = [
    ((10, 20, 30, 40), (10, 20, 30, 40), None),
    ((0, 0, 100, 80), (0, 0, 100, 80), None),
    ((-0.5, 0, 100.9, 80), (0, 0, 100, 80), None),  # rounding: clipped, not worth a word
    ((-5, -5, 10, 10), (0, 0, 10, 10), "clipped to the image"),
    ((90, 70, 300, 300), (90, 70, 100, 80), "clipped to the image"),
    ((10, 10, 10, 20), None, "box without area"),
    ((10, 10, 20, 10), None, "box without area"),
    ((20, 10, 10, 20), None, "box without area"),
    ((10, 20, 20, 10), None, "box without area"),
    ((100, 0, 120, 20), None, "box outside its image"),
    ((0, -20, 20, 0), None, "box outside its image"),
    ((np.nan, 0, 10, 10), None, NOT_FINITE),
    ((0, 0, np.inf, 10), None, NOT_FINITE),
    ((0, 0, 1e300, 10), None, NOT_FINITE),
    ((90, 10, 90 + 1e-9, 20), None, "box without area"),  # its width is lost in float32
    ((100 - 1e-9, 10, 110, 20), None, "box outside its image"),  # likewise after clipping
]
SIZE = np.array([[80, 100]])


def no_row(_: int) -> str:
    raise AssertionError("asked to describe a row though nothing was wrong")


@pytest.mark.parametrize(("box", "kept", "reason"), CASES)
def test_one_box_by_hand(
    box: tuple[float, ...], kept: tuple[float, ...] | None, reason: str | None
) -> None:
    boxes, keep, counts, said = apply_box_policy(
        np.array([box], np.float64), SIZE, "drop", lambda row: f"f.json: row {row}"
    )
    assert said == ([f"f.json: row 0: left out, a {NOT_FINITE}"] if reason == NOT_FINITE else [])
    assert counts == ({reason: 1} if reason else {})
    assert keep.tolist() == [kept is not None]
    assert boxes.dtype == np.float64
    if kept is not None:
        np.testing.assert_array_equal(boxes, [kept])


def test_all_boxes_together_are_treated_as_each_alone() -> None:
    boxes = np.array([box for box, _, _ in CASES], np.float64)
    result, keep, counts, said = apply_box_policy(
        boxes, np.repeat(SIZE, len(CASES), axis=0), "drop", lambda row: f"f.json: row {row}"
    )
    first = next(row for row, (_, _, reason) in enumerate(CASES) if reason == NOT_FINITE)
    assert said == [f"f.json: row {first}: left out, a {NOT_FINITE}"]
    np.testing.assert_array_equal(result[keep], [kept for _, kept, _ in CASES if kept is not None])
    reasons = [reason for _, _, reason in CASES if reason]
    assert counts == {reason: reasons.count(reason) for reason in reasons}


def test_boxes_of_images_of_unknown_size_are_not_clipped_on_the_right() -> None:
    boxes, keep, counts, _ = apply_box_policy(
        np.array([[-9.0, 5, 5000, 6000]]), np.array([[0, 0]]), "drop", no_row
    )
    np.testing.assert_array_equal(boxes, [[0, 5, 5000, 6000]])
    assert keep.all()
    assert counts == {"clipped to the image": 1}


def test_error_names_the_first_unusable_box() -> None:
    boxes = np.array([[0, 0, 5, 5], [1, 1, 1, 5], [2, 2, 2, 5]], np.float64)
    with pytest.raises(
        AnnotationError, match=r"f\.json: row 1: box without area .*box_policy drop"
    ):
        apply_box_policy(
            boxes, np.repeat(SIZE, 3, axis=0), "error", lambda row: f"f.json: row {row}"
        )


def test_error_lets_good_boxes_pass_as_drop_does() -> None:
    boxes = np.array([[0, 0, 5, 5], [90, 70, 300, 300]], np.float64)
    result, keep, counts, _ = apply_box_policy(boxes, np.repeat(SIZE, 2, axis=0), "error", no_row)
    np.testing.assert_array_equal(result, [[0, 0, 5, 5], [90, 70, 100, 80]])
    assert keep.all()
    assert counts == {"clipped to the image": 1}


def test_keep_touches_nothing() -> None:
    boxes = np.array([box for box, _, _ in CASES], np.float64)
    with np.errstate(over="ignore"):
        boxes = boxes[np.isfinite(boxes.astype(np.float32)).all(axis=1)]
    result, keep, counts, _ = apply_box_policy(
        boxes, np.repeat(SIZE, len(boxes), axis=0), "keep", no_row
    )
    np.testing.assert_array_equal(result, boxes)
    assert result.dtype == np.float64
    assert keep.all()
    assert counts == {}


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e39])
def test_keep_refuses_what_no_protocol_can_score(number: float) -> None:
    boxes = np.array([[0, 0, 5, 5], [1, 1, number, 5], [number, 2, 2, 5]], np.float64)
    with pytest.raises(
        AnnotationError,
        match=r"f\.json: row 1: box with a number that is not finite \(2 such\)\. Correct it",
    ):
        apply_box_policy(
            boxes, np.repeat(SIZE, 3, axis=0), "keep", lambda row: f"f.json: row {row}"
        )


def test_boxes_keep_their_decimals() -> None:
    box = np.array([[0.1, 0.2, 50.123456, 100.3]])
    for policy, expected in (("keep", box), ("drop", [[0.1, 0.2, 50.123456, 80]])):
        result, _, _, _ = apply_box_policy(box, SIZE, policy, no_row)
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("policy", ["drop", "error", "keep"])
def test_no_boxes(policy: str) -> None:
    boxes, keep, counts, _ = apply_box_policy(np.zeros((0, 4)), np.zeros((0, 2)), policy, no_row)
    assert boxes.shape == (0, 4)
    assert boxes.dtype == np.float64
    assert keep.shape == (0,)
    assert counts == {}


def test_what_is_kept_has_area_inside_its_image_and_the_rest_has_none() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 200, (5000, 2))
    boxes = rng.integers(-100, 300, (5000, 4)).astype(np.float64)
    result, keep, counts, _ = apply_box_policy(boxes, sizes, "drop", no_row)
    height, width = sizes[:, 0], sizes[:, 1]
    for row in range(5000):  # naive witness: does any whole pixel of the image lie in the box?
        x1, y1, x2, y2 = boxes[row]
        columns = range(max(0, int(x1)), min(int(width[row]), int(x2)))
        lines = range(max(0, int(y1)), min(int(height[row]), int(y2)))
        assert keep[row] == (len(columns) > 0 and len(lines) > 0)
        if keep[row]:
            assert result[row].tolist() == [columns.start, lines.start, columns.stop, lines.stop]
    assert sum(counts.values()) - counts["clipped to the image"] == (~keep).sum()
    assert 0 < keep.sum() < 5000


def test_known_classes() -> None:
    assert known_classes(["dog", "cat"], ("cat", "dog", "cow"), "f") == ("dog", "cat")
    with pytest.raises(AnnotationError, match=r"f has no class 'dgo'; did you mean 'dog'\?"):
        known_classes(["dgo"], ("cat", "dog"), "f")
    with pytest.raises(AnnotationError, match="it has: cat, dog"):
        known_classes(["zeppelin"], ("cat", "dog"), "f")
    with pytest.raises(AnnotationError, match="empty list"):
        known_classes([], ("cat",), "f")
    with pytest.raises(AnnotationError, match="'cat' is given twice"):
        known_classes(["cat", "cat"], ("cat",), "f")


def annotations(
    labels: list[int],
    crowd: list[bool],
    difficult: list[bool],
    dropped: dict[str, int],
    offsets: list[int],
) -> Annotations:
    num, images = len(labels), len(offsets) - 1
    return Annotations(
        source="f.json",
        class_map=ClassMap(("cat", "dog"), (1, 2)),
        image_ids=np.arange(images),
        image_files=np.array([str(k) for k in range(images)], dtype=str),
        image_sizes=np.zeros((images, 2), np.int32),
        offsets=np.array(offsets),
        boxes=np.zeros((num, 4)),
        labels=np.array(labels, np.int64),
        areas=np.zeros(num),
        crowd=np.array(crowd, bool),
        difficult=np.array(difficult, bool),
        ids=np.arange(num),
        dropped=dropped,
    )


def test_require_objects_wants_one_that_is_neither_crowd_nor_difficult() -> None:
    good = annotations([1, 2], [True, False], [False, False], {}, [0, 1, 2])
    assert require_objects(good, "to learn from") is None
    flagged = annotations(
        [1, 2],
        [True, False],
        [False, True],
        {"other class": 7, "clipped to the image": 3},
        [0, 1, 2],
    )
    with pytest.raises(AnnotationError) as caught:
        require_objects(flagged, "to learn from")
    assert str(caught.value) == (
        "f.json: 2 images but no object to learn from; left out: 7 other class, 2 crowd or "
        "difficult (classes: cat, dog). Check classes, box_policy and the crowd or difficult flags"
    )


def test_require_objects_says_what_an_object_is_needed_for() -> None:
    crowd = annotations([1], [True], [False], {}, [0, 1])
    with pytest.raises(AnnotationError, match=r"but no object to evaluate on; left out: 1 crowd"):
        require_objects(crowd, "to evaluate on")


def test_require_objects_says_that_nothing_was_left_out() -> None:
    for offsets in ([0, 0], [0]):
        with pytest.raises(
            AnnotationError,
            match=rf"{len(offsets) - 1} images but .*; the files list no object \(classes: cat",
        ):
            require_objects(annotations([], [], [], {}, offsets), "to learn from")
    renumbered = annotations([], [], [], {"renumbered annotation id": 2}, [0, 0])
    with pytest.raises(AnnotationError, match="the files list no object"):
        require_objects(renumbered, "to learn from")


def test_as_written_nothing_is_touched_or_refused() -> None:
    boxes = np.array([box for box, _, _ in CASES], np.float64)
    result, keep, counts, _ = apply_box_policy(
        boxes, np.repeat(SIZE, len(boxes), 0), "as_written", no_row
    )
    np.testing.assert_array_equal(result, boxes)
    assert keep.all()
    assert counts == {}

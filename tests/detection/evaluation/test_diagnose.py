"""A score of nothing is explained by its cause, and a score of something is left alone."""

from __future__ import annotations

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

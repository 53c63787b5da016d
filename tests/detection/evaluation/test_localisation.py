"""The localisation error by hand, and against a plain restatement of the devkit."""

from __future__ import annotations

import json

import numpy as np
import pytest

from detres.detection.annotations import Annotations
from detres.detection.evaluation.localisation import (
    Guesses,
    given_class_error,
    localised,
    predicted_class_error,
)
from tests.detection.evaluation.scenes import truth_of

BOX, HALF, LESS = (0, 0, 100, 100), (0, 0, 100, 50), (0, 0, 100, 49)
FAR = (120, 120, 160, 160)


def guesses_of(rows: list[list[tuple]]) -> Guesses:
    """Of each image (label, box), best first."""
    labels = np.array([[label for label, _ in row] for row in rows], np.int64)
    return Guesses(labels, np.array([[box for _, box in row] for row in rows], np.float64))


def two_images() -> Annotations:
    return truth_of([("a", 1, BOX), ("a", 1, FAR), ("b", 2, BOX)], ["a", "b"])


def test_an_overlap_of_a_half_with_any_object_is_right() -> None:
    found = guesses_of([[(1, HALF), (1, LESS), (1, FAR)], [(2, FAR), (2, BOX), (1, BOX)]])
    assert localised(two_images(), found).tolist() == [[True, False, True], [False, True, False]]


def test_guesses_as_detections_by_hand() -> None:
    guesses = guesses_of([[(1, HALF), (2, LESS)], [(2, FAR), (1, BOX)]])
    found = guesses.all(two_images())
    assert found.image_ids.tolist() == ["a", "a", "b", "b"]
    assert found.labels.tolist() == [1, 2, 2, 1]
    assert found.boxes.tolist() == [list(box) for box in (HALF, LESS, FAR, BOX)]
    assert found.scores.tolist() == [1, 0.5, 1, 0.5]
    assert found.seen.tolist() == ["a", "b"]
    assert guesses.first(two_images()).boxes.tolist() == found.boxes[::2].tolist()


def test_the_error_given_the_class_is_of_the_first_box() -> None:
    result = given_class_error(
        two_images(), guesses_of([[(1, FAR), (1, LESS)], [(2, FAR), (2, BOX)]]), "by hand"
    )
    assert result.errors == {"loc_error": 0.5}
    assert result.per_class == {"cat": 0.0, "dog": 1.0}
    assert result.metrics == {"loc_error": 0.5, "localised": 0.5}
    assert result.metrics[result.best_metric] == 0.5
    assert result.protocol == "localisation error given the class, IoU >= 0.5, by hand"
    assert " loc error  50.00 %" in result.table()
    assert "dog 100.00 %" in result.table(per_class=True)
    assert json.loads(json.dumps(result.to_dict()))["num_images"] == 2


def test_the_first_guesses_are_detections() -> None:
    found = guesses_of([[(1, FAR), (1, LESS)], [(2, HALF), (2, BOX)]]).first(two_images())
    assert found.image_ids.tolist() == ["a", "b"]
    assert found.boxes.tolist() == [list(FAR), list(HALF)]
    assert found.labels.tolist() == [1, 2]
    assert found.scores.tolist() == [1, 1]


def test_predicted_classes_count_up_to_the_fifth() -> None:
    truth = two_images()
    wrong = (2, BOX)
    sixth = [[*[wrong] * 5, (1, BOX)], [(2, BOX)] * 6]
    result = predicted_class_error(truth, guesses_of(sixth), "by hand")
    assert result.errors == {
        "top5_loc_error": 0.5,
        "top1_loc_error": 0.5,
        "top5_error": 0.5,
        "top1_error": 0.5,
    }
    fifth = [[*[wrong] * 4, (1, LESS)], [(1, BOX), (2, BOX), (2, FAR), (2, FAR), (2, FAR)]]
    result = predicted_class_error(truth, guesses_of(fifth), "by hand")
    assert result.errors == {
        "top5_loc_error": 0.5,  # of the first image the class is right, the box is not
        "top1_loc_error": 1.0,
        "top5_error": 0.0,
        "top1_error": 1.0,
    }
    assert result.per_class == {"cat": 1.0, "dog": 0.0}


def test_a_class_without_images_has_no_error() -> None:
    truth = truth_of([("a", 2, BOX)], ["a"])
    assert given_class_error(truth, guesses_of([[(2, BOX)]]), "").per_class == {
        "cat": None,
        "dog": 0.0,
    }


def restated(truth: Annotations, found: Guesses) -> float:
    """The devkit's loop: the mean over images of the least error of five guesses."""
    total = 0.0
    for n in range(len(truth)):
        rows = range(truth.offsets[n], truth.offsets[n + 1])
        least = 1.0
        for guess in range(min(5, found.labels.shape[1])):
            if found.labels[n, guess] != truth.labels[rows[0]]:
                continue
            x1, y1, x2, y2 = found.boxes[n, guess]
            for m in rows:
                a1, b1, a2, b2 = truth.boxes[m]
                # inclusive pixels: sides count from 1, ends lie a pixel before the continuous ones
                w = min(x2 - 1, a2 - 1) - max(x1, a1) + 1
                h = min(y2 - 1, b2 - 1) - max(y1, b1) + 1
                if w > 0 and h > 0:
                    union = (x2 - x1) * (y2 - y1) + (a2 - a1) * (b2 - b1) - w * h
                    least = min(least, 0.0 if w * h / union >= 0.5 else 1.0)
        total += least
    return total / len(truth)


@pytest.mark.parametrize("seed", range(5))
def test_random_guesses_agree_with_the_devkits_loop(seed: int) -> None:
    rng = np.random.default_rng(seed)
    objects, images = [], [f"i{n}" for n in range(30)]
    for image in images:
        label = int(rng.integers(1, 3))
        for _ in range(rng.integers(1, 4)):
            corner, side = rng.integers(0, 80, 2), rng.integers(10, 100, 2)
            objects.append((image, label, (*corner, *(corner + side))))
    truth = truth_of(objects, images)
    owners = np.repeat(np.arange(30), np.diff(truth.offsets))
    boxes = np.stack([truth.boxes[rng.choice(np.flatnonzero(owners == n), 6)] for n in range(30)])
    boxes = boxes + rng.integers(-25, 26, boxes.shape)
    boxes[..., 2:] = np.maximum(boxes[..., 2:], boxes[..., :2] + 1)
    found = Guesses(rng.integers(1, 3, (30, 6)), boxes)
    result = predicted_class_error(truth, found, "")
    assert 0 < result.errors["top5_loc_error"] < 1
    assert result.errors["top5_loc_error"] == pytest.approx(restated(truth, found))


def test_what_cannot_be_judged_is_refused() -> None:
    one = guesses_of([[(1, BOX)]])
    with pytest.raises(ValueError, match="1 images without objects"):
        localised(truth_of([("a", 1, BOX)], ["a", "b"]), one)
    with pytest.raises(ValueError, match="truth: an image has objects of several classes"):
        localised(truth_of([("a", 1, BOX), ("a", 2, BOX)], ["a"]), one)
    with pytest.raises(ValueError, match="are not guesses of 2 images"):
        localised(two_images(), one)
    with pytest.raises(ValueError, match="not finite"):
        localised(truth_of([("a", 1, BOX)], ["a"]), guesses_of([[(1, (0, 0, np.nan, 1))]]))
    with pytest.raises(ValueError, match="0 images without objects"):
        localised(truth_of([], []), one)

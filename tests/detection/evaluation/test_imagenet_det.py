"""ImageNet DET's average precision against hand cases and a plain restatement of its devkit."""

from __future__ import annotations

import numpy as np
import pytest

from detres.class_map import ClassMap, ClassMismatchError
from detres.detection.annotations import Annotations
from detres.detection.evaluation.imagenet_det import evaluate_imagenet_det, thresholds
from detres.detection.evaluation.voc_ap import evaluate_voc
from detres.detection.structures import Predictions
from tests.detection.evaluation.scenes import predictions_of, random_scene, truth_of

SMALL = (40, 40, 50, 50)
"""10 x 10 px: right from an IoU of 100 / 400 on."""


def mean_of(objects: list[tuple], found: list[tuple]) -> float | None:
    return evaluate_imagenet_det(truth_of(objects, ["a", "b"]), predictions_of(found)).metrics[
        "mAP"
    ]


@pytest.mark.parametrize(
    ("side", "expected"),
    [(10, 0.25), (20, 4 / 9), (24, (24 / 34) ** 2), (25, 0.5), (1000, 0.5), (1, 1 / 121), (0, 0)],
)
def test_the_threshold_of_a_square_by_hand(side: int, expected: float) -> None:
    assert thresholds(np.array([[5.0, 5.0, 5.0 + side, 5.0 + side]])) == pytest.approx([expected])


def test_the_threshold_of_a_long_object_is_of_both_its_sides() -> None:
    found = thresholds(np.array([[0.0, 0.0, 10.0, 1000.0], [0.0, 0.0, 1000.0, 10.0]]))
    assert found == pytest.approx([10 * 1000 / (20 * 1010)] * 2)


def test_a_small_object_is_found_where_voc_finds_none() -> None:
    around = (36, 38, 56, 56)  # 20 x 18 px around it: IoU 100 / 360
    truth, found = truth_of([("a", 1, SMALL)], ["a"]), predictions_of([("a", 1, 0.9, around)])
    assert evaluate_imagenet_det(truth, found).metrics["mAP"] == 1
    assert evaluate_voc(truth, found, metric="voc12").metrics["mAP"] == 0


def test_the_threshold_itself_counts_and_less_does_not() -> None:
    assert mean_of([("a", 1, SMALL)], [("a", 1, 0.9, (35, 35, 55, 55))]) == 1  # exactly 100 / 400
    assert mean_of([("a", 1, SMALL)], [("a", 1, 0.9, (35, 35, 55, 55.1))]) == 0
    large = (0, 0, 100, 100)
    assert mean_of([("a", 1, large)], [("a", 1, 0.9, (0, 0, 50, 100))]) == 1  # exactly 0.5
    assert mean_of([("a", 1, large)], [("a", 1, 0.9, (0, 0, 49, 100))]) == 0


def test_an_object_that_is_taken_leaves_the_next_best_one() -> None:
    objects = [("a", 1, (0, 0, 100, 100)), ("a", 1, (0, 20, 100, 120))]
    found = [("a", 1, 0.9, (0, 0, 100, 100)), ("a", 1, 0.8, (0, 5, 100, 105))]
    assert mean_of(objects, found) == 1  # the second is nearer to the first object, which is taken
    truth = truth_of(objects, ["a"])
    assert evaluate_voc(truth, predictions_of(found), metric="voc12").metrics["mAP"] == 0.5


def test_a_second_detection_of_one_object_is_wrong() -> None:
    found = [("a", 1, 0.9, SMALL), ("a", 1, 0.8, SMALL), ("b", 1, 0.7, SMALL)]
    area = 0.5 * 1 + 0.5 * 2 / 3
    assert mean_of([("a", 1, SMALL), ("b", 1, SMALL)], found) == pytest.approx(area)


@pytest.mark.parametrize("flag", ["crowd", "difficult"])
def test_what_is_flagged_is_neither_right_nor_wrong(flag: str) -> None:
    objects = [("a", 1, SMALL, flag), ("b", 1, SMALL)]
    found = [("a", 1, 0.9, SMALL), ("a", 1, 0.8, SMALL), ("b", 1, 0.7, SMALL)]
    assert mean_of(objects, found) == 1


def test_the_empty_cases() -> None:
    assert mean_of([("a", 1, SMALL)], []) == 0
    assert mean_of([], [("a", 1, 0.9, SMALL)]) is None
    result = evaluate_imagenet_det(truth_of([("a", 1, SMALL)], ["a"]), predictions_of([]))
    assert result.per_class == {"cat": 0, "dog": None}
    assert result.protocol.startswith("ImageNet DET")
    assert "n/a (no ground truth)" in result.table()


@pytest.mark.parametrize("box", [(40, 40, 40, 60), (50, 50, 40, 60), (60, 60, 40, 40)])
def test_a_box_without_area_is_found_by_nothing(box: tuple[int, ...]) -> None:
    for found in (box, (100, 100, 120, 120), (30, 30, 70, 70)):
        assert mean_of([("a", 1, box)], [("a", 1, 0.9, found)]) == 0


def test_other_images_and_classes_are_refused() -> None:
    truth = truth_of([("a", 1, SMALL)], ["a"])
    with pytest.raises(ValueError, match="image b, which truth does not have"):
        evaluate_imagenet_det(truth, predictions_of([("b", 1, 0.5, SMALL)]))
    with pytest.raises(ClassMismatchError, match="1=owl"):
        evaluate_imagenet_det(truth, predictions_of([], ClassMap.of_names(["owl"])))


def restated(truth: Annotations, predictions: Predictions, label: int) -> float | None:
    """AP of a class as the devkit goes about it: image by image on inclusive pixels, every
    detection against every object, then all together by score.
    """
    outcomes, num_objects = [], 0
    for n, image in enumerate(truth.image_ids.tolist()):
        objects = [
            truth.boxes[m].tolist()
            for m in range(truth.offsets[n], truth.offsets[n + 1])
            if truth.labels[m] == label
        ]
        num_objects += len(objects)
        detected = [False] * len(objects)
        of_image = [
            d
            for d in range(len(predictions))
            if predictions.image_ids[d] == image and predictions.labels[d] == label
        ]
        for d in sorted(of_image, key=lambda d: -predictions.scores[d]):
            x1, y1, x2, y2 = (float(value) for value in predictions.boxes[d])
            best, best_k = float("-inf"), -1
            for k, (a1, b1, a2, b2) in enumerate(objects):
                # inclusive ends lie a pixel before the continuous ones, and sides count from 1
                w = min(x2 - 1, a2 - 1) - max(x1, a1) + 1
                h = min(y2 - 1, b2 - 1) - max(y1, b1) + 1
                if detected[k] or w <= 0 or h <= 0:
                    continue
                own_w, own_h = a2 - 1 - a1 + 1, b2 - 1 - b1 + 1
                union = (x2 - x1) * (y2 - y1) + own_w * own_h - w * h
                wanted = min(0.5, own_w * own_h / ((own_w + 10) * (own_h + 10)))
                if w * h / union >= wanted and w * h / union > best:
                    best, best_k = w * h / union, k
            if best_k >= 0:
                detected[best_k] = True
            outcomes.append((float(predictions.scores[d]), d, best_k >= 0))
    if not num_objects:
        return None
    outcomes.sort(key=lambda item: (-item[0], item[1]))
    hits = [right for _, _, right in outcomes]
    points = [(sum(hits[:n]) / num_objects, sum(hits[:n]) / n) for n in range(1, len(hits) + 1)]
    area, reached = 0.0, 0.0
    for recall, _ in points:
        area += (recall - reached) * max(p for r, p in points if r >= recall)
        reached = recall
    return area


@pytest.mark.parametrize("seed", range(12))
def test_random_scenes_agree_with_the_devkits_loop(seed: int) -> None:
    scene, predictions = random_scene(seed)
    shrunk = scene.boxes.copy()  # half of the objects small, where thresholds differ
    shrunk[::2, 2:] = shrunk[::2, :2] + (shrunk[::2, 2:] - shrunk[::2, :2]) / 5 + 1
    none = np.zeros(len(shrunk), bool)
    truth = Annotations(
        **{**vars(scene), "boxes": shrunk, "crowd": none, "difficult": none, "sides": None}
    )
    jitter = np.random.default_rng(seed).integers(-3, 4, (40, 4))
    near = (truth.boxes[:40] + jitter).astype(np.float32)
    near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
    owners = np.repeat(truth.image_ids, np.diff(truth.offsets))
    found = Predictions(
        class_map=truth.class_map,
        image_ids=np.concatenate((predictions.image_ids, owners)),
        boxes=np.concatenate((predictions.boxes, near)),
        scores=np.concatenate((predictions.scores, np.linspace(0, 1, 40, dtype=np.float32))),
        labels=np.concatenate((predictions.labels, truth.labels)),
    )
    result = evaluate_imagenet_det(truth, found)
    for index, name in enumerate(truth.class_map.names):
        assert result.per_class[name] == pytest.approx(restated(truth, found, index + 1))
    voc = evaluate_voc(truth, found, metric="voc12")
    assert result.metrics["mAP"] > voc.metrics["mAP"]

"""Precision over recall, the best scores and confusion: by hand, against pycocotools, against a
naive loop.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from detres.boxes import paired_iou
from detres.class_map import ClassMap
from detres.detection.choices import DRAWN_SCORE
from detres.detection.evaluation.coco_ap import evaluate_coco
from detres.detection.evaluation.curves import (
    class_curves,
    confusion_of,
    mean_curve,
    outcome_of,
    score_thresholds,
)
from detres.detection.evaluation.imagenet_det import evaluate_imagenet_det
from detres.detection.evaluation.matches import NONE
from detres.detection.evaluation.voc_ap import evaluate_voc
from tests.detection.evaluation.by_pycocotools import by_dicts
from tests.detection.evaluation.scenes import TWO, predictions_of, random_scene, truth_of

A, B, C, D = (10, 10, 50, 50), (60, 60, 100, 100), (110, 10, 150, 50), (10, 110, 50, 150)
AWAY = (150, 150, 190, 190)


def evaluate_voc12(truth, predictions):
    return evaluate_voc(truth, predictions, metric="voc12")


def evaluate_voc07(truth, predictions):
    return evaluate_voc(truth, predictions, metric="voc07")


EVERY = (evaluate_coco, evaluate_voc07, evaluate_voc12, evaluate_imagenet_det)


@pytest.mark.parametrize("evaluate", EVERY)
def test_a_curve_and_its_best_score_by_hand(evaluate):
    """Four cats; in falling score right, wrong, right, right, wrong: F1 2/5, 2/6, 4/7, 6/8, 6/9."""
    truth = truth_of([(1, 1, A), (1, 1, B), (2, 1, A), (2, 1, B)], [1, 2])
    found = predictions_of(
        [
            *((1, 1, 0.9, A), (1, 1, 0.75, AWAY), (1, 1, 0.5, B)),
            *((2, 1, 0.25, A), (2, 1, 0.125, AWAY)),
        ]
    )
    curve = class_curves(truth, found, evaluate(truth, found))["cat"]
    assert curve.recall.tolist() == [1 / 4, 2 / 4, 3 / 4]
    assert curve.precision.tolist() == [1, 2 / 3, 3 / 4]
    assert curve.scores.tolist() == pytest.approx([0.9, 0.5, 0.25])
    assert (curve.num_objects, curve.num_detections) == (4, 5)
    assert (curve.score_threshold, curve.best_f1) == (0.25, 6 / 8)
    assert (curve.precision_at_best, curve.recall_at_best) == (3 / 4, 3 / 4)


def test_a_threshold_takes_all_detections_of_its_score():
    """Right at 0.75, then two wrong and a right one at 0.5: F1 2/3, then 4/6 with all of them. By
    the first two of the four alone it would be another one.
    """
    truth = truth_of([(1, 1, A), (1, 1, B)], [1])
    rows = [(1, 1, 0.75, A), (1, 1, 0.5, B), (1, 1, 0.5, AWAY), (1, 1, 0.5, C)]
    found = predictions_of(rows)
    curve = class_curves(truth, found, evaluate_coco(truth, found))["cat"]
    assert (curve.score_threshold, curve.best_f1) == (
        0.75,
        pytest.approx(2 / 3),
    )  # the higher of equals
    found = predictions_of([row for row in rows if row[3] != C])
    curve = class_curves(truth, found, evaluate_coco(truth, found))["cat"]
    assert (curve.score_threshold, curve.best_f1) == (0.5, pytest.approx(4 / 5))
    assert curve.precision_at_best == pytest.approx(2 / 3)


@pytest.mark.parametrize("evaluate", EVERY)
def test_a_class_of_which_nothing_is_known(evaluate):
    for objects, rows, f1 in (
        ([], [], None),
        ([], [(1, 1, 0.9, A)], None),
        ([(1, 1, A, "difficult")], [(1, 1, 0.9, A)], None),
        ([(1, 1, A, "crowd")], [], None),
        ([(1, 1, A)], [], 0.0),
        ([(1, 1, A)], [(1, 1, 0.9, AWAY)], 0.0),
        ([(1, 1, A)], [(1, 2, 0.9, A)], 0.0),
    ):
        truth, found = truth_of(objects, [1]), predictions_of(rows)
        result = evaluate(truth, found)
        curves = class_curves(truth, found, result)
        curve = curves["cat"]
        assert (curve.score_threshold, curve.best_f1) == (DRAWN_SCORE, f1)
        assert curve.ap == f1 == curve.precision_at_best == curve.recall_at_best
        assert len(curve.recall) == len(curve.precision) == len(curve.scores) == 0
        assert mean_curve(curves).ap == f1
        assert score_thresholds(curves) == {"cat": 0.5, "dog": 0.5}


@pytest.mark.parametrize("evaluate", EVERY)
@pytest.mark.parametrize("seed", range(6))
def test_the_area_under_a_curve_is_the_protocols_ap(evaluate, seed):
    truth, found = random_scene(seed)
    result = evaluate(truth, found)
    curves = class_curves(truth, found, result)
    coco = evaluate is evaluate_coco
    per_class = result.per_class_ap50 if coco else result.per_class
    for name, curve in curves.items():
        assert curve.ap == pytest.approx(per_class[name], abs=1e-9)
        area = result.average_precision(curve.recall, curve.precision)
        assert area == pytest.approx(per_class[name], abs=1e-9)
        assert (np.diff(curve.recall) > 0).all()
        assert (np.diff(curve.scores) <= 0).all()
    mean = mean_curve(curves)
    whole = result.metrics["AP50" if coco else "mAP"]
    assert mean.ap == pytest.approx(whole, abs=1e-9)
    area = result.average_precision(mean.recall, mean.precision)
    assert area == pytest.approx(whole, abs=1e-9)
    assert 0 < whole < 1


@pytest.mark.parametrize("seed", range(4))
def test_cocos_curve_is_that_of_pycocotools(seed):
    truth, found = random_scene(seed)
    evaluation = by_dicts(truth, found)
    curves = class_curves(truth, found, evaluate_coco(truth, found))
    for index, curve in enumerate(curves.values()):
        envelope = np.maximum.accumulate(curve.precision[::-1])[::-1]
        first = np.searchsorted(curve.recall, np.linspace(0, 1, 101))
        ours = np.append(envelope, 0)[first]
        theirs = evaluation.eval["precision"][0, :, index, 0, -1]
        assert ours == pytest.approx(theirs, abs=1e-9)
        reached = np.flatnonzero(first < len(curve.scores))[1:]  # the first may be a wrong one
        at = evaluation.eval["scores"][0, reached, index, 0, -1]
        assert curve.scores[first[reached]] == pytest.approx(at)


def naive_f1(truth, found, result, label, threshold):
    """By counting what `result` matched from a score on."""
    taken = (found.labels == label) & (found.scores >= threshold) & result.matches.counted
    right = int((taken & result.matches.found).sum())
    objects = int(((truth.labels == label) & ~truth.crowd & ~truth.difficult).sum())
    return 2 * right / (int(taken.sum()) + objects)


@pytest.mark.parametrize("evaluate", EVERY)
@pytest.mark.parametrize("seed", range(3))
def test_no_score_has_a_better_f1(evaluate, seed):
    truth, found = random_scene(seed)
    result = evaluate(truth, found)
    for label, curve in enumerate(class_curves(truth, found, result).values(), start=1):
        at = {
            score: naive_f1(truth, found, result, label, score)
            for score in found.scores.astype(float)
        }
        best = max(at.values())
        assert curve.best_f1 == pytest.approx(best)
        assert curve.score_threshold == max(s for s, f1 in at.items() if f1 == best)


@pytest.mark.parametrize("evaluate", EVERY)
def test_detections_from_a_score_on_match_alike_without_the_others(evaluate):
    truth, found = random_scene(5)
    rows = found.scores >= 0.45
    fewer = replace(
        found,
        **{name: getattr(found, name)[rows] for name in ("image_ids", "boxes", "scores", "labels")},
    )
    whole, part = evaluate(truth, found).matches, evaluate(truth, fewer).matches
    assert whole.objects[rows].tolist() == part.objects.tolist()
    assert whole.counted[rows].tolist() == part.counted.tolist()
    assert (part.objects != NONE).any()


def test_coco_looks_at_100_detections_of_an_image_and_class():
    truth = truth_of([(1, 1, A)], [1])
    rows = [(1, 1, 0.9 - n / 1000, AWAY) for n in range(100)]
    found = predictions_of([*rows, (1, 1, 0.1, A)])
    curve = class_curves(truth, found, evaluate_coco(truth, found))["cat"]
    assert (curve.num_detections, curve.best_f1) == (100, 0)
    found = predictions_of([*rows[1:], (1, 1, 0.1, A)])
    curve = class_curves(truth, found, evaluate_coco(truth, found))["cat"]
    assert (curve.num_detections, curve.best_f1) == (100, 2 / 101)


# ---- confusion ----


def counts_of(objects, rows, evaluate=evaluate_coco, thresholds=(0.5, 0.5), class_map=TWO):
    images = sorted({row[0] for row in [*objects, *rows]} | {1})
    truth, found = truth_of(objects, images, class_map), predictions_of(rows, class_map)
    result = evaluate(truth, found)
    return confusion_of(truth, found, result.matches, np.array(thresholds)).counts.tolist()


@pytest.mark.parametrize("evaluate", EVERY)
def test_a_confusion_matrix_by_hand(evaluate):
    """A cat found, one taken for a dog, one missed; a dog found twice; a dog on nothing; a cat
    below its score; a difficult dog found.
    """
    objects = [(1, 1, A), (1, 1, B), (1, 1, C), (2, 2, A), (2, 2, D, "difficult")]
    rows = [
        *((1, 1, 0.9, A), (1, 2, 0.8, B), (1, 1, 0.4, C)),
        *((2, 2, 0.9, A), (2, 2, 0.7, A), (2, 2, 0.6, AWAY), (2, 2, 0.95, D)),
    ]
    assert counts_of(objects, rows, evaluate) == [[1, 1, 1], [0, 1, 0], [0, 2, 0]]


@pytest.mark.parametrize("evaluate", EVERY)
def test_no_objects_no_detections_and_one_class(evaluate):
    one = ClassMap.of_names(("thing",))
    assert counts_of([], [], evaluate) == [[0] * 3] * 3
    assert counts_of([], [(1, 2, 0.9, A)], evaluate) == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert counts_of([(1, 2, A)], [], evaluate) == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert counts_of([(1, 1, A)], [(1, 1, 0.9, A)], evaluate, (0.5,), one) == [[1, 0], [0, 0]]
    assert counts_of([(1, 1, A, "crowd")], [(1, 1, 0.9, A)], evaluate, (0.5,), one) == [[0] * 2] * 2


def test_the_own_class_comes_first_however_low_its_score():
    objects = [(1, 1, A)]
    rows = [(1, 2, 0.9, A), (1, 1, 0.6, (12, 10, 52, 50))]
    assert counts_of(objects, rows) == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_of_other_classes_the_higher_score_and_the_nearer_object_count():
    three = ClassMap.of_names(("a", "b", "c"))
    near = (12, 10, 52, 50)
    counts = counts_of(
        [(1, 1, A)], [(1, 2, 0.6, A), (1, 3, 0.9, near)], thresholds=(0.5,) * 3, class_map=three
    )
    assert counts[0] == [0, 0, 1, 0]
    assert counts[3] == [0, 1, 0, 0]
    counts = counts_of(
        [(1, 1, (20, 10, 60, 50)), (1, 2, near)],
        [(1, 3, 0.9, A)],
        thresholds=(0.5,) * 3,
        class_map=three,
    )
    assert counts[0] == [0, 0, 0, 1]
    assert counts[1] == [0, 0, 1, 0]


def test_an_object_of_another_image_or_too_little_overlap_is_no_confusion():
    assert counts_of([(1, 1, A)], [(2, 2, 0.9, A)]) == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]
    half, less = (10, 10, 50, 30), (10, 10, 50, 29.5)
    assert counts_of([(1, 1, A)], [(1, 2, 0.9, half)])[0] == [0, 1, 0]  # an IoU of 0.5
    assert counts_of([(1, 1, A)], [(1, 2, 0.9, less)])[0] == [0, 0, 1]


def test_every_class_has_a_score_of_its_own_which_counts_itself():
    rows = [(1, 1, 0.5, A), (1, 2, 0.5, B)]
    objects = [(1, 1, A), (1, 2, B)]
    assert counts_of(objects, rows, thresholds=(0.5, 0.75)) == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("evaluate", EVERY)
@pytest.mark.parametrize("seed", range(6))
def test_rows_are_the_objects_and_columns_the_detections(evaluate, seed):
    truth, found = random_scene(seed)
    matches = evaluate(truth, found).matches
    thresholds = np.array([0.3, 0.6])
    confusion = confusion_of(truth, found, matches, thresholds)
    outcome = outcome_of(found, matches, thresholds)
    counts = confusion.counts
    assert confusion.names == ("cat", "dog", "background")
    for label in (1, 2):
        to_find = (truth.labels == label) & ~truth.crowd & ~truth.difficult
        taken = (found.labels == label) & (found.scores >= thresholds[label - 1])
        assert counts[label - 1].sum() == to_find.sum()
        assert counts[:, label - 1].sum() == (taken & matches.counted).sum()
        assert counts[label - 1, label - 1] == (taken & outcome.right).sum()
    assert counts[2, 2] == 0
    assert counts.tolist() == naive_confusion(truth, found, matches, thresholds)


def naive_confusion(truth, found, matches, thresholds):
    """The rule of `confusion_of` as its words have it, a detection at a time."""
    counts = [[0] * 3 for _ in range(3)]
    owners, free, left = truth.rows_of(found), {}, []
    for m in range(truth.num_objects):
        if not (truth.crowd[m] or truth.difficult[m]):
            free[m] = int(np.searchsorted(truth.offsets, m, side="right")) - 1
    for d in matches.order.tolist():
        label = int(found.labels[d])
        if found.scores[d] < thresholds[label - 1] or not matches.counted[d]:
            continue
        if matches.objects[d] != NONE:
            counts[label - 1][label - 1] += 1
            del free[int(matches.objects[d])]
        else:
            left.append(d)
    for d in left:
        label, best, overlap = int(found.labels[d]), None, 0.0
        for m, image in free.items():
            iou = paired_iou(found.boxes[d].astype(float), truth.boxes[m])
            if image != owners[d] or truth.labels[m] == label or iou < matches.iou_threshs[m]:
                continue
            if iou > overlap:
                best, overlap = m, iou
        row = 2 if best is None else int(truth.labels[best]) - 1
        counts[row][label - 1] += 1
        free.pop(best, None)
    for m in free:
        counts[int(truth.labels[m]) - 1][2] += 1
    return counts


def test_random_scenes_have_confusions():
    """Else the naive rule would have nothing to say of them."""
    confused = 0
    for seed in range(6):
        truth, found = random_scene(seed)
        matches = evaluate_coco(truth, found).matches
        counts = confusion_of(truth, found, matches, np.array([0.3, 0.6])).counts
        confused += counts[0, 1] + counts[1, 0]
    assert confused > 3


@pytest.mark.parametrize("seed", range(3))
def test_an_outcome_is_one_of_each(seed):
    truth, found = random_scene(seed)
    matches = evaluate_coco(truth, found).matches
    outcome = outcome_of(found, matches, np.array([0.3, 0.6]))
    assert not (outcome.right & outcome.wrong).any()
    assert not (outcome.found & outcome.missed).any()
    assert (outcome.found | outcome.missed | truth.crowd | truth.difficult).all()
    assert not ((outcome.found | outcome.missed) & (truth.crowd | truth.difficult)).any()
    assert outcome.right.sum() == outcome.found.sum() > 0
    assert not ((outcome.right | outcome.wrong) & ~outcome.taken).any()

"""VOC average precision against worked examples and a naive copy of the devkit's rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from defusedxml.ElementTree import parse

from detres.class_map import ClassMap, ClassMismatchError
from detres.detection.annotations import Annotations
from detres.detection.data.voc import read_voc
from detres.detection.evaluation.matches import divided_by_class
from detres.detection.evaluation.result_files import read_voc_results
from detres.detection.evaluation.voc_ap import average_precision, evaluate_voc
from detres.detection.structures import Predictions
from tests.detection.evaluation.scenes import TWO, predictions_of, random_scene, truth_of

# The worked example of the README of github.com/rafaelpadilla/Object-Detection-Metrics: (image, x,
# y, w, h), where the right edge is x + w, inclusive.
WORKED_OBJECTS = [
    (1, 25, 16, 38, 56), (1, 129, 123, 41, 62), (2, 123, 11, 43, 55), (2, 38, 132, 59, 45), (3, 16,
    14, 35, 48),
    (3, 123, 30, 49, 44), (3, 99, 139, 47, 47), (4, 53, 42, 40, 52), (4, 154, 43, 31, 34), (5, 59,
    31, 44, 51),
    (5, 48, 128, 34, 52), (6, 36, 89, 52, 76), (6, 62, 58, 44, 67), (7, 28, 31, 55, 63), (7, 58,
    67, 50, 58),
]  # fmt: skip
WORKED_DETECTIONS = [
    (1, 0.88, 5, 67, 31, 48), (1, 0.70, 119, 111, 40, 67), (1, 0.80, 124, 9, 49, 67), (2, 0.71, 64,
    111, 64, 58),
    (2, 0.54, 26, 140, 60, 47), (2, 0.74, 19, 18, 43, 35), (3, 0.18, 109, 15, 77, 39), (3, 0.67,
    86, 63, 46, 45),
    (3, 0.38, 160, 62, 36, 53), (3, 0.91, 105, 131, 47, 47), (3, 0.44, 18, 148, 40, 44), (4, 0.35,
    83, 28, 28, 26),
    (4, 0.78, 28, 68, 42, 67), (4, 0.45, 87, 89, 25, 39), (4, 0.14, 10, 155, 60, 26), (5, 0.62, 50,
    38, 28, 46),
    (5, 0.44, 95, 11, 53, 28), (5, 0.95, 29, 131, 72, 29), (5, 0.23, 29, 163, 72, 29), (6, 0.45,
    43, 48, 74, 38),
    (6, 0.84, 17, 155, 29, 35), (6, 0.43, 95, 110, 25, 42), (7, 0.48, 16, 20, 101, 88), (7, 0.95,
    33, 116, 37, 49),
]  # fmt: skip
ONE = ClassMap(names=("object",), source_ids=(1,))
BOX, NEAR, FAR = (10, 10, 50, 50), (12, 10, 52, 50), (100, 100, 140, 140)


def continuous(x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
    return x - 1, y - 1, x + w, y + h


@pytest.mark.parametrize(
    ("metric", "published", "exact"),
    [
        # The README adds terms cut to four digits, hence 24.56 where 24.57 is exact.
        ("voc12", 0.2456, (1 + 2 / 3 + 4 * 3 / 7 + 7 / 23) / 15),
        ("voc07", 0.2684, (1 + 2 / 3 + 3 * 3 / 7) / 11),
    ],
)
def test_worked_example(metric: str, published: float, exact: float) -> None:
    truth = truth_of(
        [(image, 1, continuous(*box)) for image, *box in WORKED_OBJECTS], [1, 2, 3, 4, 5, 6, 7], ONE
    )
    predictions = predictions_of(
        [(image, 1, score, continuous(*box)) for image, score, *box in WORKED_DETECTIONS], ONE
    )
    result = evaluate_voc(truth, predictions, metric=metric, iou_thresh=0.3)
    assert result.metrics["mAP"] == pytest.approx(exact, abs=1e-12)
    assert result.metrics["mAP"] == pytest.approx(published, abs=1e-4)
    recall, precision = result.curves["object"]
    hits = [1, 1, 2, 2, 2, 2, 2, 2, 2, 3, 3, 4, 5, 6, 6, 6, 6, 6, 6, 6, 6, 6, 7, 7]  # its table 2
    assert (recall * 15).round(9).tolist() == hits
    assert (precision * np.arange(1, 25)).round(9).tolist() == hits


def naive_voc(
    truth: Annotations, predictions: Predictions, label: int, thresh: float, plus: float
) -> tuple[list[bool], int]:
    """The devkit's loop: whether each counted detection is right, in falling score, and the number
    of objects to be found.
    """
    objects = [
        [
            image,
            truth.boxes[m].astype(float).tolist(),
            bool(truth.crowd[m] or truth.difficult[m]),
            False,
        ]
        for n, image in enumerate(truth.image_ids.tolist())
        for m in range(truth.offsets[n], truth.offsets[n + 1])
        if truth.labels[m] == label
    ]
    outcome = []
    rows = [d for d in range(len(predictions)) if predictions.labels[d] == label]
    for d in sorted(rows, key=lambda d: -predictions.scores[d]):
        x1, y1, x2, y2 = predictions.boxes[d].astype(float).tolist()
        best, best_iou = None, 0.0
        for item in objects:
            if item[0] != predictions.image_ids[d]:
                continue
            a1, b1, a2, b2 = item[1]
            w, h = min(x2, a2) - max(x1, a1) + plus, min(y2, b2) - max(y1, b1) + plus
            if w > 0 and h > 0:
                union = (
                    (x2 - x1 + plus) * (y2 - y1 + plus)
                    + (a2 - a1 + plus) * (b2 - b1 + plus)
                    - w * h
                )
                if w * h / union > best_iou:
                    best, best_iou = item, w * h / union
        if best is None or best_iou < thresh:
            outcome.append(False)
        elif not best[2]:
            outcome.append(not best[3])
            best[3] = True
    return outcome, sum(not item[2] for item in objects)


def naive_ap(outcome: list[bool], num_objects: int, metric: str) -> float:
    points = [
        (sum(outcome[:n]) / num_objects, sum(outcome[:n]) / n) for n in range(1, len(outcome) + 1)
    ]
    if metric == "voc07":
        return (
            # as published evaluations count: 3 of 10, 6 of 10 and 7 of 10 stay below their point
            sum(max([p for r, p in points if r >= 0.1 * k], default=0.0) for k in range(11)) / 11
        )
    area, reached = 0.0, 0.0
    for recall, _ in points:
        area += (recall - reached) * max(p for r, p in points if r >= recall)
        reached = recall
    return area


@pytest.mark.parametrize("metric", ["voc07", "voc12"])
@pytest.mark.parametrize("seed", range(8))
def test_random_scenes_agree_with_the_naive_loop(metric: str, seed: int) -> None:
    truth, predictions = random_scene(seed)
    for legacy, plus in ((True, 0.0), (False, -1.0)):
        result = evaluate_voc(
            truth, predictions, metric=metric, iou_thresh=0.5, legacy_plus_one=legacy
        )
        for label, name in enumerate(TWO.names, start=1):
            outcome, num_objects = naive_voc(truth, predictions, label, 0.5, plus)
            assert any(outcome)
            assert result.per_class[name] == pytest.approx(
                naive_ap(outcome, num_objects, metric), abs=1e-12
            )
        assert result.metrics["mAP"] == pytest.approx(np.mean(list(result.per_class.values())))


def test_plus_one_is_already_in_boxes_read_from_voc_files() -> None:
    # In the file: object 1..10, detection 1..5, both inclusive: 5 of 10 columns. Without the +1: 4
    # of 9.
    truth, found = (
        truth_of([("a", 1, (0, 0, 10, 10))], ["a"]),
        predictions_of([("a", 1, 0.9, (0, 0, 5, 10))]),
    )
    assert evaluate_voc(truth, found, metric="voc12").per_class["cat"] == 1.0
    assert evaluate_voc(truth, found, metric="voc12", legacy_plus_one=False).per_class["cat"] == 0.0
    assert (
        evaluate_voc(
            truth, found, metric="voc12", legacy_plus_one=False, iou_thresh=4 / 9
        ).per_class["cat"]
        == 1.0
    )
    # exactly at the threshold is right, anything above it is not
    assert evaluate_voc(truth, found, metric="voc12", iou_thresh=0.5000001).per_class["cat"] == 0.0


def test_difficult_and_crowd_objects_are_neither_right_nor_wrong() -> None:
    for flag in ("difficult", "crowd"):
        truth = truth_of([("a", 1, BOX, flag), ("a", 1, FAR)], ["a"])
        found = predictions_of([("a", 1, 0.9, BOX), ("a", 1, 0.8, BOX), ("a", 1, 0.7, FAR)])
        result = evaluate_voc(truth, found, metric="voc12")
        recall, precision = result.curves["cat"]
        assert recall.tolist() == [1.0]
        assert precision.tolist() == [1.0]
        assert result.per_class == {"cat": 1.0, "dog": None}


def test_there_is_no_second_choice() -> None:
    # Both detections overlap the first object most; the second object is half covered too, and
    # stays missed.
    truth = truth_of([("a", 1, BOX), ("a", 1, (20, 10, 60, 50))], ["a"])
    found = predictions_of([("a", 1, 0.9, BOX), ("a", 1, 0.8, NEAR)])
    recall, precision = evaluate_voc(truth, found, metric="voc12").curves["cat"]
    assert recall.tolist() == [0.5, 0.5]
    assert precision.tolist() == [1.0, 0.5]


def test_of_equal_overlaps_the_first_object_is_taken() -> None:
    found = predictions_of([("a", 1, 0.9, BOX)])
    for flags, expected in ((("difficult", ""), 0.0), (("", "difficult"), 1.0)):
        objects = [("a", 1, BOX, flag) for flag in flags]
        truth = truth_of([("b", 1, FAR), *objects], ["b", "a"])
        recall, _ = evaluate_voc(truth, found, metric="voc12").curves["cat"]
        assert recall.tolist() == [0.5] * int(expected)


def test_equal_scores_keep_the_order_given() -> None:
    truth = truth_of([("a", 1, BOX)], ["a", "b"])
    right, wrong = ("a", 1, 0.5, BOX), ("b", 1, 0.5, BOX)
    assert (
        evaluate_voc(truth, predictions_of([right, wrong]), metric="voc12").per_class["cat"] == 1.0
    )
    assert (
        evaluate_voc(truth, predictions_of([wrong, right]), metric="voc12").per_class["cat"] == 0.5
    )


@pytest.mark.parametrize("num", range(1, 11))
def test_eleven_points_are_those_of_published_numbers(num: int) -> None:
    # Of 10 objects `num` are found; np.arange(0, 1.1, 0.1) has .3, .6 and .7 a bit too high.
    recall, precision = np.arange(1, num + 1) / 10, np.ones(num)
    reached = num if num in (3, 6, 7) else num + 1
    assert average_precision(recall, precision, "voc07") == pytest.approx(reached / 11)
    assert average_precision(recall - 1e-9, precision, "voc07") == pytest.approx(num / 11)
    assert average_precision(recall + 1e-9, precision, "voc07") == pytest.approx((num + 1) / 11)
    assert average_precision(recall, precision, "voc12") == pytest.approx(num / 10)


class Published(NamedTuple):
    """What an evaluation in the manner of py-faster-rcnn's finds for one class."""

    seven: float
    twelve: float
    num_on_threshold: int


def published_evaluation(
    objects: dict[str, list[tuple[list[int], bool]]], lines: list[str], *, strict: bool
) -> Published:
    """AP of one class in inclusive pixels from 1, with +1 on every side.

    objects: image -> (xmin, ymin, xmax, ymax) and difficult; lines: of a results file. strict: an
    IoU of .5 is not enough, as in py-faster-rcnn; else it is, as in the devkit.
    """
    taken: set[tuple[str, int]] = set()
    rights, on_threshold = [], 0
    for line in sorted(lines, key=lambda line: -float(line.split()[1])):
        image, _, *corners = line.split()
        x1, y1, x2, y2 = map(float, corners)
        overlaps = []
        for (a1, b1, a2, b2), _ in objects.get(image, []):
            w = max(min(x2, a2) - max(x1, a1) + 1.0, 0.0)
            h = max(min(y2, b2) - max(y1, b1) + 1.0, 0.0)
            areas = (x2 - x1 + 1.0) * (y2 - y1 + 1.0) + (a2 - a1 + 1.0) * (b2 - b1 + 1.0)
            overlaps.append(w * h / (areas - w * h))
        most = max(overlaps, default=0.0)
        on_threshold += most == 0.5
        if not (most > 0.5 or (most == 0.5 and not strict)):
            rights.append(False)
            continue
        best = overlaps.index(most)
        if not objects[image][best][1]:
            rights.append((image, best) not in taken)
            taken.add((image, best))
    num = sum(not difficult for boxes in objects.values() for _, difficult in boxes)
    hits = np.cumsum(rights)
    recall, precision = hits / num, hits / np.arange(1, len(hits) + 1)
    best_from = np.array([precision[n:].max() for n in range(len(hits))])
    steps = np.diff(recall, prepend=0.0)
    points = [
        max(precision[recall >= t], default=0.0) for t in (0.0, *(k * 0.1 for k in range(1, 11)))
    ]
    return Published(sum(points) / 11, float((steps * best_from).sum()), on_threshold)


@pytest.mark.parametrize(
    ("year", "split", "num_files"),
    [("voc_mini/VOCdevkit/VOC2012", "val", 170), ("bccd/BCCD", "test", 72)],
)
def test_real_files_score_as_in_published_evaluations(
    year: str, split: str, num_files: int, shared_data: Callable[[str], Path], tmp_path: Path
) -> None:
    # Detections as py-faster-rcnn writes them: scores of 3 decimals, so ties, and boxes of 1.
    root = shared_data(year)
    truth = read_voc(root, [split], box_policy="keep", check_images=False)
    assert len(truth) == num_files
    rng = np.random.default_rng(0)
    objects: dict[str, dict[str, list]] = {name: {} for name in truth.class_map.names}
    lines: dict[str, list[str]] = {name: [] for name in truth.class_map.names}
    for stem in truth.image_ids.tolist():
        for node in parse(root / "Annotations" / f"{stem}.xml").iter("object"):
            sides = ("xmin", "ymin", "xmax", "ymax")
            box = [int(node.findtext(f"bndbox/{side}")) for side in sides]
            name, difficult = node.findtext("name"), node.findtext("difficult") == "1"
            objects[name].setdefault(stem, []).append((box, difficult))
            for _ in range(int(rng.integers(0, 4))):
                spread = rng.choice((0.02, 0.1, 0.3)) * np.subtract(box[2:], box[:2])
                x1, y1, x2, y2 = (box + rng.normal(size=4) * np.tile(spread, 2)).round(1).tolist()
                if x2 >= x1 and y2 >= y1:
                    called = name if rng.random() < 0.8 else rng.choice(truth.class_map.names)
                    corners = f"{x1} {y1} {x2} {y2}"
                    lines[called].append(f"{stem} {rng.random():.3f} {corners}\n")
    for name, of_class in lines.items():
        (tmp_path / f"comp4_det_{split}_{name}.txt").write_text("".join(of_class))
    found, _, _ = read_voc_results(tmp_path, truth)
    ours = {m: evaluate_voc(truth, found, metric=m).per_class for m in ("voc07", "voc12")}
    measured = [name for name, boxes in objects.items() if boxes]
    for name in measured:
        for strict in (False, True):
            theirs = published_evaluation(objects[name], lines[name], strict=strict)
            assert theirs.num_on_threshold == 0
            assert ours["voc07"][name] == pytest.approx(theirs.seven, abs=1e-9)
            assert ours["voc12"][name] == pytest.approx(theirs.twelve, abs=1e-9)
    assert {name for name, ap in ours["voc07"].items() if ap is not None} == set(measured)
    assert all(0 < ours["voc07"][name] < 1 for name in measured)


@pytest.mark.parametrize("seed", range(12))
def test_integer_boxes_score_as_in_published_evaluations_at_the_threshold_too(seed: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = rng.integers(1, 7, (165, 4))
    boxes[:, 2:] += boxes[:, :2] - 1
    objects: dict[str, list] = {}
    for n, box in enumerate(boxes[:15].tolist()):
        objects.setdefault(f"i{n % 5}", []).append((box, n % 7 == 0))
    lines = [
        f"i{rng.integers(6)} {rng.integers(1, 9) / 10} {' '.join(map(str, box))}"
        for box in boxes[15:].tolist()
    ]
    shift = np.array((1, 1, 0, 0))
    truth = truth_of(
        [
            (image, 1, tuple(box - shift), "difficult" if difficult else "")
            for image, of_image in objects.items()
            for box, difficult in of_image
        ],
        [f"i{n}" for n in range(6)],
        ONE,
    )
    found = predictions_of(
        [
            (image, 1, float(score), tuple(np.array(box, float) - shift))
            for image, score, *box in map(str.split, lines)
        ],
        ONE,
    )
    theirs = published_evaluation(objects, lines, strict=False)
    above = published_evaluation(objects, lines, strict=True)
    assert theirs.num_on_threshold > 0
    for metric, expected, port in (
        ("voc07", theirs.seven, above.seven),
        ("voc12", theirs.twelve, above.twelve),
    ):
        assert evaluate_voc(truth, found, metric=metric).per_class["object"] == pytest.approx(
            expected, abs=1e-12
        )
        over = np.nextafter(0.5, 1)  # an IoU above .5, which py-faster-rcnn asks for
        assert evaluate_voc(truth, found, metric=metric, iou_thresh=over).per_class[
            "object"
        ] == pytest.approx(port, abs=1e-12)


def test_area_is_under_the_envelope() -> None:
    # right, wrong, right of 2 objects: precision 1, 1/2, 2/3 -> 0.5 * 1 + 0.5 * 2/3; 11 points: 6
    # of 1 and 5 of 2/3
    recall, precision = np.array([0.5, 0.5, 1.0]), np.array([1.0, 0.5, 2 / 3])
    assert average_precision(recall, precision, "voc12") == pytest.approx(5 / 6)
    assert average_precision(recall, precision, "voc07") == pytest.approx((6 + 5 * 2 / 3) / 11)


def test_nothing_found_and_nothing_to_find() -> None:
    nothing = predictions_of([])
    result = evaluate_voc(truth_of([("a", 1, BOX)], ["a"]), nothing, metric="voc07")
    assert result.per_class == {"cat": 0.0, "dog": None}
    assert result.metrics == {"mAP": 0.0}
    for truth in (
        truth_of([], ["a"]),
        truth_of([("a", 1, BOX, "difficult")], ["a"]),
        truth_of([], []),
    ):
        result = evaluate_voc(truth, nothing, metric="voc12")
        assert result.metrics == {"mAP": None}
        assert "mAP  n/a (no ground truth)" in result.table()


def test_what_cannot_be_scored_is_refused() -> None:
    truth = truth_of([("a", 1, BOX)], ["a"])
    with pytest.raises(ValueError, match=r"predictions for image b, which truth does not have"):
        evaluate_voc(truth, predictions_of([("b", 1, 0.5, BOX)]), metric="voc07")
    with pytest.raises(ValueError, match=r"prediction 1, image a: .*must be finite"):
        evaluate_voc(
            truth, predictions_of([("a", 1, 0.5, BOX), ("a", 1, np.nan, BOX)]), metric="voc07"
        )
    with pytest.raises(ClassMismatchError, match="5=cat, 17=dog"):
        evaluate_voc(truth, predictions_of([], ONE), metric="voc07")
    with pytest.raises(ValueError, match="unknown VOC metric 'voc10'"):
        evaluate_voc(truth, predictions_of([]), metric="voc10")
    for thresh in (50, 1.001, 0, -0.5, np.nan):
        with pytest.raises(ValueError, match=f"IoU threshold {thresh} is outside"):
            evaluate_voc(truth, predictions_of([]), metric="voc07", iou_thresh=thresh)
    exact = predictions_of([("a", 1, 0.5, BOX)])
    assert evaluate_voc(truth, exact, metric="voc07", iou_thresh=1).metrics["mAP"] == 1


def test_numbers_carry_their_protocol() -> None:
    truth = truth_of([("a", 1, BOX)], ["a"])
    result = evaluate_voc(
        truth, predictions_of([("a", 1, 0.5, BOX)]), metric="voc07", iou_thresh=0.4
    )
    assert result.protocol == (
        "PASCAL VOC 2007, 11-point (np.arange) AP, IoU >= 0.4, difficult ignored, devkit widths "
        "(+1 on inclusive pixels)"
    )
    area = evaluate_voc(truth, predictions_of([]), metric="voc12", legacy_plus_one=False)
    assert area.protocol == "PASCAL VOC 2010-2012, area AP, IoU >= 0.5, difficult ignored, no +1"
    long = evaluate_voc(
        truth_of([("a", 1, BOX)], ["a"], ClassMap(("aeroplane", "b"), (1, 2))),
        predictions_of([], ClassMap(("aeroplane", "b"), (1, 2))),
        metric="voc12",
    )
    assert long.table().splitlines()[1:] == [
        " aeroplane  0.0000",
        " b          n/a (no ground truth)",
        " mAP        0.0000",
    ]
    table = result.table().splitlines()
    assert table[1:] == [" cat  1.0000", " dog  n/a (no ground truth)", " mAP  1.0000"]
    assert result.table().startswith(result.protocol)
    assert result.to_dict() == {
        "mAP": 1.0,
        "per_class": {"cat": 1.0, "dog": None},
        "protocol": result.protocol,
    }


def test_half_a_million_detections_take_seconds() -> None:
    rng = np.random.default_rng(0)
    classes = ClassMap(names=tuple(f"c{k}" for k in range(20)), source_ids=tuple(range(20)))
    num_images, num_objects, num_found = 5000, 15_000, 500_000

    def some_boxes(num: int) -> np.ndarray:
        corner = rng.uniform(0, 300, (num, 2))
        return np.concatenate((corner, corner + rng.uniform(10, 200, (num, 2))), axis=1).astype(
            np.float64
        )

    images = np.arange(num_images)
    truth = Annotations(
        source="many",
        class_map=classes,
        image_ids=images,
        image_files=images.astype(str),
        image_sizes=np.full((num_images, 2), 500, np.int32),
        offsets=np.arange(num_images + 1, dtype=np.int64) * 3,
        boxes=some_boxes(num_objects),
        labels=rng.integers(1, 21, num_objects),
        areas=np.ones(num_objects),
        crowd=np.zeros(num_objects, bool),
        difficult=rng.random(num_objects) < 0.1,
        ids=np.arange(num_objects),
        dropped={},
    )
    predictions = Predictions(
        classes,
        np.repeat(images, 100),
        some_boxes(num_found),
        rng.random(num_found, np.float32),
        rng.integers(1, 21, num_found),
    )
    result = evaluate_voc(truth, predictions, metric="voc07")
    assert 0 < result.metrics["mAP"] < 0.2


def test_rows_are_divided_by_class_in_their_order() -> None:
    labels = np.array([2, 1, 2, 4, 1])
    divided = divided_by_class(np.array([4, 2, 0, 3]), labels, 4)
    assert [rows.tolist() for rows in divided] == [[4], [2, 0], [], [3]]
    assert [len(rows) for rows in divided_by_class(np.zeros(0, np.int64), labels, 2)] == [0, 0]
    assert divided_by_class(np.zeros(0, np.int64), labels, 0) == []

"""COCO's numbers: pycocotools on JSON files is the witness."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detres.class_map import ClassMap, ClassMismatchError
from detres.detection.annotations import Annotations
from detres.detection.data.coco import read_coco
from detres.detection.evaluation.coco_ap import METRICS, evaluate_coco
from detres.detection.evaluation.result_files import read_coco_results, to_coco_results
from detres.detection.structures import Predictions
from tests.detection.evaluation.scenes import predictions_of, random_scene, truth_of
from tests.detection.evaluation.thresholds import coco_files

BOX = (10, 10, 60, 60)


def evaluation_of(truth_file: Path, found_file: Path) -> COCOeval:
    """Return pycocotools' own evaluation of files."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth_file))
        evaluation = COCOeval(coco, coco.loadRes(str(found_file)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def stats_of(truth_file: Path, found_file: Path) -> list[float | None]:
    """Return COCO's twelve numbers by pycocotools from files, None for its -1."""
    stats = evaluation_of(truth_file, found_file).stats.tolist()
    return [None if value == -1 else value for value in stats]


def stats_of_scene(
    folder: Path, truth: Annotations, predictions: Predictions
) -> list[float | None]:
    """Return COCO's twelve numbers by pycocotools, by way of JSON files in `folder`."""
    owners = np.repeat(truth.image_ids, np.diff(truth.offsets)).tolist()
    annotations = [
        {
            "id": m + 1,
            "image_id": owners[m],
            "category_id": truth.class_map.source_id_of(int(truth.class_indices[m])),
            "bbox": [float(x1), float(y1), float(x2 - x1), float(y2 - y1)],
            "area": float((x2 - x1) * (y2 - y1)),
            "iscrowd": int(truth.crowd[m] or truth.difficult[m]),
        }
        for m, (x1, y1, x2, y2) in enumerate(truth.boxes)
    ]
    categories = [
        {"id": i, "name": name}
        for i, name in zip(truth.class_map.source_ids, truth.class_map.names, strict=True)
    ]
    images = [{"id": image_id} for image_id in truth.image_ids.tolist()]
    (folder / "truth.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )
    (folder / "found.json").write_text(json.dumps(to_coco_results(predictions)))
    return stats_of(folder / "truth.json", folder / "found.json")


@pytest.mark.parametrize("seed", range(6))
def test_random_scenes_equal_pycocotools_on_files(seed: int, tmp_path: Path) -> None:
    truth, predictions = random_scene(seed)  # scores tie, and image ids are in no order
    result = evaluate_coco(truth, predictions)
    assert list(result.metrics) == list(METRICS)
    assert list(result.metrics.values()) == stats_of_scene(tmp_path, truth, predictions)
    assert 0 < result.metrics["AP"] < 1


def test_perfect_half_and_nothing() -> None:
    truth = truth_of([("a", 1, BOX), ("b", 2, BOX)], ["a", "b"])
    perfect = evaluate_coco(truth, predictions_of([("a", 1, 0.9, BOX), ("b", 2, 0.8, BOX)]))
    assert perfect.metrics["AP"] == pytest.approx(1.0)
    assert perfect.metrics["APm"] == pytest.approx(1.0)
    assert perfect.metrics["APs"] is None
    assert perfect.metrics["ARl"] is None
    half = evaluate_coco(truth, predictions_of([("a", 1, 0.9, BOX)]))
    assert half.metrics["AP"] == pytest.approx(0.5)
    assert half.per_class == {"cat": pytest.approx(1.0), "dog": 0.0}
    nothing = evaluate_coco(truth, predictions_of([]))
    assert nothing.metrics["AP"] == 0.0
    assert nothing.per_class == {"cat": 0.0, "dog": 0.0}


def test_no_ground_truth_is_none_and_said_so() -> None:
    for truth in (
        truth_of([], ["a"]),
        truth_of([("a", 1, BOX, "crowd")], ["a"]),
        truth_of([("a", 1, BOX, "difficult")], ["a"]),
    ):
        for found in (predictions_of([]), predictions_of([("a", 1, 0.9, BOX)])):
            result = evaluate_coco(truth, found)
            assert set(result.metrics.values()) == {None}
            assert result.per_class == {"cat": None, "dog": None}
            assert result.table().count("n/a (no ground truth of this size)") == 12
    assert set(evaluate_coco(truth_of([], []), predictions_of([])).metrics.values()) == {None}


def test_difficult_is_ignored_as_crowd_is() -> None:
    found = predictions_of([("a", 1, 0.9, BOX), ("a", 1, 0.8, (80, 80, 130, 130))])
    for flag in ("crowd", "difficult"):
        truth = truth_of([("a", 1, BOX, flag), ("a", 1, (80, 80, 130, 130))], ["a"])
        assert evaluate_coco(truth, found).metrics["AP"] == pytest.approx(1.0)
    truth = truth_of([("a", 1, (150, 150, 190, 190)), ("a", 1, (80, 80, 130, 130))], ["a"])
    assert evaluate_coco(truth, found).metrics["AP"] < 0.3


def test_overlaps_on_a_threshold_fall_on_pycocotools_side(tmp_path: Path) -> None:
    # Detections cover a share of their object that is a threshold but for the last bits, which
    # float32 would lose.
    rng = np.random.default_rng(0)
    boxes = np.concatenate(
        (rng.integers(0, 3000, (400, 2)) / 10, rng.integers(100, 2000, (400, 2)) / 10), axis=1
    ).tolist()
    truth_file, found_file = tmp_path / "truth.json", tmp_path / "found.json"
    annotations = [
        {"id": n, "image_id": n, "category_id": 1, "bbox": box, "area": 32.0**2}
        for n, box in enumerate(boxes, start=1)
    ]
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(1, 401)]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "cat"}],
    }
    truth_file.write_text(
        json.dumps(content | {"annotations": [item | {"iscrowd": 0} for item in annotations]})
    )
    shares = rng.choice([0.5, 0.75], 400)
    found = [
        {"image_id": n, "category_id": 1, "bbox": [x, y, w, round(h * share, 3)], "score": 0.5}
        for n, ((x, y, w, h), share) in enumerate(zip(boxes, shares, strict=True), start=1)
    ]
    found_file.write_text(json.dumps(found))
    truth = read_coco(truth_file, None, box_policy="keep")
    result = evaluate_coco(truth, read_coco_results(found_file, truth)[0])
    assert list(result.metrics.values()) == stats_of(truth_file, found_file)


def mean_or_none(precision: np.ndarray) -> float | None:
    """The mean of what pycocotools measured, the way users of it take a class's AP."""
    measured = precision[precision > -1]
    return float(measured.mean()) if measured.size else None


def require_equal(seed: int, folder: Path) -> dict[str, float | None]:
    """Assert that files near thresholds give pycocotools' numbers to the last bit; return them."""
    content, found = coco_files(seed)
    truth_file, found_file = folder / "truth.json", folder / "found.json"
    truth_file.write_text(json.dumps(content))
    found_file.write_text(json.dumps(found))
    truth = read_coco(truth_file, None, box_policy="keep")
    predictions, _ = read_coco_results(found_file, truth)
    result = evaluate_coco(truth, predictions)
    theirs = evaluation_of(truth_file, found_file)
    stats = [None if value == -1 else value for value in theirs.stats.tolist()]
    assert list(result.metrics.values()) == stats, seed
    precision = theirs.eval["precision"]  # (IoU, recall, class, area, maxDets)
    (half,) = np.flatnonzero(theirs.params.iouThrs == 0.5)
    names = [f"c{category}" for category in theirs.params.catIds]
    assert result.per_class == {
        name: mean_or_none(precision[:, :, k, 0, 2]) for k, name in enumerate(names)
    }, seed
    assert result.per_class_ap50 == {
        name: mean_or_none(precision[half, :, k, 0, 2]) for k, name in enumerate(names)
    }, seed
    assert to_coco_results(predictions) == found
    return result.metrics


def test_files_near_thresholds_equal_pycocotools_to_the_last_bit(tmp_path: Path) -> None:
    metrics = [require_equal(seed, tmp_path) for seed in range(60)]
    assert {value for each in metrics for value in each.values() if value is not None} - {0, 1}
    assert all(any(each[name] is None for each in metrics) for name in ("APs", "APm", "APl"))
    assert all(any(each[name] for each in metrics) for name in METRICS)


@pytest.mark.slow
def test_hundreds_of_files_near_thresholds_equal_pycocotools_to_the_last_bit(
    tmp_path: Path,
) -> None:
    for seed in range(60, 560):
        require_equal(seed, tmp_path)


def test_an_area_next_to_a_limit_is_of_one_size() -> None:
    # 32.0^2 itself is small and medium, as in pycocotools; next to it, only one of them.
    for width, sizes in ((31.9999999, "s"), (32.0, "sm"), (32.0000001, "m"), (96.0, "ml")):
        box = np.array([[0, 0, width, width]], np.float64)
        truth = truth_of([("a", 1, tuple(box[0]))], ["a"])
        found = dataclasses.replace(predictions_of([("a", 1, 0.5, BOX)]), boxes=box)
        metrics = evaluate_coco(truth, found).metrics
        assert [size for size in "sml" if metrics[f"AP{size}"] is not None] == list(sizes)
        assert all(metrics[f"AP{size}"] == pytest.approx(1) for size in sizes)


def test_an_object_with_the_annotation_id_zero_is_found_as_any_other(tmp_path: Path) -> None:
    content, found = coco_files(3)
    content["annotations"] = content["annotations"][:1]
    content["annotations"][0] |= {"id": 0, "iscrowd": 0}
    first = content["annotations"][0]
    found = [{key: first[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.5}]
    truth_file, found_file = tmp_path / "truth.json", tmp_path / "found.json"
    truth_file.write_text(json.dumps(content))
    found_file.write_text(json.dumps(found))
    truth = read_coco(truth_file, None, box_policy="keep")
    metrics = evaluate_coco(truth, read_coco_results(found_file, truth)[0]).metrics
    assert metrics["AP"] == pytest.approx(1.0)
    assert stats_of(truth_file, found_file)[0] == 0.0  # the reason for the exception


def test_per_class_ap50() -> None:
    truth = truth_of([("a", 1, (0, 0, 10, 10)), ("a", 2, BOX)], ["a"])
    result = evaluate_coco(
        truth, predictions_of([("a", 1, 0.9, (0, 0, 10, 6)), ("a", 2, 0.9, BOX)])
    )
    assert result.per_class == {
        "cat": pytest.approx(0.3),
        "dog": pytest.approx(1.0),
    }  # IoU 0.6: thresholds .50 .55 .60
    assert result.per_class_ap50 == {"cat": pytest.approx(1.0), "dog": pytest.approx(1.0)}
    assert "cat 0.300 / 1.000" in result.table()
    # IoU 0.52: of .50 alone, not of .55
    just = evaluate_coco(truth, predictions_of([("a", 1, 0.9, (0, 0, 10, 5.2))]))
    assert just.per_class == {"cat": pytest.approx(0.1), "dog": 0.0}
    assert just.per_class_ap50 == {"cat": pytest.approx(1.0), "dog": 0.0}


def test_table_is_cocos_own_and_nothing_else_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, predictions = random_scene(0)
    result = evaluate_coco(truth, predictions)
    assert capsys.readouterr().out == ""
    lines = result.table().splitlines()
    assert lines[0] == result.protocol
    assert result.protocol == (
        "COCO bbox, IoU .50:.05:.95, 101 recall points, maxDets 1/10/100, pycocotools "
        f"{importlib.metadata.version('pycocotools')}"
    )
    stats_of_scene(tmp_path, truth, predictions)
    theirs = evaluation_of(tmp_path / "truth.json", tmp_path / "found.json")
    theirs.summarize()  # prints
    assert lines[1:13] == capsys.readouterr().out.splitlines()
    assert "None" not in result.table()


def test_classes_stand_in_columns_of_four() -> None:
    names = tuple(f"c{k}" for k in range(1, 10))
    classes = ClassMap(names, tuple(range(1, 10)))
    truth = truth_of([("a", 9, BOX)], ["a"], classes)
    lines = evaluate_coco(truth, predictions_of([], classes)).table().splitlines()
    assert lines[13] == " AP / AP50 of each class (n/a: no ground truth)"
    assert lines[14:] == [
        "   c1   n/a /   n/a   c2   n/a /   n/a   c3   n/a /   n/a   c4   n/a /   n/a",
        "   c5   n/a /   n/a   c6   n/a /   n/a   c7   n/a /   n/a   c8   n/a /   n/a",
        "   c9 0.000 / 0.000",
    ]


@pytest.mark.parametrize("num", [1, 10, 11, 100, 101])
def test_only_the_best_hundred_detections_of_a_class_in_an_image_count(num: int) -> None:
    truth = truth_of([("a", 1, BOX)], ["a"])
    wrong = [("a", 1, 0.9, (100 + k, 100, 110 + k, 110)) for k in range(num - 1)]
    metrics = evaluate_coco(truth, predictions_of([*wrong, ("a", 1, 0.1, BOX)])).metrics
    assert metrics["AP"] == pytest.approx(1 / num if num <= 100 else 0)
    recalls = [metrics[name] for name in ("AR1", "AR10", "AR100")]
    assert recalls == [float(num <= most) for most in (1, 10, 100)]


def test_equal_scores_go_by_image_and_then_by_order() -> None:
    # In "a", whose id comes first, the wrong one is first; image order of the file does not matter.
    rows = [("a", 1, 0.5, (100, 100, 150, 150)), ("b", 1, 0.5, BOX)]
    for images in (["a", "b"], ["b", "a"]):
        for order in (rows, rows[::-1]):
            truth = truth_of([("b", 1, BOX)], images)
            assert evaluate_coco(truth, predictions_of(order)).metrics["AP"] == pytest.approx(0.5)
    truth = truth_of([("a", 1, BOX)], ["a"])
    for order, expected in (([BOX, (9, 9, 99, 99)], 1.0), ([(9, 9, 99, 99), BOX], 0.5)):
        found = predictions_of([("a", 1, 0.5, box) for box in order])
        assert evaluate_coco(truth, found).metrics["AP"] == pytest.approx(expected)


def test_dict_has_the_agreed_keys_and_plain_values() -> None:
    truth, predictions = random_scene(1)
    content = json.loads(json.dumps(evaluate_coco(truth, predictions).to_dict()))
    assert list(content) == [*METRICS, "per_class", "protocol"]


def test_what_cannot_be_scored_is_refused() -> None:
    truth = truth_of([("a", 1, BOX)], ["a"])
    with pytest.raises(ValueError, match=r"predictions for image b, which truth does not have"):
        evaluate_coco(truth, predictions_of([("b", 1, 0.5, BOX)]))
    with pytest.raises(ValueError, match=r"prediction 0, image a: .*must be finite"):
        evaluate_coco(truth, predictions_of([("a", 1, 0.5, (0, 0, np.inf, 1))]))
    with pytest.raises(ClassMismatchError, match="1=owl"):
        evaluate_coco(truth, predictions_of([], ClassMap(("owl",), (1,))))

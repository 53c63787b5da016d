"""COCO's numbers: pycocotools on JSON files is the witness."""

from __future__ import annotations

import contextlib
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

BOX = (10, 10, 60, 60)


def stats_of(truth_file: Path, found_file: Path) -> list[float]:
    """Return COCO's twelve numbers by pycocotools from files."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth_file))
        evaluation = COCOeval(coco, coco.loadRes(str(found_file)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def stats_of_scene(folder: Path, truth: Annotations, predictions: Predictions) -> list[float]:
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
    assert list(result.metrics.values()) == [
        None if v == -1 else v for v in stats_of(truth_file, found_file)
    ]


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


def test_table_is_cocos_own_and_nothing_else_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    truth, predictions = random_scene(0)
    result = evaluate_coco(truth, predictions)
    assert capsys.readouterr().out == ""
    lines = result.table().splitlines()
    assert lines[0] == result.protocol
    assert "maxDets 1/10/100" in lines[0]
    assert "pycocotools" in lines[0]
    first = (
        " Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ] = "
        f"{result.metrics['AP']:.3f}"
    )
    assert lines[1] == first
    assert lines[7].startswith(
        " Average Recall     (AR) @[ IoU=0.50:0.95 | area=   all | maxDets=  1 ] = "
    )
    assert lines[12].startswith(
        " Average Recall     (AR) @[ IoU=0.50:0.95 | area= large | maxDets=100 ] = "
    )


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

"""Results files: what is written is read again, and what is wrong is named."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from detres.class_map import ClassMap
from detres.detection.evaluation.result_files import (
    DetectionFileError,
    read_coco_results,
    read_voc_results,
    to_coco_results,
    to_voc_results,
)
from detres.detection.structures import Predictions
from tests.detection.evaluation.scenes import predictions_of, random_scene, truth_of

TRUTH = truth_of([(7, 1, (0, 0, 10, 10))], [7, 9])
RECORD = {"image_id": 7, "category_id": 17, "bbox": [1.5, 2, 3, 4], "score": 0.25}
NAMED = truth_of([("000007", 1, (0, 0, 10, 10))], ["000007", "a b"])


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def same(a: Predictions, b: Predictions) -> None:
    assert a.class_map == b.class_map
    for name in ("image_ids", "boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_coco_record_by_hand(tmp_path: Path) -> None:
    found = read_coco_results(write(tmp_path / "d.json", [RECORD]), TRUTH)[0]
    same(found, predictions_of([(7, 2, 0.25, (1.5, 2, 4.5, 6))]))
    assert to_coco_results(found) == [RECORD]


@pytest.mark.parametrize("seed", range(3))
def test_coco_results_come_back_exactly_and_pycocotools_reads_them(
    seed: int, tmp_path: Path
) -> None:
    truth, predictions = random_scene(seed)
    rng = np.random.default_rng(seed)
    noise = rng.random((len(predictions), 4), np.float32)
    predictions = Predictions(
        predictions.class_map,
        predictions.image_ids,
        predictions.boxes + np.sort(noise, axis=1),
        rng.random(len(predictions), np.float32),
        predictions.labels,
    )
    path = write(tmp_path / "d.json", to_coco_results(predictions))
    same(read_coco_results(path, truth)[0], predictions)
    coco = COCO()
    coco.dataset = {
        "images": [{"id": int(i)} for i in truth.image_ids],
        "categories": [{"id": 5}, {"id": 17}],
        "annotations": [],
    }
    coco.createIndex()
    assert len(coco.loadRes(str(path)).anns) == len(predictions)


def test_no_detections(tmp_path: Path) -> None:
    found = read_coco_results(
        write(tmp_path / "d.json", to_coco_results(predictions_of([]))), TRUTH
    )[0]
    assert len(found) == 0
    assert found.boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "is not JSON"),
        (
            {"annotations": []},
            "expected a list of detections, found dict .it looks like annotations",
        ),
        ([RECORD, 3], "record 1 needs the keys image_id, category_id, bbox, score, found int"),
        ([RECORD, {"image_id": 7}], "record 1 needs the keys .* found .'image_id'."),
        ([RECORD | {"bbox": [1, 2, 3]}], "record 0 has bbox .1, 2, 3."),
        ([RECORD | {"bbox": [1, 2, 3, "4"]}], "record 0 has bbox"),
        ([RECORD, RECORD | {"score": None}], "record 1 has bbox .* and score None"),
        ([RECORD, RECORD | {"score": float("nan")}], "record 1 has .* score nan"),
        ([RECORD | {"bbox": [1, 2, float("inf"), 4]}], "record 0 has bbox .*inf"),
        ([RECORD | {"bbox": [1, 2, -3, 4]}], "record 0 has bbox .1, 2, -3, 4..* w, h >= 0"),
        ([RECORD | {"image_id": [7]}], "record 0 has image_id .7."),
        ([RECORD | {"category_id": "dog"}], "record 0 has image_id 7 and category_id 'dog'"),
        (
            [RECORD, RECORD | {"image_id": 8}],
            r"record 1: image 8 is not in truth \(1 of 2 detections\); its images are like \[7, "
            r"9\]",
        ),
        ([RECORD | {"image_id": "7"}], "record 0: image '7' is not in truth"),
        (
            [RECORD, RECORD | {"category_id": 2}],
            "record 1 has category_id 2 .*truth has 5=cat, 17=dog",
        ),
    ],
)
def test_bad_coco_results_are_named(content: object, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.json", content)
    with pytest.raises(DetectionFileError, match=message) as caught:
        read_coco_results(path, TRUTH)
    assert str(path) in str(caught.value)


def test_paths_of_the_image_files_do_for_ids(tmp_path: Path) -> None:
    path = write(
        tmp_path / "found.json",
        [RECORD | {"image_id": f"/elsewhere/{Path(TRUTH.image_files[1]).name}"}, RECORD],
    )
    found, by_name = read_coco_results(path, TRUTH)
    assert (found.image_ids.tolist(), by_name) == ([9, 7], 1)
    twice = dataclasses.replace(TRUTH, image_files=np.array(["a/1.jpg", "b/1.jpg"]))
    path = write(tmp_path / "twice.json", [RECORD | {"image_id": "b/1.jpg"}])
    with pytest.raises(DetectionFileError, match=r"image 'b/1\.jpg' is not in"):
        read_coco_results(path, twice)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no detections file .*gone.json"):
        read_coco_results(tmp_path / "gone.json", TRUTH)
    with pytest.raises(FileNotFoundError, match=r"no VOC results comp4_det_SPLIT_CLASS.txt in"):
        read_voc_results(tmp_path, TRUTH)


def test_voc_lines_by_hand(tmp_path: Path) -> None:
    write(tmp_path / "comp4_det_val_cat.txt", "000007 0.5 1 1 10 20\n\na b 0.25 3.5 4 5 6.25\n")
    found, absent, split = read_voc_results(tmp_path, NAMED)
    same(
        found,
        predictions_of([("000007", 1, 0.5, (0, 0, 10, 20)), ("a b", 1, 0.25, (2.5, 3, 5, 6.25))]),
    )
    assert (absent, split) == (["dog"], "val")


def test_voc_results_by_hand() -> None:
    files = to_voc_results(
        predictions_of([("x", 1, 0.25, (0, 0, 10, 20)), ("y", 1, 0.5, (2.5, 3, 5, 6.25))]),
        split="test",
        competition="comp3",
    )
    assert files == {
        "comp3_det_test_cat.txt": "y 0.500000 3.500 4.000 5.000 6.250\nx 0.250000 1.000 1.000 "
        "10.000 20.000\n",
        "comp3_det_test_dog.txt": "",
    }


def test_voc_results_come_back(tmp_path: Path) -> None:
    truth, predictions = random_scene(
        0
    )  # integers and scores of one decimal survive the rounding; integer image ids too
    for name, text in to_voc_results(predictions, split="val").items():
        write(tmp_path / name, text)
    found, absent, split = read_voc_results(tmp_path, truth)
    assert (absent, split) == ([], "val")

    def rows(p: Predictions) -> list[tuple]:
        return sorted(
            zip(
                p.image_ids.tolist(),
                p.labels.tolist(),
                p.scores.round(6).tolist(),
                p.boxes.tolist(),
                strict=True,
            )
        )

    assert [row[:2] for row in rows(found)] == [row[:2] for row in rows(predictions)]
    for (*_, score, box), (*_, expected_score, expected_box) in zip(
        rows(found), rows(predictions), strict=True
    ):
        assert score == pytest.approx(expected_score, abs=1e-6)
        assert box == expected_box


def test_longest_class_name_wins(tmp_path: Path) -> None:
    truth = truth_of([("a", 1, (0, 0, 9, 9))], ["a"], ClassMap(("table", "dining_table"), (1, 2)))
    write(tmp_path / "comp4_det_test_dining_table.txt", "a 0.5 1 1 9 9\n")
    write(tmp_path / "comp4_det_test_table.txt", "")
    found, absent, split = read_voc_results(tmp_path, truth)
    assert found.labels.tolist() == [2]
    assert (absent, split) == ([], "test")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("000007 0.5 1 1 10", "cat.txt:2: expected 'image-id score xmin ymin xmax ymax'"),
        ("000007 0.5 1 1 ten 20", "cat.txt:2: expected"),
        ("000007 nan 1 1 10 20", "cat.txt:2: expected"),
        ("000007 0.5 100 1 10 20", "cat.txt:2: .* xmax >= xmin .* got '000007 0.5 100 1 10 20'"),
        (
            "000008 0.5 1 1 10 20",
            r"cat.txt:2: image '000008' is not in truth \(1 of 2 detections\)",
        ),
        ("7 0.5 1 1 10 20", "cat.txt:2: image '7' is not in truth .* like .'000007'"),
    ],
)
def test_bad_voc_lines_are_named(line: str, message: str, tmp_path: Path) -> None:
    write(tmp_path / "comp4_det_val_cat.txt", f"000007 0.5 1 1 10 20\n{line}\n")
    with pytest.raises(DetectionFileError, match=message):
        read_voc_results(tmp_path, NAMED)


def test_ambiguous_voc_folders_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "comp3_det_val_cat.txt", "")
    write(tmp_path / "comp4_det_val_dog.txt", "")
    with pytest.raises(DetectionFileError, match="comp3_det_val, comp4_det_val: choose one"):
        read_voc_results(tmp_path, NAMED)
    write(tmp_path / "comp3_det_val_owl.txt", "")
    with pytest.raises(DetectionFileError, match=r"owl.txt: its class is none of truth: cat, dog"):
        read_voc_results(tmp_path, NAMED)


def test_many_records_take_seconds(tmp_path: Path) -> None:
    num = 100_000
    truth = truth_of([], list(range(1000)))
    boxes = np.tile(np.array([[1.1, 2.2, 30.3, 40.4]], np.float32), (num, 1))
    many = Predictions(
        truth.class_map,
        np.arange(num) % 1000,
        boxes,
        np.full(num, 0.1, np.float32),
        np.full(num, 1),
    )
    path = write(tmp_path / "d.json", to_coco_results(many))
    for name, text in to_voc_results(many, split="val").items():
        write(tmp_path / name, text)
    started = time.perf_counter()
    assert len(read_coco_results(path, truth)[0]) == num
    assert len(read_voc_results(tmp_path, truth)[0]) == num
    assert time.perf_counter() - started < 8

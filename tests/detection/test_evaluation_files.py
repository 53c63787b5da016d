"""What an evaluation leaves: tables and JSON that say the same as the numbers, and pictures."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from detres.class_map import ClassMap
from detres.detection.evaluation.protocol import DetectionEvaluation, evaluate
from detres.detection.evaluation_files import NUMBER_FILES, write_evaluation
from tests.detection.evaluation.scenes import predictions_of, random_scene, truth_of

SQUARE = (10, 10, 50, 50)


def evaluation_of(protocol: str = "coco", seed: int = 0) -> DetectionEvaluation:
    truth, found = random_scene(seed)
    return evaluate(protocol, truth, found)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("protocol", ["coco", "voc07", "voc12", "imagenet_det"])
def test_the_area_under_the_points_on_file_is_the_ap(protocol, tmp_path):
    evaluation = evaluation_of(protocol)
    write_evaluation(tmp_path, evaluation, pictures=False)
    assert {path.name for path in tmp_path.iterdir()} == set(NUMBER_FILES)
    result, tree = evaluation.result, read(tmp_path / "pr.json")
    per_class = result.per_class_ap50 if protocol == "coco" else result.per_class
    for name, ap in per_class.items():
        of = tree["classes"][name]
        points = (np.array(of["recall"]), np.array(of["precision"]))
        assert result.average_precision(*points) == pytest.approx(ap, abs=1e-9)
        assert of["ap"] == pytest.approx(ap, abs=1e-9)
        table = [row for row in rows_of(tmp_path / "pr.csv") if row["class"] == name]
        columns = zip(of["scores"], *(p.tolist() for p in points), strict=True)
        assert [tuple(map(float, list(row.values())[2:])) for row in table] == list(columns)
    mean = [row for row in rows_of(tmp_path / "pr.csv") if row["of"] == "mean"]
    assert [float(row["recall"]) for row in mean] == tree["overall"]["recall"]
    assert tree["overall"]["ap"] == pytest.approx(np.mean(list(per_class.values())))
    assert tree["protocol"] == result.protocol
    assert tree["at"] == ("IoU of each object" if protocol == "imagenet_det" else "IoU 0.5")


def test_tables_and_json_agree(tmp_path):
    thresholds = write_evaluation(tmp_path, evaluation_of(), pictures=False)
    classes, confusion = read(tmp_path / "pr.json")["classes"], read(tmp_path / "confusion.json")
    table = rows_of(tmp_path / "classes.csv")
    assert [row["class"] for row in table] == list(classes) == list(thresholds) == ["cat", "dog"]
    for row in table:
        of = classes[row["class"]]
        assert float(row["score_threshold"]) == of["score_threshold"] == thresholds[row["class"]]
        assert (float(row["ap"]), int(row["num_objects"])) == (of["ap"], of["num_objects"])
    assert confusion["score_thresholds"] == thresholds
    assert confusion["names"] == ["cat", "dog", "background"]
    matrix = rows_of(tmp_path / "confusion.csv")
    assert [row.pop("is / taken for") for row in matrix] == confusion["names"]
    assert [[int(value) for value in row.values()] for row in matrix] == confusion["counts"]


def test_the_sheet_is_there_too_and_files_are_replaced(tmp_path):
    truth = truth_of([(1, 1, SQUARE)], [1], size=(100, 100))
    file = tmp_path / "image.png"
    cv2.imwrite(str(file), np.full((100, 100, 3), 128, np.uint8))
    truth = dataclasses.replace(truth, image_files=np.array([str(file)]))
    out = tmp_path / "out"
    before = {}
    for score in (0.9, 0.8):
        found = predictions_of([(1, 1, score, SQUARE)])
        thresholds = write_evaluation(out, evaluate("voc12", truth, found))
        assert thresholds == {"cat": pytest.approx(score), "dog": 0.5}
        files = {path.name: path.read_bytes() for path in out.iterdir()}
        assert set(files) == {*NUMBER_FILES, "val.jpg"}
        assert files["val.jpg"] != before.get("val.jpg")
        before = files


@pytest.mark.parametrize("protocol", ["coco", "voc07", "imagenet_det"])
def test_nothing_to_find_and_nothing_found(protocol, tmp_path):
    one = ClassMap.of_names(("thing",))
    for number, (objects, rows) in enumerate(
        (([], []), ([], [(1, 1, 0.9, SQUARE)]), ([(1, 1, SQUARE)], []))
    ):
        truth, found = truth_of(objects, [1], one), predictions_of(rows, one)
        out = tmp_path / str(number)
        evaluation = evaluate(protocol, truth, found)
        assert write_evaluation(out, evaluation, pictures=False) == {"thing": 0.5}
        assert read(out / "pr.json")["classes"]["thing"]["recall"] == []
        assert all(cv2.imread(str(out / name)).std() > 1 for name in ("pr.png", "confusion.png"))


def test_names_with_commas_quotes_and_dollars_come_back(tmp_path):
    names = ('a, "b"', "$x^$", "_c", "d\ne", "\u7334")
    class_map = ClassMap.of_names(names)
    truth = truth_of([(1, 1, SQUARE)], [1], class_map)
    evaluation = evaluate("coco", truth, predictions_of([(1, 2, 0.9, SQUARE)], class_map))
    write_evaluation(tmp_path, evaluation, pictures=False)
    assert tuple(row["class"] for row in rows_of(tmp_path / "classes.csv")) == names
    assert tuple(read(tmp_path / "confusion.json")["names"][:-1]) == names
    assert read(tmp_path / "confusion.json")["counts"][0] == [0, 1, 0, 0, 0, 0]

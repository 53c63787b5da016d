"""What commands leave behind, used in Python: `import detres`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import detres
from detres.class_map import ClassMismatchError
from tests.cli.conftest import FinishedRun, read_json


@pytest.fixture(autouse=True)
def _fresh_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def in_run_numbers(run: FinishedRun) -> dict:
    """The twelve numbers."""
    return {key: value for key, value in run.numbers().items() if key.startswith(("AP", "AR"))}


def test_every_name_of_the_package_is_there() -> None:
    assert {"Detector", "Classifier", "Results", "load"} <= set(detres.__all__) <= set(dir(detres))
    for name in detres.__all__:
        assert getattr(detres, name).__name__ == name
    with pytest.raises(AttributeError, match="'detres' has no attribute 'predict'"):
        detres.predict  # noqa: B018


def test_a_detector_is_found_by_file_folder_and_name(finished: FinishedRun) -> None:
    shutil.copytree(finished.folder, "runs/mine")
    image = finished.data / "val" / "000001.jpg"
    expected = detres.Detector.load(finished.weights).predict(image)
    assert len(expected)
    for given in (str(finished.weights), finished.folder, "runs/mine", "mine"):
        for load in (detres.load, detres.Detector.load):
            assert load(given).predict(image).scores.tolist() == expected.scores.tolist()
    notices: list[str] = []
    assert len(detres.Detector.load("runs/mine/last.pt", notices.append).predict(image))
    assert notices == ["runs/mine/last.pt is the state of a run after step 4"]
    with pytest.raises(ValueError, match="no weights file at nothing"):
        detres.Detector.load("nothing")
    with pytest.raises(ValueError, match="holds the weights of a detector, not of a classifier"):
        detres.Classifier.load("mine")


def test_a_detector_evaluates_as_the_run_and_the_command_do(finished: FinishedRun) -> None:
    detector = detres.load(finished.folder)
    own = detector.evaluate()
    assert own.metrics == in_run_numbers(finished)
    assert "COCO" in own.table()
    assert detector.evaluate(finished.data).metrics == own.metrics
    assert detector.evaluate(str(finished.data), protocol="voc07").best_metric == "mAP"
    assert len(detector.evaluate(split="train").predictions.seen) == 8


def test_data_laid_out_otherwise_are_recognised(finished: FinishedRun) -> None:
    """Roboflow's folders, with the images beside their annotations, and one JSON file."""
    for split, folder in (("train", "train"), ("val", "valid")):
        shutil.copytree(finished.data / split, f"mine/{folder}")
        annotations = finished.data / "annotations" / f"{split}.json"
        shutil.copy(annotations, f"mine/{folder}/_annotations.coco.json")
    detector = detres.load(finished.folder)
    assert detector.evaluate("mine").metrics == in_run_numbers(finished)
    file = Path("mine/valid/_annotations.coco.json")
    content = read_json(file)
    content["categories"][0]["name"] = "pentagon"
    file.write_text(json.dumps(content))
    shutil.copy(file, "mine/train/_annotations.coco.json")
    with pytest.raises((ClassMismatchError, ValueError), match="pentagon"):
        detector.evaluate("mine")


def test_a_detector_of_a_model_alone_has_nothing_to_evaluate_by(finished: FinishedRun) -> None:
    loaded = detres.load(finished.folder)
    alone = detres.Detector(loaded.model, loaded.class_map, short_side=64, max_side=96)
    with pytest.raises(ValueError, match="evaluate needs the configuration of a run"):
        alone.evaluate(finished.data)

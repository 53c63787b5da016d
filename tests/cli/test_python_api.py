"""What commands leave behind, used in Python: `import detres`."""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

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
    assert (
        {"Detector", "Classifier", "Results", "load", "train"}
        <= set(detres.__all__)
        <= set(dir(detres))
    )
    for name in detres.__all__:
        assert getattr(detres, name).__name__ == name
    with pytest.raises(AttributeError, match="'detres' has no attribute 'predict'"):
        detres.predict  # noqa: B018


def test_type_checkers_are_told_the_same_names_from_the_same_places() -> None:
    """They read the stub, which alone has the types of what is imported when it is asked for."""
    stub = ast.parse(Path(detres.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [node for node in stub.body if isinstance(node, ast.ImportFrom)]
    told = {alias.asname: (node.module, alias.name) for node in imports for alias in node.names}
    assert told == {name: (home, name) for name, home in detres._HOMES.items()}


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


SMALL = {
    "model.backbone.width": 0.125,
    "model.backbone.weights": None,
    "model.input.short_side": 96,
    "model.rpn.width": 16,
    "model.rpn.train_post_nms_top_n": 20,
    "model.rpn.test_post_nms_top_n": 20,
    "model.roi.pool_size": 4,
    "train.batch_size": 2,
    "train.steps": 2,
    "data.workers": 0,
}


def test_training_leaves_a_run_and_returns_its_detector(
    coco_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told: list[tuple] = []
    writer = SimpleNamespace(
        started=lambda config, folder, step: told.append((config["train"]["steps"], folder, step)),
        numbers=lambda kind, step, record: told.append((kind, step, record)),
        closed=lambda: told.append(()),
    )
    detector = detres.train(coco_folder, settings=SMALL, device="cpu", writers=[writer])
    shown = capsys.readouterr().out
    assert f"data {coco_folder}: " in shown
    assert "chosen, each to be overridden" in shown
    (folder,) = Path("runs").iterdir()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert told[0] == (2, folder, 0)
    assert [{"kind": kind, "step": step, **each} for kind, step, each in told[1:-1]] == records
    assert told[-1] == ()
    saved = read_json(folder / "metrics.json")
    numbers = detector.evaluate().metrics
    assert numbers == {name: saved[name] for name in numbers}
    assert detector.config.model.backbone.width == 0.125
    assert detector.config.data.root == str(coco_folder)
    assert (folder / "last.pt").is_file()
    with pytest.raises(ValueError, match="already holds files"):
        detres.train(coco_folder, settings=SMALL, out=folder, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"settings": {"train.step": 2}}, r"train\.step.*train\.steps"),
        ({"settings": {"train.steps": "many"}}, r"train\.steps"),
        ({"time": "5s"}, "5s is too short"),
        ({"time": "soon"}, "'soon' is no time: write it as 30m"),
        ({"init_from": "gone.safetensors"}, r"gone\.safetensors"),
    ],
)
def test_what_cannot_be_trained_is_said_before_a_folder_is_made(
    arguments: dict, message: str, coco_folder: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        detres.train(coco_folder, **arguments, device="cpu")
    Path("empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        detres.train("empty", device="cpu")
    assert not Path("runs").exists()


def test_a_time_and_a_length_are_one_too_many(coco_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a time says how many .*, and so does train\.steps"):
        detres.train(
            coco_folder, time="30m", settings={"train.steps": 5}, out=tmp_path / "r", device="cpu"
        )
    assert not (tmp_path / "r").exists()


def test_a_detector_of_a_model_alone_has_nothing_to_evaluate_by(finished: FinishedRun) -> None:
    loaded = detres.load(finished.folder)
    alone = detres.Detector(loaded.model, loaded.class_map, short_side=64, max_side=96)
    with pytest.raises(ValueError, match="evaluate needs the configuration of a run"):
        alone.evaluate(finished.data)

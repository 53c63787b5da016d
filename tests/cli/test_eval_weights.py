"""eval --weights: the file alone gives the run's own number, by every protocol, and
refuses other classes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from detres.cli import eval as evaluate
from detres.cli import predict, train_det
from detres.detection.data.shapes import SHAPES_CLASSES
from detres.engine.probes import native_precision
from tests.cli.conftest import (
    COCO_FLAGS,
    FinishedRun,
    numbers_in,
    read_json,
    records,
    snapshot,
    voc_object,
)

Score = Callable[..., dict]


@pytest.fixture
def score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Score:
    """Return a function: flags -> what the command wrote with --json, run in a directory without
    any YAML.
    """
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    def call(*flags: str | Path) -> dict:
        assert (
            evaluate.main([*map(str, flags), "--device", "cpu", "--json", "out/numbers.json"]) == 0
        )
        of_weights = "--weights" in flags
        return (numbers_in if of_weights else read_json)(Path("out/numbers.json"))

    return call


def in_run_numbers(run: FinishedRun) -> dict:
    return {key: value for key, value in run.numbers().items() if key not in ("step", "images")}


def test_it_says_what_precision_auto_is(
    finished: FinishedRun, score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    precision, reason = native_precision(torch.device("cpu"))
    score("--weights", finished.weights, "--precision", "auto")
    said = capsys.readouterr().out
    assert f"precision {precision}: {reason}\n" in said
    assert ("AP differs from float32's" in said) == (precision == "bf16")


def test_the_weights_alone_give_exactly_the_runs_number(
    finished: FinishedRun, score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(finished.folder)
    numbers = score("--weights", finished.weights)
    assert numbers == in_run_numbers(finished)
    assert numbers["AP50"] > 0  # else equal numbers would mean little
    out = capsys.readouterr().out
    assert f"{finished.val_json}: 4 images" in out
    assert f"= {numbers['AP50']:.3f}" in out
    assert numbers["protocol"] in out
    assert snapshot(finished.folder) == before


def test_out_has_what_the_run_has_and_overwrites_nothing(
    finished: FinishedRun, score: Score, capsys: pytest.CaptureFixture[str]
) -> None:
    score("--weights", finished.weights, "--out", "seen")
    made = {path.name for path in Path("seen").iterdir()}
    assert made == {
        *("pr.png", "pr.csv", "pr.json", "classes.csv", "val.jpg"),
        *("confusion.png", "confusion.csv", "confusion.json"),
    }
    for name in ("pr.csv", "pr.json", "classes.csv", "confusion.csv", "confusion.json"):
        assert (Path("seen") / name).read_text() == (finished.folder / name).read_text()
    assert "in seen: pr.csv, " in capsys.readouterr().out
    before = snapshot(Path("seen"))
    Path("file").write_text("kept")
    for out, said in (("seen", "already holds pr.csv"), ("file", "is a file; give a folder")):
        flags = ["--weights", str(finished.weights), "--device", "cpu", "--out", out]
        assert evaluate.main(flags) == 2
        assert f"--out {out} {said}" in capsys.readouterr().err
    assert snapshot(Path("seen")) == before
    assert Path("file").read_text() == "kept"


def test_a_stopped_run_is_evaluated_and_predicts_from_its_last_state(
    finished: FinishedRun, score: Score, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    for name in ("last.pt", "config.yaml"):
        shutil.copy(finished.folder / name, stopped)
    last = records(finished.folder, "eval")[-1]
    numbers = score("--weights", stopped / "last.pt")
    assert {name: numbers[name] for name in ("AP", "AP50")} == {
        name: last[name] for name in ("AP", "AP50")
    }
    captured = capsys.readouterr()
    assert captured.err == f"note: {stopped / 'last.pt'} is the state of a run after step 4\n"
    assert score("--weights", stopped) == numbers
    assert capsys.readouterr().err.startswith(f"note: {stopped}: {stopped}/last.pt\n")
    image = next((finished.data / "val").iterdir())
    for weights, out in ((stopped, "by folder"), (stopped / "last.pt", "by file")):
        given = ["--weights", str(weights), str(image), "--out", out, "--device", "cpu"]
        assert predict.main(given) == 0
    assert read_json(Path("by folder/predictions.json")) == read_json(
        Path("by file/predictions.json")
    )
    # where it has kept weights, the folder is those
    assert score("--weights", finished.folder) == in_run_numbers(finished)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--protocol", "voc07", "--iou", "0"], "--iou 0: expected a number above 0, and at most"),
        (["--protocol", "voc12", "--iou", "nan"], "--iou nan: expected a number above 0"),
        (["--json", "."], "--json . is a folder; give a file"),
        (["--save-detections", "."], "--save-detections . is a folder; give a file"),
        (["--save-probabilities", "."], "--save-probabilities . is a folder; give a file"),
    ],
)
def test_what_cannot_be_written_or_asked_for_is_told_before_detecting(
    finished: FinishedRun,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    message: str,
) -> None:
    monkeypatch.delattr("detres.commands.eval_detector.detect_dataset")
    try:
        status = evaluate.main(["--weights", str(finished.weights), *flags, "--device", "cpu"])
    except SystemExit as end:  # of the parser
        status = end.code
    assert status == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        ["data.val=annotations/val.json"],
        ["data.val=[annotations/val.json]", "data.hold_out=0"],
        ["data.format=yolo", "data.val=val", "data.class_names=names.yaml"],
        ["data.format=xml", "data.val=xml", "data.val_images=val"],
    ],
)
def test_other_held_out_data_need_no_configuration(
    finished: FinishedRun, score: Score, tmp_path: Path, settings: list[str]
) -> None:
    """One value for a list, and a format that has nothing of what the weights were trained on."""
    root = tmp_path / "other"
    shutil.copytree(finished.data, root)
    content = json.loads((root / "annotations" / "val.json").read_text())
    names = [category["name"] for category in content["categories"]]
    (root / "names.yaml").write_text(json.dumps({"names": names}))
    (root / "xml").mkdir()
    numbers = {category["id"]: n for n, category in enumerate(content["categories"])}
    for image in content["images"]:
        lines, objects = [], []
        for item in content["annotations"]:
            if item["image_id"] == image["id"] and not item["iscrowd"]:
                x, y, w, h = item["bbox"]
                sides = (image["width"], image["height"]) * 2
                number = numbers[item["category_id"]]
                fractions = [(x + w / 2), (y + h / 2), w, h]
                values = [value / side for value, side in zip(fractions, sides, strict=True)]
                lines.append(" ".join(map(str, [number, *values])))
                objects.append(voc_object({**item, "category_id": number + 1}))
        stem = Path(image["file_name"]).stem
        (root / "val" / f"{stem}.txt").write_text("\n".join(lines))
        (root / "xml" / f"{stem}.xml").write_text(f"<annotation>{''.join(objects)}</annotation>")
    own = score("--weights", finished.weights)
    found = score("--weights", finished.weights, "--data", root, "--set", *settings)
    assert found["AP50"] == pytest.approx(own["AP50"], abs=0.02)  # without the crowds
    if "data.format" not in settings[0]:
        assert found == own


def test_numbers_say_what_they_are_of(finished: FinishedRun, tmp_path: Path) -> None:
    def said(*flags: str) -> dict:
        out = tmp_path / "n.json"
        given = ["--weights", str(finished.weights), *flags, "--json", str(out), "--device", "cpu"]
        assert evaluate.main(given) == 0
        return read_json(out)["evaluated"]

    own = said()
    with safe_open(finished.weights, framework="pt") as file:
        assert own["weights"] == [file.metadata()["sha256"]]
    assert (own["split"], own["iou"], own["eval"]["protocol"]) == ("val", 0.5, "coco")
    other = said(
        "--split", "train", "--protocol", "voc07", "--iou", "0.4", "--set", "eval.batch_size=2"
    )
    assert (other["split"], other["iou"], other["eval"]["protocol"]) == ("train", 0.4, "voc07")
    assert (own["eval"]["batch_size"], other["eval"]["batch_size"]) == (1, 2)
    assert other["data"] == own["data"]


def test_a_relative_data_folder_is_found_from_another_directory(
    coco_folder: Path, tiny: Path, tmp_path: Path, score: Score, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = Path.cwd()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(coco_folder, "photographs")
    flags = ["--cfg", str(tiny), "--data", "photographs", "--out", "run", "--device", "cpu"]
    assert train_det.main([*flags, "--set", *COCO_FLAGS, "train.steps=1"]) == 0
    monkeypatch.chdir(elsewhere)
    numbers = score("--weights", tmp_path / "run" / "best.safetensors")
    assert numbers == {
        key: value
        for key, value in read_json(tmp_path / "run" / "metrics.json").items()
        if key not in ("step", "images")
    }


def test_saved_detections_score_as_the_weights_do(finished: FinishedRun, score: Score) -> None:
    numbers = score("--weights", finished.weights, "--save-detections", "found.json")
    assert json.loads(Path("found.json").read_text()) == read_json(
        finished.folder / "predictions.json"
    )
    assert score("--detections", "found.json", "--annotations", finished.val_json) == numbers


@pytest.mark.parametrize(
    "flags",
    [("--protocol", "voc07"), ("--protocol", "voc12"), ("--protocol", "voc07", "--iou", "0.3")],
)
def test_the_voc_protocols_score_the_same_weights(
    flags: tuple[str, ...], finished: FinishedRun, score: Score
) -> None:
    numbers = score("--weights", finished.weights, *flags)
    assert 0 < numbers["mAP"] < 1
    assert set(numbers["per_class"]) == set(SHAPES_CLASSES)
    assert ("2007" in numbers["protocol"]) == ("voc07" in flags)
    found = finished.folder / "predictions.json"
    assert score("--detections", found, "--annotations", finished.val_json, *flags) == numbers


def test_other_data_of_the_same_classes_may_be_given(
    finished: FinishedRun, tiny: Path, score: Score
) -> None:
    on_train = [
        *COCO_FLAGS[:3],
        "data.val=[annotations/train.json]",
        "data.val_images=[train]",
        "eval.protocol=voc12",
    ]
    numbers = score(
        "--weights", finished.weights, "--cfg", tiny, "--data", finished.data, "--set", *on_train
    )
    assert "2010-2012" in numbers["protocol"]
    assert numbers["mAP"] != score("--weights", finished.weights, "--protocol", "voc12")["mAP"]


@pytest.mark.usefixtures("score")
def test_the_same_classes_under_other_ids_are_told_by_name_and_keep_their_ids(
    finished: FinishedRun, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shapes as drawn have the category ids 1..6, those the run was trained on SPARSE_IDS."""
    saved = tmp_path / "found.json"
    flags = ["--cfg", str(tiny), "--device", "cpu", "--save-detections", str(saved)]
    assert evaluate.main(["--weights", str(finished.weights), *flags]) == 0
    assert "under other ids (circle is 3 there and 1 here): told by name" in capsys.readouterr().out
    found = {record["category_id"] for record in json.loads(saved.read_text())}
    assert found
    assert found <= set(range(1, 7))


def test_data_of_other_classes_are_refused_with_both_lists(
    finished: FinishedRun,
    coco_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "renamed"
    shutil.copytree(coco_folder, root)
    file = root / "annotations" / "val.json"
    file.write_text(file.read_text().replace('"star"', '"comet"'))
    for flags, other in ((["--data", str(root)], "40=comet"),):
        assert (
            evaluate.main(
                [
                    "--weights",
                    str(finished.weights),
                    "--device",
                    "cpu",
                    "--json",
                    "numbers.json",
                    *flags,
                ]
            )
            == 2
        )
        error = capsys.readouterr().err
        assert error.startswith("error: the class lists differ")
        assert (
            f"{finished.weights} (6): 3=circle, 7=square, 12=triangle, 40=star, 41=cross, 90=ring"
            in error
        )
        assert other in error
    assert not Path("numbers.json").exists()

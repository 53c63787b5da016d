"""train-det with a folder and nothing else: what it takes it for, chooses, and leaves; --time; and
fine-tuning.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from detres.cli import train_det
from detres.config import load_config
from detres.detection import own_run
from detres.detection.config import DetectionConfig
from detres.detection.own_run import NewRun
from detres.detection.pretrained import FOLDER
from detres.detection.time_budget import Pace
from detres.detection.weights_file import load_detector
from detres.runs.saved import STATE_KEYS
from detres.runs.state import load_state, save_state
from tests.cli.conftest import FinishedRun

SMALL = (
    "model.backbone.width=0.125",
    "model.input.short_side=96",
    "model.rpn.width=16",
    "model.rpn.train_post_nms_top_n=20",
    "model.rpn.test_post_nms_top_n=20",
    "model.roi.pool_size=4",
    "train.batch_size=2",
    "train.log_every=1",
    "data.workers=0",
)
FEW = (*SMALL, "train.steps=3")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))


def run(*arguments: object) -> int:
    return train_det.main([*map(str, arguments), "--device", "cpu"])


def test_a_folder_alone_is_trained_on(
    coco_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--data", coco_folder, "--set", *FEW) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"data {coco_folder}: COCO JSON; ")
    assert said[1].startswith("the same by hand: --set data.format=coco ")
    assert "chosen, each to be overridden with --set:" in said
    assert any(line.startswith("anchors: ") for line in said)
    folder = Path("runs") / coco_folder.name
    assert (folder / "best.safetensors").is_file()
    config = load_config(folder / "config.yaml", DetectionConfig)
    assert (config.train.steps, config.train.optimizer) == (3, "adamw")
    assert not any(line.startswith("model:") for line in said)  # said once, with reasons
    of_another_wing = dict.fromkeys(STATE_KEYS, 1) | {"wing": "classification"}
    save_state(Path("runs/newer/last.pt"), of_another_wing)
    by_name = ("--resume", coco_folder.name)
    for flags in (("--data", coco_folder, "--resume"), ("--resume",), by_name):  # also of all
        assert run(*flags) == 0
        captured = capsys.readouterr()
        assert captured.err.startswith(f"note: resuming runs/{coco_folder.name}")
        assert f"runs/{coco_folder.name}" in captured.out


def test_a_run_is_not_resumed_on_other_data(
    finished: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    assert run("--resume", finished.folder, "--data", other) == 2
    said = capsys.readouterr().err
    assert f"--data {other} is read as the data that the run to resume was trained on" in said
    assert "Without --resume it starts a new run on it" in said


def test_a_configuration_of_other_data_is_said(
    tiny: Path, voc_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--cfg", tiny, "--data", voc_folder) == 0
    captured = capsys.readouterr()
    assert f"data {voc_folder}: VOC's layout" in captured.out
    assert captured.err.startswith(
        f"note: {tiny} describes other data than these: its model and training are used with what "
        "was found\n"
    )
    assert load_config("runs/tiny/config.yaml", DetectionConfig).data.format == "voc"


def test_a_detector_is_fine_tuned_without_a_configuration(
    finished: FinishedRun, coco_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("train.steps=3", "train.log_every=1", "data.workers=0")
    assert run("--data", coco_folder, "--init-from", finished.folder, "--set", *few) == 0
    captured = capsys.readouterr()
    said = captured.out
    assert f"note: {finished.folder}: {finished.weights}\n" in captured.err
    assert f"# as {finished.weights} was trained" in said
    assert "6 of 6 classes by name" in said
    _, config, _ = load_detector(Path("runs") / coco_folder.name / "best.safetensors")
    _, before, _ = load_detector(finished.weights)
    assert config.model.anchors == before.model.anchors
    assert config.model.input == before.model.input
    assert config.model.backbone.freeze_at == 2
    (record,) = [
        json.loads(line)
        for line in Path("runs", coco_folder.name, "metrics.jsonl").read_text().splitlines()[:1]
    ]
    assert record["lr"] <= 2e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--time", "5s"), "argument --time: 5s is too short: measuring how long a step takes"),
        (("--time", "soon"), "argument --time: 'soon' is no time: write it as 30m, 90s, 2h or"),
        (("--time", "30m", "--set", "train.steps=5"), "--time says how many steps there are"),
        (("--time", "30m", "--set", "train.epochs=5"), "so does --set train.epochs=5: give one"),
        (("--time", "30m", "--resume"), "--time starts a new run"),
    ],
)
def test_times_that_cannot_be_are_refused_at_once(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_time_too_short_for_these_data_is_said_before_anything_is_written(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a machine that is slow."""
    monkeypatch.setattr(own_run, "pace_of", lambda *_, **__: Pace(step=5.0, image=1.0, spent=3.0))
    assert run("--cfg", tiny, "--time", "30s") == 2
    captured = capsys.readouterr()
    assert "measuring how long a step and an evaluation take" in captured.out
    assert captured.err.startswith("error: 30s is too short: a step takes ")
    assert captured.err.count("\n") == 1
    assert not Path("runs").exists()


def test_a_schedule_given_with_a_time_is_brought_to_its_length(
    coco_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the 1,200 steps of the choice: milestones at the same parts, a warm-up of a fifth."""
    monkeypatch.setattr(own_run, "pace_of", lambda *_, **__: Pace(step=0.25, image=0.01, spent=3.0))
    given = [*SMALL, "train.milestones=[600,900]", "train.warmup_steps=400"]
    new = NewRun.on(coco_folder, given, device=torch.device("cpu"), seconds=60, say=lambda _: None)
    train = new.config.train
    assert 100 < train.steps < 240
    assert [one / train.steps for one in train.milestones] == pytest.approx([0.5, 0.75], abs=0.01)
    assert train.warmup_steps == train.steps // 5
    assert train.schedule == "multistep"


@pytest.mark.slow
def test_a_run_takes_the_time_it_was_given_and_keeps_its_steps(
    coco_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--data", coco_folder, "--time", "40s", "--set", *SMALL) == 0
    said = capsys.readouterr().out
    steps = load_config(Path("runs", coco_folder.name, "config.yaml"), DetectionConfig).train.steps
    assert f"train.steps={steps}  # what the time allows" in said
    assert steps >= 20
    state = load_state(Path("runs", coco_folder.name, "last.pt"), STATE_KEYS)
    assert state["progress"]["step"] == steps
    assert run("--resume", Path("runs", coco_folder.name)) == 0
    assert f"finished: all {steps} steps are done" in capsys.readouterr().out


@pytest.mark.parametrize(
    "make", [lambda _: None, lambda folder: (folder / "a.txt").write_text("a")]
)
def test_a_folder_without_data_is_one_clear_answer(
    make: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    make(folder)
    assert run("--data", folder) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {folder}")
    assert error.count("\n") == 1
    assert not Path("runs").exists()

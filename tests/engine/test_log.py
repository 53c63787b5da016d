"""The run folder: refused when it is in use, and records that stay readable and single over a
resume.
"""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detres.engine.log import RunFolderError, RunLog, new_run_folder, without_nan, write_environment

RECORD = {"loss": 1.5, "loss_a": 1.0, "loss_b": 0.5, "step_s": 0.1, "lr": 0.01}


class Terminal(io.StringIO):
    """What a program writes to a terminal, kept."""

    def isatty(self) -> bool:
        return True


def records(folder: Path) -> list[dict]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return [
        json.loads(line, parse_constant=refuse)
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def test_run_folders_are_numbered_and_never_shared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [str(new_run_folder("bccd", None)) for _ in range(3)] == [
        "runs/bccd",
        "runs/bccd-2",
        "runs/bccd-3",
    ]
    assert all(Path(folder).is_dir() for folder in ("runs/bccd", "runs/bccd-2", "runs/bccd-3"))


def test_a_chosen_folder_may_be_new_or_empty(tmp_path):
    assert new_run_folder("x", str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert new_run_folder("x", str(tmp_path / "a" / "b")).is_dir()


def test_a_folder_in_use_is_refused_and_untouched(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"weights")
    with pytest.raises(
        RunFolderError,
        match=f"already holds files and is left as it is; continue it with --resume {tmp_path}",
    ):
        new_run_folder("x", str(tmp_path))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [
        ("last.pt", b"weights")
    ]


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The seconds that the log believes have passed, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr("detres.engine.log.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.mark.parametrize("below", ["", "run", "deep/run"])
def test_a_file_in_the_way_is_named_and_untouched(tmp_path, below):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(RunFolderError, match=r"taken.* file"):
        new_run_folder("x", str(tmp_path / "taken" / below))
    assert (tmp_path / "taken").read_text() == "mine"


def test_the_environment_is_recorded(tmp_path):
    write_environment(tmp_path, torch.device("cpu"))
    (facts,) = json.loads((tmp_path / "env.json").read_text())
    assert (facts["torch"], facts["opencv"]) == (torch.__version__, cv2.__version__)
    assert facts["cpu_count"] >= 1
    if facts["git_commit"] is None:  # installed, not a checkout
        assert facts["git_changed_files"] is None
    else:
        assert len(facts["git_commit"]) == 40
        assert isinstance(facts["git_changed_files"], list)
    write_environment(tmp_path, torch.device("cpu"), start_step=7)
    first, second = json.loads((tmp_path / "env.json").read_text())
    assert first == facts | {"start_step": 0}
    assert second == facts | {"start_step": 7}


def test_without_nan_reaches_every_depth():
    value = {"a": math.nan, "b": [1.0, -math.inf, {"c": (math.inf, 2)}], "d": "nan", "e": None}
    assert without_nan(value) == {
        "a": None,
        "b": [1.0, None, {"c": [None, 2]}],
        "d": "nan",
        "e": None,
    }


def test_metrics_are_one_json_object_a_line(tmp_path):
    log = RunLog(tmp_path, console=io.StringIO(), steps=10)
    log.train(5, RECORD)
    log.evaluation(5, {"AP": 0.25, "APs": None, "odd": math.nan})
    assert records(tmp_path) == [  # readable while the run goes on
        {"step": 5, "kind": "train", **RECORD},
        {"step": 5, "kind": "eval", "AP": 0.25, "APs": None, "odd": None},
    ]
    log.close()


def test_a_resumed_run_has_no_step_twice(tmp_path):
    log = RunLog(tmp_path, console=io.StringIO(), steps=30)
    for step in (10, 20, 30):
        log.train(step, RECORD)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "ki')  # the line a crash cut off
    log = RunLog(tmp_path, console=io.StringIO(), steps=30, start_step=20)
    log.train(30, RECORD)
    log.close()
    assert [record["step"] for record in records(tmp_path)] == [10, 20, 30]


def test_tensorboard_has_the_numbers_and_no_step_twice(tmp_path):
    for start, steps in ((0, (10, 20, 30)), (20, (30,))):
        log = RunLog(tmp_path, console=io.StringIO(), steps=30, start_step=start)
        for step in steps:
            log.train(step, RECORD | {"loss": 100.0 * start + step})
            log.evaluation(step, {"AP": 0.5, "APs": None})
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (10, 10.0),
        (20, 20.0),
        (30, 2030.0),
    ]
    assert "eval/AP" in events.Tags()["scalars"]
    assert "eval/APs" not in events.Tags()["scalars"]


def test_without_a_terminal_progress_is_plain_lines(tmp_path, clock):
    console = io.StringIO()
    log = RunLog(tmp_path, console=console, steps=200)
    clock[0] += 100
    log.advance(50)
    log.train(50, RECORD)
    log.line("a table\nof two lines")
    log.close()
    assert console.getvalue().splitlines() == [
        "step 50/200  loss 1.500  a 1.000  b 0.500  lr 0.01000  2.00 s/step  5:00 left",
        "a table",
        "of two lines",
    ]


def test_a_resumed_run_counts_only_its_own_steps_in_the_time_left(tmp_path, clock):
    console = io.StringIO()
    log = RunLog(tmp_path, console=console, steps=2000, start_step=100)
    clock[0] += 20
    log.train(110, RECORD)
    log.close()
    assert "2.00 s/step  1:03:00 left" in console.getvalue()


def test_a_terminal_gets_one_bar_that_moves_every_step(tmp_path):
    console = Terminal()
    log = RunLog(tmp_path, console=console, steps=8, start_step=2)
    for step in (3, 4):
        log.advance(step)
    assert log.bar.n == 4
    log.train(4, RECORD)
    log.line("a note")
    log.close()
    shown = console.getvalue()
    assert "4/8" in shown
    assert "loss 1.500  a 1.000  b 0.500" in shown
    assert "a note\n" in shown
    assert "step 4/8" not in shown

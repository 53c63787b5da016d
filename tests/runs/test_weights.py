"""The weights that a user names: a file, a folder of a run, or a run by its name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from detres.files import CheckpointError
from detres.runs.weights import find_weights


def run(folder: Path, weights: str, *, saved: int = 0) -> Path:
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes(b"state")
    os.utime(folder / "last.pt", (saved, saved))
    if weights:
        (folder / weights).write_bytes(b"weights")
    return folder


@pytest.fixture(autouse=True)
def _fresh_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("weights", ["best.safetensors", "weights.safetensors"])
def test_a_file_a_folder_and_a_name_find_the_same(weights: str) -> None:
    file = run(Path("runs/mine"), weights) / weights
    for given in (file, str(file), "runs/mine", Path("runs/mine"), "mine", "./runs/mine/"):
        assert find_weights(given) == file


def test_of_several_runs_of_a_name_the_one_saved_last_is_meant() -> None:
    for folder, saved in (("mine", 20), ("mine-2", 30), ("mine-3", 10), ("other", 40)):
        run(Path("runs") / folder, "best.safetensors", saved=saved)
    assert find_weights("mine") == Path("runs/mine-2/best.safetensors")
    assert find_weights("mine-3") == Path("runs/mine-3/best.safetensors")


def test_a_path_that_is_there_comes_before_a_name() -> None:
    run(Path("runs/mine"), "best.safetensors")
    Path("mine").write_bytes(b"weights")
    assert find_weights("mine") == Path("mine")


def test_what_is_none_is_returned_as_it_is() -> None:
    for given in ("gone.safetensors", "gone", "a/b/gone.pt", "torchvision/resnet50.v1"):
        assert find_weights(given) == Path(given)


def test_a_run_that_was_stopped_is_its_state_and_a_folder_without_any_is_refused() -> None:
    run(Path("runs/bare"), "")
    assert find_weights("bare") == find_weights("runs/bare") == Path("runs/bare/last.pt")
    Path("empty").mkdir()
    with pytest.raises(CheckpointError, match="empty is a folder without"):
        find_weights("empty")


def test_a_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    file = run(tmp_path / "home" / "mine", "best.safetensors") / "best.safetensors"
    assert find_weights("~/mine") == file

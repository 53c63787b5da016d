"""The run folder: numbered, never shared, refused when it is in use, and found again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from detres.runs.folder import NoRunError, RunFolderError, new_run_folder, newest_run


def test_run_folders_are_numbered_and_never_shared(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    locks = [new_run_folder("bccd", None) for _ in range(3)]
    assert [str(lock.folder) for lock in locks] == [
        "runs/bccd",
        "runs/bccd-2",
        "runs/bccd-3",
    ]
    assert all(Path(folder).is_dir() for folder in ("runs/bccd", "runs/bccd-2", "runs/bccd-3"))


@pytest.mark.parametrize("kind", [str, Path])
def test_a_chosen_folder_may_be_new_or_empty(tmp_path, kind):
    for _ in range(2):
        with new_run_folder("x", kind(tmp_path / "a" / "b")) as lock:
            assert lock.folder == tmp_path / "a" / "b"
            assert lock.folder.is_dir()


def test_a_folder_in_use_is_refused_and_untouched(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"weights")
    with pytest.raises(
        RunFolderError, match=f"^{tmp_path} already holds files and is left as it is$"
    ):
        new_run_folder("x", str(tmp_path))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [
        ("last.pt", b"weights")
    ]


@pytest.mark.parametrize("below", ["", "run", "deep/run"])
def test_a_file_in_the_way_is_named_and_untouched(tmp_path, below):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(RunFolderError, match=r"taken.* file"):
        new_run_folder("x", str(tmp_path / "taken" / below))
    assert (tmp_path / "taken").read_text() == "mine"


def saved_at(folder: str, seconds: int) -> None:
    path = Path("runs", folder, "last.pt")
    path.parent.mkdir(parents=True)
    path.touch()
    os.utime(path, (seconds, seconds))


def test_the_newest_run_is_the_one_saved_last_of_that_very_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved_at("voc", 100)
    saved_at("voc-3", 300)
    saved_at("voc-12", 200)
    for other, seconds in (("voc-x", 900), ("vocs", 900), ("my-voc", 900), ("voc-3-2", 900)):
        saved_at(other, seconds)
    Path("runs/voc-4").mkdir()  # it never saved
    assert newest_run("voc") == Path("runs/voc-3")


def test_a_name_is_no_pattern(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved_at("v1x0", 100)
    with pytest.raises(NoRunError):
        newest_run("v1.0")
    saved_at("v1.0", 50)
    assert newest_run("v1.0") == Path("runs/v1.0")


def test_without_a_run_there_is_nothing_to_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        NoRunError, match=r"^no run to resume: no last\.pt in runs/voc, runs/voc-2, \.\.\.$"
    ):
        newest_run("voc")
    assert list(tmp_path.iterdir()) == []

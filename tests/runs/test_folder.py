"""The run folder: numbered, never shared, refused when it is in use, and found again."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from detres.files import CheckpointError
from detres.runs.folder import (
    NoRunError,
    NothingSavedError,
    RunFolderError,
    new_run_folder,
    newest_run,
    remove_unfinished,
    saved_runs,
    weights_in,
)
from detres.runs.lock import InUseError
from detres.runs.place import folders_called


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


def test_a_run_of_several_steps_was_saved_when_its_step_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, file in enumerate(("voc/phase.json", "voc-2/last.pt", "voc/1-rpn/last.pt")):
        path = Path("runs") / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (number, number))
    assert newest_run("voc") == Path("runs/voc")
    os.utime("runs/voc-2/last.pt", (9, 9))
    assert newest_run("voc") == Path("runs/voc-2")


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
    saved_at("other", 90)
    with pytest.raises(NoRunError, match=r"; the newest of others is runs/v1x0$"):
        newest_run("v1.0")
    saved_at("v1.0", 50)
    assert newest_run("v1.0") == Path("runs/v1.0")


def test_a_folder_of_another_name_is_not_one_of_that_name(tmp_path, monkeypatch):
    """runs/cells-2 may be the second run of cells, or the first of a folder called cells-2."""
    monkeypatch.chdir(tmp_path)
    saved_at("cells", 100)
    for name, own in (("cells-2", "cells-2"), ("cells-3", "cells"), ("cells-4", "'cells-4'")):
        saved_at(name, 900)
        Path("runs", name, "config.yaml").write_text(f"name: {own}\nseed: 3\n")
    assert {path.name for path in folders_called("cells")} == {"cells", "cells-3"}
    assert {path.name for path in folders_called("cells-2")} == {"cells-2"}
    assert newest_run("cells") == Path("runs/cells-3")


def test_saved_runs_are_all_that_were_saved_the_last_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert saved_runs() == []
    for name, seconds in (("voc", 100), ("cells", 300), ("coco-2", 200)):
        saved_at(name, seconds)
    Path("runs/begun").mkdir()
    Path("runs/notes.txt").touch()
    assert saved_runs() == [Path("runs") / name for name in ("cells", "coco-2", "voc")]


def test_without_a_run_there_is_nothing_to_resume(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        NoRunError, match=r"^no run to resume: no last\.pt in runs/voc, runs/voc-2, \.\.\.$"
    ):
        newest_run("voc")
    assert list(tmp_path.iterdir()) == []


def test_two_that_ask_at_once_get_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(8) as threads:
        locks = list(threads.map(lambda _: new_run_folder("x"), range(16)))
    assert len({lock.folder for lock in locks}) == 16
    assert {lock.folder.name for lock in locks} == {"x"} | {f"x-{n}" for n in range(2, 17)}


def test_a_chosen_folder_in_use_is_refused_by_process(tmp_path):
    lock = new_run_folder("x", tmp_path / "run")
    with pytest.raises(InUseError, match=f"in use by process {os.getpid()} on "):
        new_run_folder("x", tmp_path / "run")
    (tmp_path / "run" / "last.pt").touch()
    with pytest.raises(InUseError):
        new_run_folder("x", tmp_path / "run")
    lock.release()


def begun(folder: Path) -> None:
    """What a run that was killed before its first state leaves."""
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "tensorboard" / "events.out.tfevents.1").write_bytes(b"x")
    for name in ("lock.json", "config.yaml", "env.json", "metrics.jsonl", ".last.pt.77.tmp"):
        (folder / name).touch()


@pytest.mark.parametrize("out", [None, "runs/x"])
def test_a_folder_in_which_nothing_was_saved_is_used_again(tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    begun(Path("runs/x"))
    with new_run_folder("x", out) as lock:
        assert [path.name for path in lock.folder.iterdir()] == ["lock.json"]
    with pytest.raises(NoRunError, match="no run to resume"):
        newest_run("x")


@pytest.mark.parametrize("content", ["{}", '{"packages": []}', "text"])
def test_a_lock_of_something_else_marks_no_run(tmp_path, content):
    """Files of these names may be a user's own."""
    for name in ("config.yaml", "env.json"):
        (tmp_path / name).write_text("of the user")
    (tmp_path / "lock.json").write_text(content)
    with pytest.raises(RunFolderError, match="already holds files"):
        new_run_folder("x", tmp_path)
    assert (tmp_path / "config.yaml").read_text() == "of the user"


@pytest.mark.parametrize(
    "kept", ["last.pt", "previous.pt", "best.safetensors", "notes.txt", "metrics.jsonl", None]
)
def test_a_folder_that_holds_anything_else_is_left_as_it_is(tmp_path, kept):
    begun(tmp_path)
    if kept is None:
        (tmp_path / "lock.json").unlink()  # a user's own config.yaml
    else:
        (tmp_path / kept).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunFolderError, match="already holds files and is left as it is"):
        new_run_folder("x", tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_saved_nothing_is_named_and_one_with_an_earlier_state_is_found(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    begun(Path("runs/x-2"))
    with pytest.raises(NothingSavedError, match=r"^nothing was saved yet in runs/x-2$") as caught:
        newest_run("x")
    assert caught.value.folder == Path("runs/x-2")
    Path("runs/x-2/previous.pt").touch()
    assert newest_run("x") == Path("runs/x-2")


def test_files_that_a_killed_process_had_not_finished_are_removed_and_no_others(tmp_path):
    unfinished = [".last.pt.7.tmp", ".metrics.jsonl.123456.tmp", ".config-until-step-5.yaml.1.tmp"]
    kept = [".mine.txt.7.tmp", "last.pt", ".last.pt.tmp", "last.pt.7.tmp", ".last.pt.x.tmp"]
    for name in (*unfinished, *kept):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


@pytest.mark.parametrize(
    ("inside", "chosen"),
    [
        (["best.safetensors", "last.pt", "previous.pt"], "best.safetensors"),
        (["weights.safetensors", "last.pt"], "weights.safetensors"),
        (["last.pt", "previous.pt", "config.yaml"], "last.pt"),
        (["previous.pt"], "previous.pt"),
    ],
)
def test_of_a_run_folder_the_best_weights_are_used_else_its_state(tmp_path, inside, chosen):
    for name in inside:
        (tmp_path / name).touch()
    assert weights_in(tmp_path) == tmp_path / chosen


@pytest.mark.parametrize(
    ("inside", "said"),
    [
        ([], "is a folder without best.safetensors, weights.safetensors or last.pt"),
        (["lock.json", "config.yaml"], "nothing was saved yet in"),
        (["phase.json"], "is a run of four steps that are not done: resume it first"),
        (["phase.json", "1-rpn/last.pt", "2-fast_rcnn/last.pt"], "give the folder of one, .*/2-f"),
    ],
)
def test_a_folder_without_weights_says_what_it_is(tmp_path, inside, said):
    for name in inside:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=f"{tmp_path}.*{said}|{said} {tmp_path}"):
        weights_in(tmp_path)


def test_what_is_no_folder_is_taken_as_it_is(tmp_path):
    for path in (tmp_path / "none.safetensors", Path("torchvision/resnet50.v1")):
        assert weights_in(path) == path

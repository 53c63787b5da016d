"""The ledger as a user calls it; what it runs are real trainings of two steps on the shapes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from detres.cli import train_det
from detres.cli.reproduce import main
from detres.commands import reproduce
from detres.reproduction.tables import Cell, Evaluation, Training
from tests.cli.conftest import TINY
from tests.reproduction.folders import CELL, CONFIGS, RESNET, tiny_config, write_run

DOCS = CONFIGS.parent / "docs"


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the committed files, in a working directory of its own."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "docs"
    folder.mkdir()
    for name in ("measured.json", "reproduction.md"):
        shutil.copy(DOCS / name, folder / name)
    return folder


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def call(docs: Path, *flags: str) -> int:
    return main(["--docs", str(docs), *flags])


def test_a_dry_run_lists_a_table_and_writes_nothing(docs, tmp_path, capsys):
    write_run(tmp_path / "runs", RESNET, numbers={"top1_error": 0.0809})
    before = bytes_of(tmp_path)
    assert call(docs, "--table", "6", "7", "--dry-run", "--run") == 0
    out = capsys.readouterr().out
    assert out.count("Table 6: ") == 10
    assert out.count("Table 7: ") == 8
    assert "Table 8: " not in out
    assert "top-1 8.09 (best of 2; mean 8.29 +- 0.28), below the band" in out
    assert "mAP 76.4 to 79.8" in out
    assert "would run first: python tools/train_det.py --cfg configs/voc0712_vgg16.yaml" in out
    assert bytes_of(tmp_path) == before


def test_what_is_found_is_kept_when_its_folder_is_gone(docs, tmp_path, capsys):
    folder = write_run(tmp_path / "runs", RESNET, name="mine", numbers={"top1_error": 0.08})
    assert call(docs, "--table", "7") == 0
    assert f"{docs / 'measured.json'}: 3 runs" in capsys.readouterr().out
    shutil.rmtree(folder)
    before = bytes_of(docs)
    assert b"top-1 8.00 (best of 2" in before[str(docs / "reproduction.md")]
    assert call(docs, "--table", "6") == 0
    assert "top-1 8.00 (best of 2" in capsys.readouterr().out
    assert bytes_of(docs) == before


def test_the_committed_files_are_up_to_date(docs, capsys):
    before = bytes_of(docs)
    assert call(docs, "--table", "14") == 0
    assert "--split test --submission runs/imagenet_rcnn_r101/server\n" in capsys.readouterr().out
    assert bytes_of(docs) == before


def test_a_run_of_fewer_steps_is_named_and_not_kept(docs, tmp_path, capsys):
    settings = ("train.steps=200", "train.milestones=[]")
    write_run(tmp_path / "runs", RESNET, *settings, numbers={"top1_error": 0.01})
    before = bytes_of(docs)
    assert call(docs, "--table", "6") == 0
    assert "not counted  runs/cifar10_resnet20: train.milestones is [], not " in (
        capsys.readouterr().out
    )
    assert bytes_of(docs) == before


@pytest.mark.parametrize("table", ["1", "15", "seven"])
def test_an_unknown_table_is_refused(docs, table, capsys):
    with pytest.raises(SystemExit) as ended:
        call(docs, "--table", table)
    assert ended.value.code == 2
    assert "argument --table: invalid " in capsys.readouterr().err


def test_bad_folders_and_files_are_named_before_anything_is_written(docs, tmp_path, capsys):
    (tmp_path / "file").touch()
    for flag in ("--runs", "--data", "--docs"):
        for folder in ("nowhere", "file"):
            assert call(docs, "--table", "6", flag, folder) == 2
            assert capsys.readouterr().err == f"error: {flag} {folder} is no folder\n"
    (docs / "measured.json").write_text('{"records": [{"config": 3}]}')
    before = bytes_of(tmp_path)
    for flags in (["--dry-run"], [], ["--run"]):
        assert call(docs, "--table", "6", *flags) == 2
        assert "measured.json: records.0.config: " in capsys.readouterr().err
    shutil.copy(DOCS / "measured.json", docs)
    (docs / "reproduction.md").write_text("no tables\n")
    assert call(docs, "--table", "6", "--run") == 2
    assert "reproduction.md has no place for the tables" in capsys.readouterr().err
    (docs / "reproduction.md").unlink()
    assert call(docs, "--table", "6") == 2
    assert "no file of results" in capsys.readouterr().err
    assert bytes_of(tmp_path).keys() < before.keys()


def test_a_folder_that_is_no_run_is_said(docs, tmp_path, capsys):
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "config.yaml").write_text("{")
    assert call(docs, "--table", "14") == 0
    assert capsys.readouterr().err.startswith("note: runs/x is left out: runs/x/config.yaml:1: ")


# ---- running ----

TINY_RUN = Training("train-det", "tiny", None)
FROM_TINY = Training("train-det", "second", None, init_from=TINY_RUN)
TABLE = (
    Cell(7, "tiny", {"AP50": 50.0}, (TINY_RUN,)),
    Cell(7, "no way", {"AP50": 50.0}, note="no command: none"),
    Cell(
        8,
        "second",
        {"AP50": 50.0, "AP": 25.0},
        (FROM_TINY,),
        Evaluation("refined", ("eval.refine.iterations=1",)),
    ),
)


@pytest.fixture
def table(docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A paper of three cells, its configurations in the working directory."""
    for name in ("tiny", "second"):
        tiny_config(tmp_path / "configs", {**TINY, "name": name})
    monkeypatch.setattr(reproduce, "CELLS", TABLE)
    monkeypatch.setattr(reproduce, "CONFIGS", tmp_path / "configs")
    (docs / "measured.json").unlink()
    return docs


@pytest.mark.slow
def test_what_is_missing_is_run_resumed_and_kept(table, tmp_path, capfd):
    """One command a process, each a training or an evaluation of its own."""
    settings = ["--set", "train.save_every=1"]
    assert train_det.main(["--cfg", "configs/tiny.yaml", "--device", "cpu", *settings]) == 0
    folder = tmp_path / "runs" / "tiny"
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    shutil.copy(folder / "previous.pt", folder / "last.pt")  # as if killed after the first step
    (folder / "metrics.jsonl").write_text(lines[0] + "\n")
    (folder / "metrics.json").unlink()
    capfd.readouterr()
    assert call(table, "--run", "--device", "cpu") == 0
    out = capfd.readouterr().out
    commands = [line for line in out.splitlines() if line.startswith("$ ")]
    assert commands == [
        "$ python tools/train_det.py --resume runs/tiny --device cpu",
        "$ python tools/train_det.py --cfg configs/second.yaml --device cpu --init-from "
        "runs/tiny/best.safetensors",
        "$ python tools/eval.py --weights runs/second/best.safetensors --device cpu --set "
        "eval.refine.iterations=1 --json runs/second/refined.json",
    ]
    records = json.loads((table / "measured.json").read_text())["records"]
    assert [(each["run"], each["config"], list(each["results"])) for each in records] == [
        ("tiny", "tiny", ["metrics"]),
        ("second", "second", ["refined"]),
    ]
    text = (table / "reproduction.md").read_text()
    assert text.count("**AP50 ") == 2
    assert text.count("not measured |") == 1
    before = bytes_of(tmp_path)
    assert call(table, "--run", "--device", "cpu") == 0
    assert not [line for line in capfd.readouterr().out.splitlines() if line.startswith("$ ")]
    assert bytes_of(tmp_path) == before


def test_the_first_command_that_fails_ends_it(table, tmp_path, capfd):
    data = {"format": "voc", "root": "nowhere", "train": ["train"], "val": ["val"]}
    tiny_config(tmp_path / "configs", {**TINY, "name": "tiny", "data": data})
    assert call(table, "--run", "--device", "cpu", "--table", "7", "8") == 2
    shown = capfd.readouterr()
    failed = "python tools/train_det.py --cfg configs/tiny.yaml --device cpu"
    assert shown.err.splitlines()[-1] == f"error: ended with status 2: {failed}"
    assert [line for line in shown.out.splitlines() if line.startswith("$ ")] == [f"$ {failed}"]
    assert not (table / "measured.json").exists()


def test_a_command_that_was_stopped_has_the_time_to_save(tmp_path, monkeypatch):
    """Ctrl-C reaches both processes, and the one that trains takes some seconds over its state."""
    (tmp_path / "slow.py").write_text(
        "import os, pathlib, signal, sys, time\n"
        "os.kill(os.getppid(), signal.SIGINT)\n"
        "time.sleep(1)\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "sys.exit(130)\n"
    )
    monkeypatch.setattr(reproduce, "TOOLS", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        reproduce.run(("slow", str(tmp_path / "saved")))
    assert (tmp_path / "saved").exists()


def test_a_command_of_which_nothing_comes_ends_it(table, monkeypatch, capsys):
    """Else it would be run for ever."""
    called = []
    monkeypatch.setattr(reproduce, "run", called.append)
    assert call(table, "--run", "--table", "7") == 2
    assert len(called) == 1
    assert "error: nothing that counts came of it (there is no new run): python " in (
        capsys.readouterr().err
    )


def test_what_a_server_answers_is_asked_for(table, tmp_path, monkeypatch, capsys):
    cell = Cell(7, "x", {"top1_error": 8.0}, CELL.runs, Evaluation("server", server=True))
    monkeypatch.setattr(reproduce, "CELLS", (cell,))
    monkeypatch.setattr(reproduce, "CONFIGS", CONFIGS)
    folder = write_run(tmp_path / "runs", RESNET)
    (folder / "server").mkdir()
    assert call(table, "--run", "--table", "7") == 0
    assert (
        "runs/cifar10_resnet20/server is for the test's server; put what it answers into "
        'runs/cifar10_resnet20/server.json, as fractions: {"top1_error": 0.5}'
    ) in capsys.readouterr().out
    (folder / "server.json").write_text('{"top1_error": 0.08}')
    assert call(table, "--table", "7") == 0
    assert "top-1 8.00" in capsys.readouterr().out

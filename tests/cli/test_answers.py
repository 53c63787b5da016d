"""Help, versions and usage errors are answered before any library is imported."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import detres.cli
from detres.cli import COMMANDS, SHORT, command
from detres.cli.command import carry_out
from detres.cli.flags import CommandParser

ROOT = Path(__file__).resolve().parents[2]

TRAINING = (
    ["--epochs", "3"],
    ["--seed", "x"],
    ["--accept-data-change"],
    ["--resume", "run", "--out", "other"],
    ["--resume", "run", "--set", "model.rpn.width=3"],
    ["photos", "--data", "photos"],
    ["--cfg", "nowhere.yaml"],
    ["--resume", "nowhere"],
    ["epochs=3"],
)
USAGE_ERRORS = {
    "train-cls": TRAINING,
    "train-det": TRAINING,
    "train-loc": TRAINING,
    "eval": (
        [],
        ["--config", "x.yaml"],
        ["--detections", "d"],
        ["--weights", "w", "--split", "x"],
        ["--weights", "w", "--protocol", "x"],
        ["--weights", "w", "--json", "."],
        ["--weights", "w", "--submission", "out"],
        ["--counts", "3"],
        ["--proposals", "--weights", "w", "--counts", "3", "2"],
    ),
    "check-data": (["nowhere"], ["--data", "nowhere"]),
    "convert-data": ([], ["nowhere", "--out", "x"]),
    "convert": (
        [],
        ["setup.py", "--out", "x.pt"],
        ["nowhere", "--out", "x.safetensors"],
        ["detectron2/faster_rcnn_R_9", "--out", "x.safetensors"],
    ),
    "settings": (["lrr"], ["device"], ["train.lr", "--markdown"]),
    "replay": ([], ["nowhere"], ["a", "b"]),
    "predict": (
        [],
        ["a.jpg"],
        ["nowhere", "--weights", "setup.py"],
        ["a.jpg", "--weight", "w"],
        ["setup.py", "--weights", "torchvision/fasterrcnn_resnet50"],
        ["a.jpg", "--score", "x"],
        *(["a.jpg", "--weights", "w", "--shard", of] for of in ("3", "a/b", "0/8", "9/8", "1/0")),
        ["s3://bucket/a.jpg", "--weights", "setup.py"],
        ["setup.py", "--weights", "setup.py", "--out", "s3://bucket/out"],
    ),
    "reproduce": (["--table", "99"], ["--data"]),
    "plot": (
        [],
        ["curves"],
        ["curves", "nowhere", "--out", "figures"],
        ["other", "run", "--out", "x"],
        ["curves", "run", "--out", "x", "--data", "y"],
        ["curves", "run", "--out", "x", "--max-error", "0"],
    ),
    "benchmark": (["zzz"], ["--repeats", "0"]),
    "compare-torchvision": (["--seed", "x"],),
}
OF_EVERY_COMMAND = (["--help"], ["-h"], ["--version"], ["--klingon", "3"], ["--devise=cpu"])

RUN = """
import contextlib, io, json, runpy, sys
before = set(sys.modules)
answers = []
for program, *arguments in json.load(sys.stdin):
    sys.argv = [program, *arguments]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
        try:
            if program == "detres":
                import detres.cli
                status = detres.cli.main()
            else:
                status = runpy.run_path(program, run_name="__main__")
        except SystemExit as ended:
            status = ended.code
    new = {name.partition(".")[0] for name in set(sys.modules) - before}
    answers.append((status, sorted(new - set(sys.stdlib_module_names)), shown.getvalue()))
json.dump(answers, sys.stdout)
"""
"""Gives for each command line its exit status, what was imported by then beyond the standard
library, and what was printed.
"""


def answers_to(lines: list[list[str]]) -> list[tuple[int, list[str], str]]:
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(lines),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_arguments_are_read_before_any_library_is_imported(name: str) -> None:
    given = [*OF_EVERY_COMMAND, *USAGE_ERRORS.get(name, ())]
    programs = [["detres", name], [f"tools/{name.replace('-', '_')}.py"]]
    programs += [["detres", short] for short, of in SHORT.items() if of == name]
    lines = [[*program, *arguments] for program in programs for arguments in given]
    for line, (status, imported, shown) in zip(lines, answers_to(lines), strict=True):
        assert imported == ["detres"], line
        wanted = status == 0 if line[-1] in ("--help", "-h", "--version") else status == 2
        assert wanted, (line, status, shown)
        assert ("error: " in shown) == (status == 2), line


def test_the_list_of_commands_needs_no_library_either() -> None:
    lines = [["detres", *given] for given in ([], ["--help"], ["--version"], ["--list"], ["zzz"])]
    found = answers_to(lines)
    assert [status for status, *_ in found] == [0, 0, 0, 0, 2]
    assert [imported for _, imported, _ in found] == [["detres"]] * 5


def test_what_imports_a_library_is_seen() -> None:
    """The test above would say so."""
    (found,) = answers_to([["detres", "plot", "curves", "configs", "--out", "figures"]])
    assert found[0] == 2
    assert {"torch", "matplotlib", "pydantic"} <= set(found[1])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_the_version(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"detres.cli.{name.replace('-', '_')}")
    with pytest.raises(SystemExit) as ended:
        module.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr() == (f"detres {detres.__version__}\n", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_work_of_a_command_is_there(name: str) -> None:
    stem = name.replace("-", "_")
    text = (ROOT / "detres" / "cli" / f"{stem}.py").read_text("utf-8")
    (work,) = re.findall(r'carry_out\("([^"]+)"', text)
    module, _, function = work.partition(":")
    assert module == stem
    assert callable(getattr(importlib.import_module(f"{command.WORK}.{module}"), function))


def test_ctrl_c_while_the_libraries_are_imported_ends_quietly(monkeypatch, capsys):
    def stopped(name: str) -> None:
        assert name.startswith(command.WORK)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "importlib", SimpleNamespace(import_module=stopped))
    parser = CommandParser()
    assert carry_out("eval:evaluate", parser, parser.parse_args([])) == 130
    assert capsys.readouterr() == ("", "\nstopped\n")

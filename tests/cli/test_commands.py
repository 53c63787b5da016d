"""`detres COMMAND`: the list of commands, and each of them the same as its script in tools/."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import detres.cli
import detres.commands
from backbones.download import part_of
from detres.cli import COMMANDS, SHORT, main
from detres.detection.published import PUBLISHED_DETECTORS

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"
EVALS = {f"eval_{of}" for of in ("classifier", "detections", "detector", "localiser", "proposals")}
NO_COMMANDS = {"__init__", "flags", "paths", "proposal_flags", "advice", "setting_names"}
NO_COMMANDS |= {"command", "listing"}
"""Files of detres/cli that are not a command each."""

PARTS = {"__init__", "ending", "configured", "own_data", "predict_shard"}
PARTS |= {"several", "submission"} | EVALS
"""Files of detres/commands that are not the work of a command each."""


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["/usr/bin/detres", *arguments])
    return main()


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_alone_it_lists_every_command(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *arguments) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith(
        "usage: detres COMMAND [ARGUMENTS]\n       detres --version\n       detres --list\n\n"
    )
    listed = [line.split()[0] for line in shown.out.splitlines()[4:]]
    assert listed == list(COMMANDS)
    assert shown.err == ""


def test_it_lists_the_published_detectors_as_the_table_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    entries = [*PUBLISHED_DETECTORS.values()]
    here, made, part = (
        entries[1].path(tmp_path / "hub"),
        entries[2].converted_path(tmp_path / "hub"),
        part_of(entries[3].path(tmp_path / "hub")),
    )
    for path in (here, made, part):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert call(monkeypatch, "--list") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    table, _, below = shown.out.partition("\n\n")
    rows = [re.split(r" {2,}", line) for line in table.splitlines()]
    assert rows[0] == ["name", "network", "as published", "size", "here", "licence"]
    assert [row[0] for row in rows[1:]] == [*PUBLISHED_DETECTORS]
    states = ["no", "yes", "yes", "in part", *["no"] * (len(entries) - 4)]
    for row, entry, state in zip(rows[1:], entries, states, strict=True):
        size = "not published" if entry.size_mib is None else f"{entry.size_mib:.1f} MiB"
        assert row[1:] == [
            f"{entry.backbone} {entry.layout}",
            f"{entry.score} {entry.metric}",
            size,
            state,
            entry.licence,
        ]
    assert below.endswith(f"into {tmp_path / 'hub' / 'checkpoints'}\n")


def test_it_says_its_version(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("detres.cli.__version__", "7.8.9")
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr() == ("detres 7.8.9\n", "")


def test_what_is_installed_has_the_packages_version() -> None:
    setup = [sys.executable, "setup.py", "--version"]
    found = subprocess.run(setup, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == detres.__version__


def test_what_is_installed_says_that_it_is_typed(tmp_path: Path) -> None:
    build = ["egg_info", "--egg-base", tmp_path, "build", "--build-base", tmp_path / "b"]
    command = [sys.executable, "setup.py", "-q", *build, "--build-lib", tmp_path / "lib"]
    subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, check=True)
    typed = [path.parent.name for path in (tmp_path / "lib").rglob("py.typed")]
    assert sorted(typed) == ["backbones", "detres"]
    assert (tmp_path / "lib" / "detres" / "__init__.pyi").is_file()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("pridect", "unknown command 'pridect', did you mean predict?\n"),
        ("train_det", "unknown command 'train_det', did you mean train-det?\n"),
        ("trian", "unknown command 'trian', did you mean train?\n"),
        ("val", "unknown command 'val', did you mean eval?\n"),
        ("validate", "unknown command 'validate', did you mean eval?\n"),
        ("test", "unknown command 'test', did you mean eval?\n"),
        ("detect", "unknown command 'detect', did you mean predict?\n"),
        ("finetune", "unknown command 'finetune', did you mean train?\n"),
        ("zzz", "unknown command 'zzz'\n"),
        ("", "unknown command ''\n"),
        ("\x1b[31mred", "unknown command '\\x1b[31mred'\n"),
        ("z" * 9999, f"unknown command '{'z' * 80}... (9999 characters)'\n"),
    ],
)
def test_an_unknown_command_is_named_with_the_nearest(
    given: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, given, "--help") == 2
    shown = capsys.readouterr()
    assert shown.err == message
    assert "train-det" in shown.out


def test_train_is_short_for_training_a_detector(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, "train", "--help")
    assert ended.value.code == 0
    short = capsys.readouterr().out
    assert short.startswith("usage: detres train [-h]")
    with pytest.raises(SystemExit):
        call(monkeypatch, "train-det", "--help")
    assert (
        short.split() == capsys.readouterr().out.replace("detres train-det", "detres train").split()
    )
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, "train", "photos", "--data", "photos")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("detres train: error: DATA, photos, and --data")


def test_the_names_of_other_tools_are_none_of_ours() -> None:
    other = detres.cli._OTHER_NAMES
    assert set(other) <= {*COMMANDS, *SHORT}
    assert not {name for names in other.values() for name in names.split()} & {*COMMANDS, *SHORT}


def test_every_command_has_its_module_and_its_script() -> None:
    names = {name.replace("-", "_") for name in COMMANDS}
    modules = {path.stem for path in Path(detres.cli.__file__).parent.glob("*.py")}
    assert modules - NO_COMMANDS == names
    works = {path.stem for path in Path(detres.commands.__file__).parent.glob("*.py")}
    assert works - PARTS == names
    assert {path.stem for path in TOOLS.glob("*.py")} == names


@pytest.mark.parametrize("name", COMMANDS)
def test_the_script_shows_the_help_and_the_flags_of_the_command(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, name, "--help")
    assert ended.value.code == 0
    of_command = capsys.readouterr().out
    script = TOOLS / f"{name.replace('-', '_')}.py"
    monkeypatch.setattr("sys.argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    of_script = capsys.readouterr().out
    assert of_command.startswith(f"usage: detres {name} ")
    assert of_script.startswith(f"usage: {script.name} ")
    flags = [set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", text)) for text in (of_command, of_script)]
    assert flags[0] == flags[1] > {"--help"}


def test_the_arguments_after_the_command_are_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "plot", "curves", "nowhere", "--out", "figures") == 2
    assert capsys.readouterr().err.startswith("error: no run folder or weights file at nowhere")
    with pytest.raises(SystemExit) as ended:
        call(monkeypatch, "plot", "curves")
    assert ended.value.code == 2
    assert "detres plot: error: " in capsys.readouterr().err

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"python (tools/\w+\.py)((?: [^\n`\\]|\\\n)*[^\n`]*)", README)


def test_there_are_commands_to_check():
    assert {tool for tool, _ in COMMANDS} >= {
        "tools/train_det.py",
        "tools/eval.py",
        "tools/predict.py",
        "tools/benchmark.py",
    }


@pytest.mark.parametrize("tool", sorted({tool for tool, _ in COMMANDS}))
def test_every_flag_of_a_command_is_one_of_the_tool(tool, capsys):
    command = importlib.import_module(f"detres.cli.{Path(tool).stem}")
    assert f"from detres.cli.{Path(tool).stem} import main" in (ROOT / tool).read_text("utf-8")
    with pytest.raises(SystemExit):
        command.main(["--help"])
    shown = capsys.readouterr().out
    flags = {
        flag
        for name, arguments in COMMANDS
        if name == tool
        for flag in re.findall(r"--[a-z-]+", arguments)
    }
    assert {flag for flag in flags if flag not in shown} == set()


def test_every_file_named_is_there():
    named = set(
        re.findall(r"\b((?:configs|docs|tools|detres|backbones|tests)/[\w/.-]+\.\w+)", README)
    )
    assert {name for name in named if not (ROOT / name).is_file()} == set()
    assert named


def test_the_backbone_example_runs_where_nothing_but_backbones_is_imported(tmp_path):
    code = next(
        block
        for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        if "create_backbone" in block
    )
    assert len(code.splitlines()) <= 10
    code += (
        "import sys\nassert not [name for name in sys.modules if name.split('.')[0] in "
        "('detres', 'torchvision')]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines() == [
        "conv3 (2, 512, 60, 80) 512 8",
        "conv4 (2, 1024, 30, 40) 1024 16",
        "conv5 (2, 2048, 15, 20) 2048 32",
    ]


def test_no_placeholder_is_left():
    assert "@@" not in README


def test_every_config_has_its_place_in_the_texts():
    texts = README + (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    assert {
        path.stem for path in (ROOT / "configs").glob("*.yaml") if path.stem not in texts
    } == set()

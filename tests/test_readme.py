from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"python (tools/\w+\.py)((?: [^\n`\\]|\\\n)*[^\n`]*)", README)


def test_there_are_commands_to_check():
    assert {tool for tool, _ in COMMANDS} >= {"tools/train_det.py", "tools/eval.py", "tools/predict.py", "tools/benchmark.py"}


@pytest.mark.parametrize("tool", sorted({tool for tool, _ in COMMANDS}))
def test_every_flag_of_a_command_is_one_of_the_tool(tool):
    shown = subprocess.run([sys.executable, str(ROOT / tool), "--help"], capture_output=True, text=True, check=True).stdout
    flags = {flag for name, arguments in COMMANDS if name == tool for flag in re.findall(r"--[a-z-]+", arguments)}
    assert {flag for flag in flags if flag not in shown} == set()


def test_every_file_named_is_there():
    named = set(re.findall(r"\b((?:configs|docs|tools|detres|backbones|tests)/[\w/.-]+\.\w+)", README))
    assert {name for name in named if not (ROOT / name).is_file()} == set()
    assert named


def test_the_tree_shows_every_module():
    tree = README.split("## The tree")[1]
    folders = {"models", "data", "engine", "evaluation"}
    for folder in folders:
        row = re.search(rf"  {folder}/ +(.*)", tree)
        assert row, folder
        named = set(re.findall(r"\w+", row[1]))
        modules = {path.stem for path in (ROOT / "detres" / folder).glob("*.py")} - {"__init__"}
        assert named & modules, folder


def test_no_placeholder_is_left():
    assert "@@" not in README


def test_every_config_has_its_place_in_the_texts():
    texts = README + (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml") if path.stem not in texts} == set()

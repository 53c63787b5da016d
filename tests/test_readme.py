from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from detres.class_map import ClassMap
from detres.classification.weights_file import save_classifier
from detres.config import check
from detres.detection.build import build_detector
from detres.detection.config import DetectionConfig
from detres.detection.data.shapes import SHAPES_CLASSES
from detres.detection.inference.pictures import write_jpeg
from detres.detection.weights_file import save_detector
from detres.images.decode import read_image
from tests.classification.parts import NAMES, config_of, random_model
from tests.detection.configs import TINY

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PAGES = {"README.md": README} | {
    f"docs/{path.name}": path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")
}
TEXT = "\n".join(PAGES.values())
COMMANDS = re.findall(r"python (tools/\w+\.py)((?: [^\n`\\]|\\\n)*[^\n`]*)", TEXT)


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
        for flag in re.findall(r"(?<![\w-])--[a-z-]+", arguments.partition("  #")[0])
    }
    assert {flag for flag in flags if flag not in shown} == set()


def test_every_file_named_is_there():
    named = set(
        re.findall(r"\b((?:configs|docs|tools|detres|backbones|tests)/[\w/.-]+\.\w+)", TEXT)
    )
    assert {name for name in named if not (ROOT / name).is_file()} == set()
    assert named


def test_the_backbone_example_runs_where_nothing_but_backbones_is_imported(tmp_path):
    code = next(block for block in PYTHON if "create_backbone" in block)
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


def test_the_python_example_runs_on_runs_and_pictures(tmp_path, monkeypatch, capsys):
    """As it stands, in a directory with the files it names: small weights, drawn photographs."""
    (code,) = [block for block in PYTHON if "import detres" in block]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETRES_CACHE", str(tmp_path / "cache"))
    config = check(
        DetectionConfig,
        {
            "name": "shapes_r18",
            "data": {"format": "shapes", "shapes_train": 1, "shapes_val": 2, "workers": 0},
            "model": TINY,
            "train": {"steps": 1},
        },
        "test",
    )
    model, classes = build_detector(config.model, 6), ClassMap.of_names(SHAPES_CLASSES)
    save_detector(Path("runs/shapes_r18/best.safetensors"), model, config, classes, step=1)
    path = Path("runs/cls_shapes_r18/weights.safetensors")
    save_classifier(path, random_model(), config_of(), ClassMap.of_names(NAMES), step=1)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 900, 3), dtype=np.uint8)
    Path("photos").mkdir()
    for name in ("a.jpg", "b.jpg", "photos/c.jpg", "photos/d.jpg"):
        write_jpeg(Path(name), pixels)
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "photos/c.jpg" in shown
    assert "photos/d.jpg" in shown
    assert "Average Precision" in shown
    assert re.search(r"\{'(cat|dog|owl)': 0\.\d+, ", shown)
    assert read_image("a_found.jpg").shape == pixels.shape
    assert names["records"] == names["large"].to_coco()
    assert len(names["large"])


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_link_leads_to_a_file_and_a_heading(page):
    links = re.findall(r"\]\((?!https?:)([^)#\s]*)#?([\w-]*)\)", PAGES[page])
    for file, heading in links:
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.is_file(), file
        if heading:
            text = path.read_text(encoding="utf-8")
            titles = [line.strip("# ").lower() for line in text.splitlines() if line[:1] == "#"]
            assert heading in [re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles]


@pytest.mark.parametrize("page", sorted(PAGES))
def test_no_placeholder_is_left(page):
    assert "@@" not in PAGES[page]


def test_every_config_has_its_place_in_the_texts():
    texts = TEXT
    assert {
        path.stem for path in (ROOT / "configs").glob("*.yaml") if path.stem not in texts
    } == set()

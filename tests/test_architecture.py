"""Who may import whom, read from the imports themselves; and the tree in docs/architecture.md,
which is the files.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

SHARED = {  # the rooms both wings stand on
    "backbones",
    "detres.boxes",
    "detres.class_map",
    "detres.config",
    "detres.engine",
    "detres.console",
    "detres.eval_mode",
    "detres.files",
    "detres.held_out",
    "detres.images",
    "detres.losses",
    "detres.network",
    "detres.runs",
    "detres.storage",
    "detres.user_files",
    "detres.waiting",
}
BASE = {"torch", "numpy"}
D, C = "detres.detection", "detres.classification"

RULES = {  # part -> (parts of the project it may import, packages beyond the standard library)
    "backbones": (set(), {"torch", "safetensors"}),
    "detres.boxes": (set(), {"torch", "torchvision", "numpy"}),
    "detres.class_map": (set(), set()),
    "detres.held_out": (set(), {"numpy"}),
    "detres.console": (set(), set()),
    "detres.eval_mode": (set(), {"torch"}),
    "detres.losses": (set(), {"torch"}),
    "detres.user_files": (set(), set()),
    "detres.storage": ({"detres.files"}, {"fsspec"}),
    "detres.waiting": ({"detres.console"}, {"tqdm"}),
    "detres.values": (set(), set()),
    "detres.config": ({"detres.console", "detres.user_files"}, {"pydantic", "yaml"}),
    # the one writer of files is backbones.files
    "detres.files": ({"backbones", "detres.user_files"}, {"torch"}),
    "detres.network": ({"backbones", "detres.config"}, {"pydantic"}),
    "detres.settings_table": ({"detres.config"}, set()),
    "detres.images": (
        {"backbones", "detres.class_map", "detres.console", "detres.files", "detres.user_files"},
        BASE | {"cv2", "PIL", "fsspec", "tqdm", "matplotlib"},  # of which the font alone
    ),
    "detres.engine": (
        {"detres.console", "detres.files", "detres.losses"},
        BASE | {"cv2", "tqdm", "tensorboard"},
    ),
    "detres.runs": (
        {"detres.engine", "detres.console", "detres.files", "detres.config", "detres.user_files"},
        BASE | {"torchvision", "cv2", "pydantic"},
    ),
    "detres.runs.resumable": (set(), set()),  # light
    "detres.runs.place": (set(), set()),  # light
    f"{D}.structures": ({"detres.class_map"}, BASE),
    f"{D}.annotations": (
        {"detres.class_map", "detres.console", f"{D}.structures"},
        BASE,
    ),
    f"{D}.choices": (set(), set()),  # light: what a command's arguments are read with
    f"{D}.duration": (set(), set()),  # light
    f"{D}.published": (set(), set()),  # light
    f"{D}.config": (
        {"backbones", "detres.config", "detres.network", "detres.runs", f"{D}.choices"},
        {"pydantic"},
    ),
    f"{D}.data": (
        {"detres.boxes", "detres.class_map", "detres.console", "detres.files", "detres.images"}
        | {"detres.config", "detres.held_out", "detres.user_files", "detres.values"}
        | {"detres.waiting"}
        | {f"{D}.structures", f"{D}.annotations", f"{D}.config"},
        BASE | {"cv2", "albumentations", "defusedxml", "msgspec", "tqdm", "yaml"},
    ),
    # the boxes that anchors are, which know no network
    f"{D}.data.anchor_fit": (
        {"detres.images", f"{D}.annotations", f"{D}.config", f"{D}.models.anchors"},
        {"numpy"},
    ),
    f"{D}.models": (
        {"backbones", "detres.boxes", "detres.images.normalize", "detres.losses"}
        | {f"{D}.structures"},
        {"torch", "torchvision"},
    ),
    f"{D}.inference.fast": ({"backbones", "detres.engine.probes", f"{D}.models"}, {"torch"}),
    f"{D}.inference": (
        {"detres.boxes", "detres.class_map", "detres.console", "detres.files", "detres.images"}
        | {"detres.eval_mode", "detres.user_files", "detres.waiting"}
        | {f"{D}.evaluation.result_files", f"{D}.evaluation.curves", f"{D}.evaluation.matches"}
        | {f"{D}.structures", f"{D}.choices", f"{D}.annotations", f"{D}.models", f"{D}.data.batch"}
        | {f"{D}.inference.fast"},
        BASE | {"cv2", "PIL"},
    ),
    f"{D}.evaluation": (
        {"detres.boxes", "detres.class_map", "detres.console", "detres.files"}
        | {"detres.images.decode", "detres.user_files", "detres.values"}
        | {f"{D}.structures", f"{D}.annotations", f"{D}.choices"},
        BASE | {"pycocotools", "hotcoco", "msgspec"},
    ),
    f"{D}.localisation": (SHARED | {D}, BASE | {"pydantic"}),
    f"{D}.build": (SHARED | {D}, {"torch"}),
    f"{D}.detector": (SHARED | {D}, BASE),
    f"{D}.predictor": (SHARED | {D}, {"torch"}),
    f"{D}.sharding": (SHARED | {D, "detres"}, set()),
    f"{D}.weights_file": (SHARED | {D}, {"torch"}),
    f"{D}.import_weights": (SHARED | {D}, {"torch"}),
    f"{D}.import_detectron": ({"backbones"}, {"torch"}),
    f"{D}.named_weights": (SHARED | {D}, {"torch"}),
    f"{D}.figures": (
        {"detres.console", "detres.files", "detres.runs.records", f"{D}.evaluation.curves"},
        {"numpy", "matplotlib"},
    ),
    f"{D}.evaluation_files": (SHARED | {D}, {"numpy"}),
    f"{D}.replay": (SHARED | {D}, {"torch"}),
    f"{D}.transfer": (SHARED | {D}, {"torch"}),
    f"{D}.pretrained": ({"backbones", "detres.user_files"}, set()),
    f"{D}.chosen_settings": (SHARED | {D}, BASE),
    f"{D}.own_data": (SHARED | {D}, {"torch"}),
    f"{D}.own_run": (SHARED | {D}, {"torch"}),
    f"{D}.resumed_run": (SHARED | {D}, {"torch"}),
    f"{D}.time_budget": (SHARED | {D}, BASE),
    f"{D}.training": (SHARED | {D}, BASE),
    f"{D}.judging": (SHARED | {D}, BASE),
    f"{D}.alternating": (SHARED | {D}, {"torch"}),
    C: (
        SHARED | {C, f"{D}.annotations", f"{D}.data.coco", f"{D}.data.shapes"},
        BASE | {"torchvision", "cv2", "fsspec", "pydantic"},
    ),
    "detres.benchmarks": (SHARED | {D, C}, BASE | {"torchvision", "cv2", "PIL"}),
    "detres.benchmarks.detectron2_peer": (
        {"detres.benchmarks", D},
        {"torch", "detectron2"},
    ),
    "detres.report": ({"detres.console", "detres.images", f"{D}.data"}, BASE | {"cv2"}),
    "detres.predictors": ({D, C, "detres.config", "detres.runs"}, set()),
    "detres.reproduction": (
        {"backbones", "detres.config", "detres.console", "detres.files", "detres.runs"}
        | {"detres.user_files", f"{C}.config", f"{D}.config", f"{D}.localisation.config"},
        set(),
    ),
    "detres.reproduction.tables": (set(), set()),  # light
    "detres.cli": (  # what is light, so that arguments are read at once
        {"detres", "detres.console", "detres.user_files"}
        | {"detres.runs.place", "detres.runs.resumable"}
        | {f"{D}.choices", f"{D}.duration", f"{D}.published", "detres.reproduction.tables"},
        set(),
    ),
    "detres.commands": (
        SHARED
        | {D, C, "detres.benchmarks", "detres.predictors", "detres.report", "detres.reproduction"}
        | {"detres.cli.flags", "detres.cli.paths", "detres.cli.proposal_flags"}
        | {"detres.settings_table"},
        BASE | {"matplotlib"},
    ),
    "detres.__main__": ({"detres.cli"}, set()),
    "detres": (set(), set()),  # the Python API: its names are imported when asked for
}


def part_of(module: str) -> str:
    """The part a module belongs to: the longest name in RULES that it is, or is below of."""
    names = module.split(".")
    wholes = [".".join(names[:length]) for length in range(len(names), 0, -1)]
    return next((whole for whole in wholes if whole in RULES and whole != "detres"), names[0])


def allowed(module: str, parts: set[str]) -> bool:
    """Whether `module` is one of `parts` or below one; "detres" stands for itself alone."""
    return any(
        module == part or (part != "detres" and module.startswith(f"{part}.")) for part in parts
    )


def imports_of(source: str) -> list[tuple[str, bool]]:
    """(module, whether inside a function) of every import; those for type checkers alone count too.

    Of `from package import name` where name is a module, the module.
    """
    found = []

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                found.append((whole if whole in MODULES else module, inside))
        inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), False)
    return list(dict.fromkeys(found))


def violations(part: str, source: str) -> list[str]:
    project, packages = RULES[part]
    wrong = []
    for module, inside in imports_of(source):
        if inside:
            wrong.append(f"{module} inside a function")
        top = module.split(".")[0]
        if top in ("backbones", "detres"):
            if not allowed(module, project | ({part} if part != "detres" else set())):
                wrong.append(module)
        elif top not in packages and top not in sys.stdlib_module_names:
            wrong.append(module)
    return wrong


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("backbones", "detres")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


@pytest.mark.parametrize("module", list(MODULES))
def test_imports_keep_to_the_rules(module):
    assert violations(part_of(module), MODULES[module].read_text(encoding="utf-8")) == []


def test_every_rule_is_of_a_part_that_is_there():
    assert {part_of(module) for module in MODULES if "." in module or module == "backbones"} | {
        "detres"
    } >= set(RULES)


def test_nothing_imports_in_a_circle():
    depends = {
        module: {
            name
            for name, _ in imports_of(path.read_text(encoding="utf-8"))
            if name in MODULES and name != module
        }
        for module, path in MODULES.items()
    }
    while depends:
        free = [module for module, needs in depends.items() if not needs & set(depends)]
        assert free, f"circle among {sorted(depends)}"
        for module in free:
            del depends[module]


@pytest.mark.parametrize(
    ("part", "source", "expected"),
    [
        ("backbones", "from detres.boxes import nms", ["detres.boxes"]),
        ("backbones", "import numpy", ["numpy"]),
        (f"{D}.data", f"from {D}.models.rpn import RPN", [f"{D}.models.rpn"]),
        (f"{D}.data", "from detres.engine.batches import make_loader", ["detres.engine.batches"]),
        (f"{D}.evaluation", "from detres.runs import folder", ["detres.runs.folder"]),
        (f"{D}.models", "from detres.images.decode import read_image", ["detres.images.decode"]),
        (f"{D}.models", "import backbones.resnet, os", []),
        (f"{D}.inference", f"from {D}.data.coco import read_coco", [f"{D}.data.coco"]),
        (f"{D}.build", f"from {C}.model import ClassificationModel", [f"{C}.model"]),
        (C, f"from {D}.data.voc import read_voc", [f"{D}.data.voc"]),
        (C, f"from {D}.data.shapes import ensure_shapes", []),
        (C, "import detres", ["detres"]),
        ("detres.engine", "from detres.cli import train_det", ["detres.cli.train_det"]),
        ("detres.runs", f"from {D}.config import DetectionConfig", [f"{D}.config"]),
        ("detres.benchmarks", "from detres.cli.flags import say", ["detres.cli.flags"]),
        ("detres.cli", "from detres.commands.ending import HINTS", ["detres.commands.ending"]),
        ("detres.cli", "from detres.runs.folder import STATE", ["detres.runs.folder"]),
        ("detres.cli", "import numpy", ["numpy"]),
        ("detres.cli", "from detres.detection.choices import SPLITS", []),
        ("detres.boxes", "def f():\n    import math", ["math inside a function"]),
    ],
)
def test_the_checker_sees_what_is_forbidden(part, source, expected):
    assert violations(part, source) == expected


# ---- the tree of docs/architecture.md ----


def tree_of(text: str) -> set[str]:
    """The files that a drawn tree names: a folder is a name with a slash, deeper ones further in;
    behind it, and in lines of their own below, `name` stands for name.py until two spaces or a
    bracket begin a remark.
    """
    files: set[str] = set()
    folders: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = re.match(r"( *)([\w.]+/)? *(.*)", line)
        indent, folder, rest = len(match[1]), match[2], match[3]
        if folder:
            folders = [(depth, name) for depth, name in folders if depth < indent]
            folders.append((indent, folder))
        path = "".join(name for _, name in folders)
        names = re.split(r"  |\(|:", rest)[0]
        files |= {f"{path}{name}.py" for name in re.findall(r"\w+", names)}
    return files


TREE = re.search(
    r"```\n(.*?)```", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.DOTALL
)[1]


def test_the_tree_names_every_module_and_no_other():
    """By equality: a module without its place in the tree fails, and a place without one."""
    files = {
        str(path.relative_to(ROOT))
        for folder in ("backbones", "detres", "tools")
        for path in (ROOT / folder).rglob("*.py")
        if path.stem not in ("__init__", "__main__")
    }
    assert tree_of(TREE) == files


def test_tests_mirror_the_tree():
    folders = {
        path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")
    }
    source = {path.parent.relative_to(ROOT / "detres") for path in (ROOT / "detres").rglob("*.py")}
    assert folders <= source | {Path("backbones")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/  b, c  what they are", {"a/b.py", "a/c.py"}),
        ("a/  b\n  d/  e (f), no\n  g/  h", {"a/b.py", "a/d/e.py", "a/g/h.py"}),
        ("a/\n  b/  c: d\nx/  y", {"a/b/c.py", "x/y.py"}),
        ("a/  b,\n    c", {"a/b.py", "a/c.py"}),
    ],
)
def test_the_tree_is_read_as_it_is_drawn(text, expected):
    assert tree_of(text) == expected

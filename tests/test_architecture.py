"""Who may import whom, read from the imports themselves."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEAVES = {"detres.boxes", "detres.structures", "detres.image_io", "detres.draw"}
"""Modules that know of no other part; any part may import them."""

RULES = {  # part -> (parts of the project it may import, packages beyond the standard library)
    "backbones": (set(), {"torch", "safetensors"}),
    "detres.boxes": (set(), {"torch", "torchvision", "numpy"}),
    "detres.structures": (set(), {"torch", "numpy"}),
    "detres.image_io": ({"detres.structures"}, {"torch", "numpy", "cv2", "PIL"}),
    "detres.draw": (set(), {"numpy", "cv2", "matplotlib"}),
    "detres.config": (set(), {"pydantic", "yaml"}),
    "detres.cls_config": ({"detres.config"}, {"pydantic"}),
    "detres.models": (LEAVES | {"backbones"}, {"torch", "torchvision", "numpy"}),
    "detres.data": (
        LEAVES,
        {"torch", "torchvision", "numpy", "cv2", "albumentations", "defusedxml", "fsspec"},
    ),
    "detres.evaluation": (LEAVES, {"torch", "numpy", "pycocotools", "tqdm"}),
    "detres.engine": (
        {"detres.structures"},
        {"torch", "torchvision", "numpy", "cv2", "safetensors", "tqdm"},
    ),
    "detres.build": (
        LEAVES
        | {
            "backbones",
            "detres.config",
            "detres.models",
            "detres.data",
            "detres.evaluation",
            "detres.engine",
        },
        {"torch"},
    ),
    "detres.build_classifier": (
        LEAVES
        | {
            "backbones",
            "detres.config",
            "detres.cls_config",
            "detres.models",
            "detres.data",
            "detres.evaluation",
            "detres.engine",
        }
        | {"detres.build"},
        {"torch", "torchvision", "numpy"},
    ),
}


def part_of(module: str) -> str:
    """The part a module belongs to: backbones, detres.models, detres.boxes, ..."""
    return (
        "backbones"
        if module.split(".", maxsplit=1)[0] == "backbones"
        else ".".join(module.split(".")[:2])
    )


def imports_of(source: str) -> list[tuple[str, bool]]:
    """(module, whether inside a function) of every import; those for type checkers alone
    count too.
    """
    found = []

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.append((node.module or "", inside))
        inside = inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(source), False)
    return found


def violations(part: str, source: str) -> list[str]:
    project, packages = RULES[part]
    wrong = []
    for module, inside in imports_of(source):
        if inside:
            wrong.append(f"{module} inside a function")
        top = module.split(".")[0]
        if top in ("backbones", "detres"):
            if part_of(module) not in project | {part}:
                wrong.append(module)
        elif top not in packages and top not in sys.stdlib_module_names:
            wrong.append(module)
    return wrong


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("backbones", "detres")
    for path in sorted((ROOT / folder).rglob("*.py"))
}


@pytest.mark.parametrize("module", [module for module in MODULES if module != "detres"])
def test_imports_keep_to_the_rules(module):
    assert violations(part_of(module), MODULES[module].read_text(encoding="utf-8")) == []


def test_every_part_has_a_rule():
    assert {part_of(module) for module in MODULES} - {"detres"} == set(RULES)


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
        ("detres.data", "from detres.models.rpn import RPN", ["detres.models.rpn"]),
        ("detres.engine", "from detres.tools import train_det", ["detres.tools"]),
        ("detres.boxes", "def f():\n    import math", ["math inside a function"]),
        ("detres.models", "import backbones.resnet, os", []),
    ],
)
def test_the_checker_sees_what_is_forbidden(part, source, expected):
    assert violations(part, source) == expected

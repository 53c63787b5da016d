"""The names of the settings, read from the source of the Sections that define them: to import these
takes seconds.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_SOURCES = (
    *("network.py", "runs/settings.py", "classification/config.py"),
    *("detection/config.py", "detection/localisation/config.py"),
)
"""Where Sections are defined, each by a name of its own."""


def keys_of(*sections: str) -> list[str]:
    """Return the keys of Sections at every depth, each once, as --set takes them: of
    "DetectionConfig" seed, data.root, model.rpn.width and so on; none where there is no source.
    """
    try:
        modules = [ast.parse((_PACKAGE / source).read_bytes()) for source in _SOURCES]
    except OSError:
        return []
    classes = {
        node.name: node for module in modules for node in module.body if type(node) is ast.ClassDef
    }
    return list(dict.fromkeys(key for section in sections for key in _keys(classes, section)))


def _keys(classes: Mapping[str, ast.ClassDef], section: str) -> list[str]:
    keys = []
    for name, annotation in _fields(classes, section).items():
        inner = annotation.id if isinstance(annotation, ast.Name) else None
        if inner in classes:
            keys += [f"{name}.{key}" for key in _keys(classes, inner)]
        else:
            keys.append(name)
    return keys


def _fields(classes: Mapping[str, ast.ClassDef], section: str) -> dict[str, ast.expr]:
    """Field -> its annotation, those that are inherited first."""
    fields: dict[str, ast.expr] = {}
    for base in classes[section].bases:
        if isinstance(base, ast.Name) and base.id in classes:
            fields |= _fields(classes, base.id)
    for node in classes[section].body:
        if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
            fields[node.target.id] = node.annotation
    return fields

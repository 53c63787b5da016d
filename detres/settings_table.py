"""Every key of a configuration with what it takes, its default and what it means: read from the
Sections themselves and the comments beside their fields.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import tokenize
from dataclasses import dataclass

from detres.config import Section

_LARGEST_SAID = 10**6
"""A bound beyond it guards against nonsense and tells a reader nothing."""


@dataclass(frozen=True)
class Setting:
    """One key.

    key: dotted, as --set takes it. takes: what values, in words. default: as YAML writes it, None
    where a value is required. meaning: what stands beside it in the source, "" for nothing.
    """

    key: str
    takes: str
    default: str | None
    meaning: str

    @property
    def required(self) -> bool:
        """Whether a configuration must give it."""
        return self.default is None


def settings_of(section: type[Section], at: str = "") -> list[Setting]:
    """Return the settings of `section` at every depth, in the order of their definition.

    at: what stands before each key, such as "train.".
    """
    properties = section.model_json_schema()["properties"]
    meanings, found = _meanings(section), []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            found += settings_of(inner, f"{at}{name}.")
            continue
        default = None if field.is_required() else _as_yaml(field.default)
        takes = _in_words(properties[name])
        found.append(Setting(f"{at}{name}", takes, default, meanings.get(name, "")))
    return found


def _as_yaml(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        return f"[{', '.join(_as_yaml(item) for item in value)}]"
    return value if isinstance(value, str) else json.dumps(value)


def _in_words(schema: dict) -> str:
    """What a JSON schema admits."""
    if "anyOf" in schema:
        return " | ".join(_in_words(option) for option in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return " | ".join(schema.get("enum", [schema.get("const")]))
    if schema["type"] == "array":
        if "prefixItems" in schema:
            return f"[{', '.join(_in_words(item) for item in schema['prefixItems'])}]"
        return f"list of {_in_words(schema['items'])}"
    words = {"boolean": "true | false", "string": "text", "number": "number", "null": "null"}
    return words.get(schema["type"], schema["type"]) + _bounds(schema)


def _bounds(schema: dict) -> str:
    least, most = schema.get("minimum"), schema.get("maximum")
    most = most if most is not None and most <= _LARGEST_SAID else None
    if least is not None and most is not None:
        return f" {least:g}..{most:g}"
    signs = {
        ">=": least,
        ">": schema.get("exclusiveMinimum"),
        "<=": most,
        "<": schema.get("exclusiveMaximum"),
    }
    said = [f" {sign} {bound:g}" for sign, bound in signs.items() if bound is not None]
    return ",".join(said)


def _meanings(section: type[Section]) -> dict[str, str]:
    """The comment of every field that has one: that of the class nearest to `section`."""
    found: dict[str, str] = {}
    for owner in section.__mro__:
        if owner is Section:
            break
        found = _comments(inspect.getsource(owner)) | found
    return found


def _comments(source: str) -> dict[str, str]:
    """Field -> the comment lines right above it, and the one at its end behind a semicolon."""
    comments, alone = {}, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
            if not token.line[: token.start[1]].strip():
                alone.add(token.start[0])
    found = {}
    for node in ast.parse(source).body[0].body:
        if not isinstance(node, ast.AnnAssign):
            continue
        first = node.lineno
        while first - 1 in alone:
            first -= 1
        above = " ".join(comments[line] for line in range(first, node.lineno))
        if text := "; ".join(part for part in (above, comments.get(node.end_lineno)) if part):
            found[node.target.id] = text
    return found

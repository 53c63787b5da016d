"""Typed, frozen, strict configuration: YAML file + `--set key=value` -> a checked Section.

The machinery only: the settings themselves are Sections elsewhere. Every key is checked at every
depth; nothing is inherited between files. A default is the paper's value where the paper has one,
else py-faster-rcnn's; the comment beside it says where from. A YAML file states only what differs.
"""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Triple = tuple[float, float, float]
RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names file, key and what was expected."""


class Section(BaseModel):
    """A part of a configuration: its fields are the keys, their types and defaults what is checked.

    renamed: earlier name of a key -> the name it has now; the earlier one is still read.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )
    renamed: ClassVar[dict[str, str]] = {}


AnySection = TypeVar("AnySection", bound=Section)
Notice = Callable[[str], None]


def load_config(
    path: str | Path,
    kind: type[AnySection],
    overrides: Sequence[str] = (),
    *,
    notice: Notice = lambda _: None,
) -> AnySection:
    """Read a YAML file, apply `key.sub=value` overrides (values are YAML too) and check everything.

    kind: what the file describes, a DetectionConfig or a ClassificationConfig. notice: called with
    a line for every key that is given by an earlier name.

    Raises ConfigError naming the file and the key: not YAML, a duplicate key, an unknown key (with
    the nearest valid one), a wrong type, an impossible pair; FileNotFoundError when there is no
    such file.
    """
    tree = read_tree(path)
    _rename(kind, tree, str(path), notice)
    for override in overrides:
        _apply(kind, tree, override, notice)
    return check(kind, tree, f"{path}" + (" with --set" if overrides else ""))


def read_tree(path: str | Path) -> dict:
    """Return a YAML file as it stands, a mapping; raises as `load_config` does, but for unknown
    keys and wrong values.
    """
    path = Path(path)
    if not path.is_file():
        known = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, known, n=1)
        hint = f"; did you mean {path.with_name(near[0])}?" if near else ""
        raise FileNotFoundError(f"no config file {path}{hint}")
    tree = _parse(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: expected a mapping of sections (name, data, model, train, eval), got "
            f"{type(tree).__name__}"
        )
    return tree


def with_overrides(
    config: AnySection, overrides: Sequence[str], source: str, *, notice: Notice = lambda _: None
) -> AnySection:
    """Return `config` with `key.sub=value` overrides applied and everything checked again.

    notice: see load_config. Raises ConfigError naming `source`.
    """
    tree = json.loads(config.model_dump_json())
    for override in overrides:
        _apply(type(config), tree, override, notice)
    return check(type(config), tree, f"{source} with --set")


def check(section: type[AnySection], tree: dict, source: str) -> AnySection:
    """Return `section` built from a plain mapping, in which keys may have their earlier names.

    Raises ConfigError naming `source` and every key at fault.
    """
    tree = copy.deepcopy(tree)
    _rename(section, tree, source, lambda _: None)
    try:
        # JSON mode takes lists for tuples and is strict about the rest: no "12" for 12, no true
        # for 1.
        return section.model_validate_json(json.dumps(tree), strict=True)
    except ValidationError as error:
        by_key = {
            tuple(part for part in e["loc"] if part not in _UNION_TAGS): e for e in error.errors()
        }
        lines = [_explain(section, e, source) for e in by_key.values()]
        raise ConfigError("\n".join(lines)) from None
    except TypeError as error:
        raise ConfigError(f"{source}: {error}") from None


def to_yaml(config: Section) -> str:
    """Return the fully resolved configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(json.loads(config.model_dump_json()), sort_keys=False)


def what_differs(config: Section) -> str:
    """Return as YAML the settings that are not the defaults."""
    return yaml.safe_dump(
        json.loads(config.model_dump_json(exclude_defaults=True)),
        sort_keys=False,
        default_flow_style=None,
        width=120,
    )


def _rename(section: type[Section], tree: dict, source: str, notice: Notice, at: str = "") -> None:
    """Give keys of `tree`, in place, the names they have now."""
    for earlier, now in section.renamed.items():
        if earlier not in tree:
            continue
        if now in tree:
            raise ConfigError(
                f"{source}: '{at}{earlier}' is the earlier name of '{at}{now}', and both are given"
            )
        notice(f"{source}: '{at}{earlier}' is now called '{at}{now}'")
        tree[now] = tree.pop(earlier)
    for name, child in _subsections(section).items():
        if isinstance(tree.get(name), dict):
            _rename(child, tree[name], source, notice, f"{at}{name}.")


def _renamed_key(section: type[Section], keys: list[str]) -> list[str]:
    """The names that the keys of a dotted path have now."""
    renamed = []
    for key in keys:
        key = section.renamed.get(key, key) if section is not None else key
        section = _subsections(section).get(key) if section is not None else None
        renamed.append(key)
    return renamed


def _subsections(section: type[Section]) -> dict[str, type[Section]]:
    return {
        name: field.annotation
        for name, field in section.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
    }


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses duplicate keys and reads 1e-4 as a number."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict:
    loader.flatten_mapping(node)
    seen: dict = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(
                None, None, f"key {key!r} is not a name", key_node.start_mark
            )
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"key '{key}' is given twice", key_node.start_mark
            )
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    # YAML 1.1 wants a dot in a float, so it takes 1e-4 for a string.
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _parse(text: str, source: str) -> object:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(f"{where}: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {error}") from None


def _apply(section: type[Section], tree: dict, override: str, notice: Notice) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"--set {override}: expected key=value, for example --set train.lr=0.01")
    given = key.strip().split(".")
    *parents, last = _renamed_key(section, given)
    if [*parents, last] != given:
        notice(f"--set {override}: this is now called {'.'.join([*parents, last])}")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: {parent} is a value, not a section")
    try:
        node[last] = _parse(value, f"--set {override}")
    except ConfigError:
        if not value.startswith(("*", "{")):
            raise
        node[last] = value  # a pattern such as *.tar or {00..10}.tar, which is no YAML
    _rename(section, tree, f"--set {override}", notice)  # also inside a mapping given as value


_UNION_TAGS = ("bool", "literal['auto']")
"""What pydantic puts into the location of an error in a setting of two types, one error a type."""


def _explain(section: type[Section], error: dict, source: str) -> str:
    location = [part for part in error["loc"] if isinstance(part, str) and part not in _UNION_TAGS]
    key = (
        ".".join(str(part) for part in error["loc"] if part not in _UNION_TAGS) or section.__name__
    )
    if error["type"] == "extra_forbidden":
        valid = _keys_beside(section, location)
        near = [
            ".".join([*location[:-1], name])
            for name in difflib.get_close_matches(location[-1], valid, n=1)
        ]
        near = near or [
            path for path in _all_keys(section) if path.rpartition(".")[2] == location[-1]
        ]
        hint = f"did you mean '{near[0]}'?" if near else f"valid keys are: {', '.join(valid)}"
        return f"{source}: unknown key '{key}'; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in ("value_error", "missing"):
        return f"{source}: {key}: {message}"
    return f"{source}: {key}: {message}, got {error['input']!r}"


def _all_keys(section: type[Section]) -> list[str]:
    """Every key at every depth, dotted, the shallow ones first."""
    inside = [
        f"{name}.{key}" for name, child in _subsections(section).items() for key in _all_keys(child)
    ]
    return [*section.model_fields, *sorted(inside, key=lambda key: key.count("."))]


def _keys_beside(section: type[Section], location: list[str]) -> list[str]:
    for part in location[:-1]:
        section = section.model_fields[part].annotation
    return list(section.model_fields)

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
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from detres.console import one_line, shortened, shown
from detres.user_files import TextError, expanded, read_text, require_file

_LARGEST = 2**63 - 1
Positive = Annotated[int, Field(ge=1, le=_LARGEST)]
Count = Annotated[int, Field(ge=0, le=_LARGEST)]
Fraction = Annotated[float, Field(ge=0, le=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Triple = tuple[float, float, float]
RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
UserPath = Annotated[str, AfterValidator(expanded)]
"""A path as a user writes it: ~ at its beginning is the home folder."""

_MOST_BYTES = 4 << 20
_MOST_VALUES = 100_000
"""Of a YAML file, aliases written out: more than any configuration has, read in a second."""

_DEEPEST = 50
_MOST_FAULTS = 3
_LONGEST_FAULT = 1000
"""Characters of a line of a message."""


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

    @classmethod
    def overridden(cls, settings: dict, given: set[str], earlier: dict) -> dict:  # noqa: ARG003
        """Return the settings of this section that take the place of others once the keys `given`
        were overridden; none, unless a section says that its keys displace each other.

        settings: all of the section, as plain values that are not checked yet. earlier: the same
        before.
        """
        return {}


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
    return config_of(_read(path), kind, overrides, str(path), notice=notice)


def config_of(
    tree: dict,
    kind: type[AnySection],
    overrides: Sequence[str],
    source: str,
    *,
    notice: Notice = lambda _: None,
) -> AnySection:
    """Return what a mapping describes, `key.sub=value` overrides applied; `tree` is changed.

    source: where it is from, for messages. Raises ConfigError as `load_config` does.
    """
    _rename(kind, tree, source, notice)
    _apply_all(kind, tree, overrides, notice)
    return check(kind, tree, source + (" with --set" if overrides else ""))


def given_settings(kind: type[Section], overrides: Sequence[str]) -> dict[str, object]:
    """Return what `key.sub=value` overrides give, by whole key, the names they have now; values are
    plain, not yet checked. Raises ConfigError for one that is no such thing.
    """
    tree: dict = {}
    for override in overrides:
        _apply(kind, tree, override, lambda _: None)
    return by_key(_settled(tree, kind))


def nested(settings: Iterable[tuple[str, object]]) -> dict:
    """Return settings (whole key, such as train.lr; value) as nested mappings, a later one in place
    of an earlier; a value that is a mapping is joined with what its section has.
    """
    tree: dict = {}
    for key, value in settings:
        *parents, last = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        if isinstance(value, dict):
            node.setdefault(last, {}).update(value)
        else:
            node[last] = value
    return tree


def in_yaml(value: object) -> str:
    """Return a plain value as YAML has it in one line, which --set reads back."""
    text = yaml.safe_dump(
        value, default_flow_style=True, width=2**31, allow_unicode=True, sort_keys=False
    )
    return text.strip().removesuffix("\n...")


def read_tree(path: str | Path) -> dict:
    """Return a YAML file as it stands, a mapping; raises as `load_config` does, but for unknown
    keys and wrong values.
    """
    return _settled(_read(path))


def read_texts(path: str | Path, what: str) -> dict:
    """Return a YAML file of another program's, a mapping, whose keys may be numbers; every scalar
    is text, as it is written, but null and nothing, which are None.

    what: it is, for messages. Raises ConfigError naming file and line, FileNotFoundError where
    there is no such file.
    """
    require_file(path, what)
    _require_small(Path(path))
    try:
        tree = _parse(read_text(path, what), str(path), numbered=True)
    except TextError as error:
        raise ConfigError(str(error)) from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected a mapping, got {type(tree).__name__}")
    return _as_texts(tree)


def _as_texts(tree: object) -> object:
    if isinstance(tree, dict):
        return {key: _as_texts(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_as_texts(value) for value in tree]
    if isinstance(tree, _Plain):
        return None if tree.value is None else tree.text
    return tree


def _require_small(path: Path) -> None:
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise ConfigError(
            f"{path} has {size} bytes, a configuration at most {_MOST_BYTES}: it is another file"
        )


def _read(path: str | Path) -> dict:
    """A YAML file as a mapping, its plain scalars open."""
    path = Path(path)
    if not path.exists() and not path.is_symlink():
        known = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, known, n=1)
        hint = f"; did you mean {path.with_name(near[0])}?" if near else ""
        raise FileNotFoundError(f"no config file {path}{hint}")
    require_file(path, "config file")
    _require_small(path)
    try:
        text = read_text(path, "config file")
    except TextError as error:
        raise ConfigError(str(error)) from None
    tree = _parse(text, str(path))
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
    _apply_all(type(config), tree, overrides, notice)
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
        return section.model_validate_json(json.dumps(_settled(tree, section)), strict=True)
    except ValidationError as error:
        lines = [
            shortened(one_line(_explain(section, each, source)), _LONGEST_FAULT)
            for each in _one_a_key(error)
        ]
        if len(lines) > _MOST_FAULTS:
            more = len(lines) - (_MOST_FAULTS - 1)
            lines[_MOST_FAULTS - 1 :] = [f"{source}: and {more} more such errors"]
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


def by_key(tree: dict, at: str = "") -> dict[str, object]:
    """Return the settings in nested mappings by their whole keys, such as train.lr."""
    flat: dict[str, object] = {}
    for name, value in tree.items():
        one = {f"{at}{name}": value}
        flat |= by_key(value, f"{at}{name}.") if isinstance(value, dict) else one
    return flat


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


class _Resolver(yaml.SafeLoader):
    """Composes YAML nodes; what a plain scalar is, its form decides: as in YAML 1.2, 0012 is twelve
    and a date is text, and as in YAML 1.1 yes, no, on and off are booleans. 1e-4 is a number.
    """

    yaml_implicit_resolvers: ClassVar[dict] = {}


_KINDS = {
    "null": (re.compile(r"~|null|Null|NULL|"), lambda text: None),  # noqa: ARG005
    "bool": (
        re.compile(r"yes|no|true|false|on|off", re.IGNORECASE),
        lambda text: text.lower() in ("yes", "true", "on"),
    ),
    "int": (re.compile(r"[-+]?[0-9][0-9_]{0,400}"), lambda text: int(text.replace("_", ""))),
    "float": (
        re.compile(r"[-+]?([0-9][0-9_]*)?(\.[0-9_]*)?([eE][-+]?[0-9]+)?"),
        lambda text: float(text.replace("_", "")),
    ),
    "not finite": (
        re.compile(r"([-+]?)\.(inf|nan)", re.IGNORECASE),
        lambda text: float(text.replace(".", "")),
    ),
}
"""Kind of plain scalar -> its form, and what makes a value of its text."""


@dataclass(frozen=True)
class _Plain:
    """A scalar written without quotes: its text, and the value that its form makes of it; which of
    them is meant, the type of the field decides.
    """

    text: str
    value: object


def _plain(text: str) -> str | _Plain:
    for form, value_of in _KINDS.values():
        if form.fullmatch(text):
            try:
                return _Plain(text, value_of(text))
            except ValueError:  # a dot or a sign alone
                return text
    return text


class _Builder:
    """Makes plain containers of YAML nodes, duplicate keys and other tags than YAML's own refused.

    Counts what it makes: aliases of aliases write a file of 1 kB out to gigabytes. numbered:
    whether a key may be a number, which is then text too.
    """

    def __init__(self, *, numbered: bool = False) -> None:
        self.left, self.numbered = _MOST_VALUES, numbered

    def build(self, node: yaml.Node, depth: int = 0) -> object:
        self.left -= 1
        if self.left < 0:
            raise _problem(node, f"more than {_MOST_VALUES} values, aliases written out")
        if depth > _DEEPEST:
            raise _problem(node, f"nested more than {_DEEPEST} deep")
        tag = node.tag.removeprefix("tag:yaml.org,2002:")
        if isinstance(node, yaml.ScalarNode) and tag == "str":
            return _plain(node.value) if node.style is None else node.value
        if isinstance(node, yaml.SequenceNode) and tag == "seq":
            return [self.build(item, depth + 1) for item in node.value]
        if isinstance(node, yaml.MappingNode) and tag == "map":
            return self._mapping(node, depth)
        raise _problem(node, f"could not determine a constructor for the tag {node.tag!r}")

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict:
        own, merged = {}, {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else "a list or mapping"
            plain = isinstance(key_node, yaml.ScalarNode) and key_node.style is None
            if not isinstance(key_node, yaml.ScalarNode) or (
                plain and isinstance(_plain(key), _Plain) and not self.numbered
            ):
                raise _problem(key_node, f"key {key} is not a name")
            value = self.build(value_node, depth + 1)
            if key == "<<" and plain:
                for part in reversed(value if isinstance(value, list) else [value]):
                    if not isinstance(part, dict):
                        raise _problem(value_node, "<< takes a mapping")
                    merged |= part
            elif key in own:
                raise _problem(key_node, f"key '{key}' is given twice")
            else:
                own[key] = value
        return merged | own


def _problem(node: yaml.Node, what: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=node.start_mark)


def _parse(text: str, source: str, *, numbered: bool = False) -> object:
    """The document as containers of text and _Plain scalars."""
    try:
        node = yaml.compose(text, Loader=_Resolver)
        return None if node is None else _Builder(numbered=numbered).build(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        goes_on = error.problem.startswith("but") and error.context
        what = f"{error.context}, {error.problem}" if goes_on else error.problem
        raise ConfigError(f"{where}: {shortened(one_line(what), _LONGEST_FAULT)}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {shown(str(error))}") from None
    except RecursionError:
        raise ConfigError(f"{source}: nested more than {_DEEPEST} deep") from None


def _settled(tree: object, wanted: object = None) -> object:
    """`tree` with plain scalars as `wanted`, the type of the field or a Section, asks for: their
    text where it takes text alone, their value elsewhere.
    """
    options = _options(wanted)
    if _stands_for_a_list(tree, options):
        tree = [tree]
    if isinstance(tree, _Plain):
        kinds = [option for option in options if option is not type(None)]
        text = bool(kinds) and all(_is_text(kind) for kind in kinds)
        nothing = tree.value is None and type(None) in options
        return tree.text if text and not nothing else tree.value
    if isinstance(tree, list):
        items = _item_types(options, len(tree))
        return [_settled(item, kind) for item, kind in zip(tree, items, strict=True)]
    if isinstance(tree, dict):
        section = isinstance(wanted, type) and issubclass(wanted, Section)
        fields = wanted.model_fields if section else {}
        return {
            key: _settled(value, fields[key].annotation if key in fields else None)
            for key, value in tree.items()
        }
    return tree


def _stands_for_a_list(tree: object, options: list[object]) -> bool:
    """Whether one value is given where a list of any length belongs and nothing else does; of
    mappings there must be a list.
    """
    value = tree.value if isinstance(tree, _Plain) else tree
    kinds = [option for option in options if option is not type(None)]
    lists = [kind for kind in kinds if get_origin(kind) is tuple and get_args(kind)[1:] == (...,)]
    if any(isinstance(get_args(kind)[0], type(Section)) for kind in lists):
        return False
    return value is not None and not isinstance(value, list | tuple | dict) and kinds == lists != []


def _options(wanted: object) -> list[object]:
    """The types that a field of type `wanted` takes."""
    if get_origin(wanted) is Annotated:
        return _options(get_args(wanted)[0])
    if get_origin(wanted) in (Union, types.UnionType):
        return [option for part in get_args(wanted) for option in _options(part)]
    return [] if wanted is None else [wanted]


def _is_text(kind: object) -> bool:
    """Whether a type takes text alone."""
    words = get_args(kind) if get_origin(kind) is Literal else ()
    return kind is str or (bool(words) and all(isinstance(word, str) for word in words))


def _item_types(options: list[object], number: int) -> list[object]:
    """The types of the items of a list of that length, None where they are unknown."""
    inside = next((get_args(kind) for kind in options if get_origin(kind) is tuple), ())
    if inside[1:] == (...,):
        return [inside[0]] * number
    return [*inside, *[None] * number][:number]


def _apply_all(
    section: type[Section], tree: dict, overrides: Sequence[str], notice: Notice
) -> None:
    """Put overrides into `tree`, in place, and what they displace out of it."""
    before = copy.deepcopy(tree)
    given = {_apply(section, tree, override, notice) for override in overrides}
    for at in {key[:-1] for key in given}:
        part, settings, earlier = section, tree, before
        for name in at:
            part = _subsections(part).get(name) if part is not None else None
            settings = settings[name]
            earlier = earlier.get(name) if isinstance(earlier, dict) else None
        if part is not None:
            keys = {key[-1] for key in given if key[:-1] == at}
            earlier = _settled(earlier, part) if isinstance(earlier, dict) else {}
            displaced = part.overridden(_settled(settings, part), keys, earlier)
            settings.update(displaced)
            for name, value in displaced.items():
                if value:
                    notice(f"with --set, {'.'.join([*at, name])} is now {shown(value)}")


def _apply(section: type[Section], tree: dict, override: str, notice: Notice) -> tuple[str, ...]:
    """Put an override into `tree`, in place; return its key, by the names it has now."""
    key, equals, value = override.partition("=")
    source = f"--set {shortened(override)}"
    if not equals or not key:
        raise ConfigError(f"{source}: expected key=value, for example --set train.lr=0.01")
    given = key.strip().split(".")
    if len(given) > _DEEPEST:
        raise ConfigError(f"{source}: nested more than {_DEEPEST} deep")
    *parents, last = _renamed_key(section, given)
    if [*parents, last] != given:
        notice(f"{source}: this is now called {'.'.join([*parents, last])}")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{source}: {shortened(parent)} is a value, not a section")
    try:
        node[last] = _parse(value, source)
    except ConfigError:
        if not value.startswith(("*", "{")):
            raise
        node[last] = value  # a pattern such as *.tar or {00..10}.tar, which is no YAML
    _rename(section, tree, source, notice)  # also inside a mapping given as value
    return (*parents, last)


_UNION_TAGS = ("bool", "constrained-int", "literal['auto']", "literal['auto','all']")
"""What pydantic puts into the location of an error in a setting of two types, one error a type."""


def _one_a_key(error: ValidationError) -> list[dict]:
    """The errors, those of a setting of two types as one that says what both take."""
    found: dict[tuple, dict] = {}
    for each in error.errors():
        key = tuple(part for part in each["loc"] if part not in _UNION_TAGS)
        before = f"{found[key]['msg']}, or " if key in found else ""
        own = each["msg"].removeprefix("Input should be ") if before else each["msg"]
        found[key] = {**each, "msg": f"{before}{own}"}
    return list(found.values())


def _explain(section: type[Section], error: dict, source: str) -> str:
    location = [part for part in error["loc"] if isinstance(part, str) and part not in _UNION_TAGS]
    key = ".".join(str(part) for part in error["loc"] if part not in _UNION_TAGS)
    where = f"{source}: {key}" if key else source  # without: several keys do not go together
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
        return f"{source}: unknown key '{shortened(key)}'; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] in ("value_error", "missing"):
        return f"{where}: {message}"
    is_whole = location == [part for part in error["loc"] if part not in _UNION_TAGS]
    null = ", or null" if is_whole and _may_be_null(section, location) else ""
    return f"{where}: {message}{null}, got {shown(error['input'])}"


def _may_be_null(section: type[Section], location: list[str]) -> bool:
    """Whether the setting at `location` may be None."""
    *parents, last = location or [""]
    for part in parents:
        section = _subsections(section).get(part, Section)
    field = section.model_fields.get(last)
    return field is not None and type(None) in get_args(field.annotation)


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

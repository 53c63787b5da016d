"""List the settings of a configuration: for a console, or as docs/settings.md."""

from __future__ import annotations

import argparse
import textwrap

from detres.classification.config import ClassificationConfig
from detres.cli.flags import say
from detres.detection.config import DetectionConfig
from detres.detection.localisation.config import LocalisationConfig
from detres.settings_table import Setting, settings_of

KINDS = {
    "train-det": DetectionConfig,
    "train-cls": ClassificationConfig,
    "train-loc": LocalisationConfig,
}
"""Command -> what configures it."""

_WIDTH = 100

_HEAD = """\
# Settings

Every key of a configuration file and of `--set KEY=VALUE`; `python tools/settings.py train.lr`
shows one. A configuration states only what differs from the defaults; an unknown key is an error
that names the nearest one. (Made by `python tools/settings.py --markdown` of the comments beside
the definitions.)
"""

_TITLES = {
    "train-det": "Detection: `train_det`",
    "train-cls": "Classification: `train_cls`",
    "train-loc": "Localisation: `train_loc`, where it differs from detection",
}


def show(arguments: argparse.Namespace) -> None:
    """Print the settings that were asked for."""
    if arguments.markdown:
        say(as_markdown().removesuffix("\n"))
        return
    settings = settings_of(KINDS[arguments.of])
    wanted = arguments.keys or [""]
    for setting in settings:
        if any(key in setting.key for key in wanted):
            say(in_lines(setting))


def in_lines(setting: Setting) -> str:
    """Return a setting as a console shows it: key, default and values, and its meaning below."""
    default = "required" if setting.required else f"default {setting.default}"
    meaning = textwrap.indent(textwrap.fill(setting.meaning, _WIDTH - 4), "    ")
    return f"{setting.key} {default}   ({setting.takes})\n{meaning}"


def as_markdown() -> str:
    """Return docs/settings.md."""
    parts, detection = [_HEAD], settings_of(DetectionConfig)
    for name, kind in KINDS.items():
        settings = settings_of(kind)
        if kind is LocalisationConfig:
            settings = [setting for setting in settings if setting not in detection]
        parts.append(f"## {_TITLES[name]}\n")
        sections: dict[str, list[Setting]] = {}
        for setting in settings:
            sections.setdefault(setting.key.rpartition(".")[0], []).append(setting)
        parts += [_table(section, of_section) for section, of_section in sections.items()]
    return "\n".join(parts)


def _table(section: str, settings: list[Setting]) -> str:
    head = ["| key | default | takes | meaning |", "|---|---|---|---|"]
    rows = [
        f"| `{one.key}` | {'required' if one.required else f'`{one.default}`'} | "
        f"{_cell(one.takes)} | {_cell(one.meaning)} |"
        for one in settings
    ]
    return "\n".join([*([f"### `{section}`\n"] if section else []), *head, *rows, ""])


def _cell(text: str) -> str:
    """Text as a cell of a table holds it."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")

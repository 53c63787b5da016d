"""Write data of any format that is read as COCO: `convert-data THEIR_FOLDER --out DIR`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from detres.cli.flags import say
from detres.commands.configured import require_settings_of
from detres.config import with_overrides
from detres.detection.config import DataConfig
from detres.detection.data.convert import write_coco
from detres.detection.data.read import read_all
from detres.detection.data.recognise import recognise


def convert(arguments: argparse.Namespace) -> None:
    """Recognise, read and write the data; raises what these raise, ValueError for an --out inside
    of the data.
    """
    require_settings_of(arguments, "data.")
    out = Path(arguments.out)
    found = recognise(arguments.data, format_of(arguments.set))
    say(f"data {found.data.root}: {found.kind}; {found.reason}")
    say(f"the same by hand: --set {shlex.join(found.settings())}")
    if out.resolve().is_relative_to(Path(found.data.root).resolve()):
        raise ValueError(f"--out {out} lies inside of the data; give a folder beside them")
    splits = read_all(overridden(found.data, arguments.set))
    for split, part in splits.items():
        say(f"{split:<5} {part.describe()}")
    num = sum(map(len, splits.values()))
    say(f"{'linking' if arguments.link else 'copying'} {num} images")
    write_coco(splits, out, link=arguments.link)
    say(f"written as COCO JSON: {out}")


def format_of(settings: list[str]) -> str | None:
    """Return what data.format is set to, None where it is not."""
    given = [
        setting.partition("=")[2] for setting in settings if setting.startswith("data.format=")
    ]
    return given[-1] if given else None


def overridden(data: DataConfig, settings: list[str]) -> DataConfig:
    """Return the configuration of recognised data with --set; raises ConfigError."""
    own = [setting.removeprefix("data.") for setting in settings]
    return with_overrides(data, own, "the data") if own else data

"""A pretrained backbone that is at hand: in the folder that the environment variable DETRES_WEIGHTS
names, or a published file that was downloaded before. Nothing is downloaded here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from backbones import PUBLISHED, RESNETS, WeightsError
from backbones.weights import FileFacts, facts_of_file, published_path
from detres.user_files import expanded, is_hidden

FOLDER = "DETRES_WEIGHTS"
"""The environment variable that names a folder of weights files."""

_SUFFIXES = (".safetensors", ".pth")

_COSTS = {"resnet18": 1.8, "resnet34": 3.6, "resnet50": 3.8, "resnet101": 7.6, "resnet152": 11.3}
"""10^9 multiply-adds an image of 224 px (paper, table 1)."""

_DEFAULTS = {"width": 1.0, "shortcut": "B", "pool1": "torch"}
"""Of what a file's settings do not have."""

_WANTED = {"cpu": "resnet18", "cuda": "resnet50"}
"""Of several files, the one whose cost is nearest to this network's is taken."""


@dataclass(frozen=True)
class Pretrained:
    """weights: a path, or a published name. facts: what is known of it. where: in words."""

    weights: str
    facts: FileFacts
    where: str


@dataclass(frozen=True)
class Search:
    """best: what was found, None: nothing that can be used. notes: what was there and is not used,
    and why, a line each.
    """

    best: Pretrained | None
    notes: tuple[str, ...] = ()


def find_pretrained(device_type: str, wanted: Mapping[str, object]) -> Search:
    """Return the backbone to start from, of those at hand whose traits and input are known: what
    the folder of DETRES_WEIGHTS has, else published files in the download cache; ImageNet's before
    one's own pretraining, then the one that suits the device.

    wanted: settings of a backbone, such as {"name": "resnet50"}, that it must have. Raises
    FileNotFoundError where DETRES_WEIGHTS names no folder.
    """
    found, notes = [], []
    places = [_in_folder(), _downloaded()]
    for place in places:
        for weights, path, where in place:
            reading = _usable(path, wanted)
            if isinstance(reading, FileFacts):
                found.append(Pretrained(weights, reading, where))
            elif reading is not None:
                notes.append(reading)
        if found:
            break
    suited = _COSTS[_WANTED.get(device_type, "resnet50")]
    found.sort(key=lambda one: (one.facts.ours, _distance(one.facts, suited), one.weights))
    return Search(found[0] if found else None, tuple(notes))


def given_weights(weights: str) -> Pretrained:
    """Return what is known of the weights that a user names: a file, or a published name, which is
    not looked for; raises WeightsError for a file that cannot be read.
    """
    if weights in PUBLISHED:
        entry = PUBLISHED[weights]
        settings = {"name": entry.architecture, **dict(entry.traits)}
        facts = FileFacts(entry.architecture, settings, entry.input_spec, ours=False)
    else:
        facts = facts_of_file(weights) or FileFacts("a network", {}, None, ours=False)
    return Pretrained(weights, facts, "as told")


def _in_folder() -> Iterator[tuple[str, Path, str]]:
    """(weights, path, where) of the files in the folder of DETRES_WEIGHTS."""
    given = os.environ.get(FOLDER)
    if not given:
        return
    folder = Path(expanded(given))
    if not folder.is_dir():
        raise FileNotFoundError(f"{FOLDER}: {folder} is not a folder; give one with weights files")
    for path in sorted(folder.iterdir()):
        if path.suffix in _SUFFIXES and path.is_file() and not is_hidden(path.name):
            yield str(path.absolute()), path, f"in the folder {FOLDER}"


def _downloaded() -> Iterator[tuple[str, Path, str]]:
    for name in PUBLISHED:
        if name.startswith("torchvision/") and published_path(name).is_file():
            yield name, published_path(name), "downloaded before"


def _usable(path: Path, wanted: Mapping[str, object]) -> FileFacts | str | None:
    """What is known of the network of a file; else why it is not used, None where it is simply
    another than is wanted.
    """
    try:
        facts = facts_of_file(path)
    except WeightsError as error:
        return f"not used: {str(error).splitlines()[0]}"
    if facts is None or facts.settings["name"] not in RESNETS:
        return None
    if facts.settings["name"] not in _COSTS or facts.settings.get("shortcut") == "none":
        return None
    if facts.input_spec is None:
        return (
            f"{path}: {facts.words}, not used: nothing in it says what input it expects; "
            f"model.backbone.weights={path} with model.input and the rest takes it"
        )
    own = {**_DEFAULTS, **facts.settings}
    if any(own.get(key, value) != value for key, value in wanted.items() if value is not None):
        return None
    return facts


def _distance(facts: FileFacts, suited: float) -> float:
    width = float(facts.settings.get("width", 1.0))
    return abs(math.log(_COSTS[str(facts.settings["name"])] * width**2 / suited))

"""What a training is configured by, and in what two configurations differ that matters."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path

from detres.classification.config import ClassificationConfig
from detres.config import Section, by_key, load_config
from detres.detection.config import DetectionConfig
from detres.detection.localisation.config import LocalisationConfig
from detres.reproduction.tables import NEUTRAL, Training
from detres.runs.folder import DETECTOR_WEIGHTS

KINDS = {
    "train-cls": ClassificationConfig,
    "train-det": DetectionConfig,
    "train-loc": LocalisationConfig,
}
"""Command -> what configures it."""

PROPOSALS = "model.rcnn.proposals"


def config_of(training: Training, configs: Path, settings: Sequence[str] = ()) -> Section:
    """Return the checked configuration of a run, out of the folder `configs`, with more settings;
    raises what load_config raises.
    """
    needed = "" if training.needs is None else f"{training.needs.name}/{DETECTOR_WEIGHTS}"
    given = [setting.replace("{needs}", needed) for setting in training.settings]
    path = configs / f"{training.config}.yaml"
    return load_config(path, KINDS[training.command], [*given, *settings])


def digest_of(training: Training, configs: Path) -> str:
    """Return 12 hexadecimal digits of all settings that matter and are not the defaults, so that
    settings which are new, and change nothing by default, leave it as it is.
    """
    config = config_of(training, configs)
    found = mattering(json.loads(config.model_dump_json(exclude_defaults=True)))
    if training.init_from is not None:
        found["--init-from"] = training.init_from.name
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:12]


def mattering(tree: dict) -> dict[str, object]:
    """Return of the settings in nested mappings those that can change a result, by key."""
    found = by_key(tree)
    if found.get(PROPOSALS) is not None:
        found[PROPOSALS] = run_name(found[PROPOSALS])
    return {key: value for key, value in found.items() if key not in NEUTRAL}


def differences(found: dict[str, object], wanted: dict[str, object]) -> list[str]:
    """Return in words the settings, by key, in which `found` is not as `wanted`; where "auto" is
    wanted, a run has what it came to.
    """
    return [
        f"{key} is {found.get(key)}, not {wanted.get(key)}"
        for key in sorted({*found, *wanted})
        if found.get(key) != wanted.get(key) and wanted.get(key) != "auto"
    ]


def run_name(weights: str | Path) -> str:
    """Return of which run these are the weights: runs/NAME-2/best.safetensors of NAME."""
    return re.sub(r"-\d+$", "", Path(weights).parent.name)

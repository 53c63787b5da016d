"""Files of numbers: what tools/eval.py writes beside them, so that it can be told later what they
are of.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from backbones.files import DIGEST, DamagedFileError, read_safetensors_metadata
from detres.config import Section
from detres.console import shown
from detres.reproduction.settings import differences, mattering
from detres.user_files import JsonError, read_json

OWN_IOU = 0.5


def weights_digest(path: str | Path) -> str | None:
    """Return the digest that a weights file of ours carries; None where it has none."""
    try:
        return read_safetensors_metadata(Path(path)).get(DIGEST)
    except (DamagedFileError, OSError):
        return None


def evaluated(
    weights: Iterable[str | Path], config: Section, *, split: str = "val", iou: float = OWN_IOU
) -> dict:
    """Return as plain values what was evaluated, and how: the digests of the weights, in their
    order, and the sections of the configuration that say it.

    iou: from which a detection is right, of the VOC protocols.
    """
    tree = json.loads(config.model_dump_json(include={"data", "eval"}))
    digests = [weights_digest(file) for file in weights]
    return {"weights": digests, "split": split, "iou": iou, **tree}


def fault_of(path: Path, weights: Sequence[Path], config: Section) -> str | None:
    """Return why the numbers in a file are not of these `weights`, evaluated by `config` on its
    val; None: they are. Raises JsonError naming the file.
    """
    found = _mapping(path).get("evaluated")
    if not isinstance(found, dict):
        return f"{path.name} does not say what was evaluated: write it anew"
    wanted = evaluated(weights, config)
    if None in wanted["weights"] or found.get("weights") != wanted["weights"]:
        return f"{path.name} is of other weights than are there now"
    for each in (found, wanted):
        del each["weights"]
    others = differences(mattering(found), mattering(wanted))
    return f"{path.name}: {'; '.join(others)}" if others else None


def numbers_of(path: Path, metrics: Iterable[str]) -> dict[str, float]:
    """Return those of `metrics` (or AP of classes) that a file has, as fractions; raises JsonError
    naming the file and what is none, or that none is there.
    """
    tree = _mapping(path)
    of_classes = tree.get("per_class")
    tree = {**(of_classes if isinstance(of_classes, dict) else {}), **tree}
    found = {name: tree[name] for name in metrics if tree.get(name) is not None}
    for name, value in found.items():
        if type(value) not in (int, float) or not 0 <= value <= 1:
            raise JsonError(f"{path}: {name} is {shown(value)}, expected a fraction")
    if not found:
        raise JsonError(f"{path} has none of {', '.join(metrics)}")
    return found


def _mapping(path: Path) -> dict:
    tree = read_json(path, "file of numbers")
    if not isinstance(tree, dict):
        raise JsonError(f"{path}: expected numbers by name, got a {type(tree).__name__}")
    return tree

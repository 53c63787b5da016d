"""The files and folders that flags name: one that is not there is said before any library is
imported, with what is there under a name like it.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Iterable
from pathlib import Path

from detres.cli.flags import CONFIGS, DETECTION_CONFIG
from detres.detection.published import PUBLISHED_DETECTORS, fault_of_name
from detres.runs.place import RUNS, folders_called
from detres.runs.resumable import AUTO
from detres.user_files import expanded, fault_of, is_url


def config_path(cfg: str | None, default: Path = DETECTION_CONFIG) -> Path:
    """Return the file of --cfg, or `default`; .yaml may be left out, and those that come with the
    toolkit are found from any directory.
    """
    path = Path(cfg) if cfg else default
    for named in (path, path.with_name(f"{path.name}.yaml")):
        if named.exists():
            return named
        if (CONFIGS / named.name).exists() and path.parent.name in ("", "configs"):
            return CONFIGS / named.name
    return path


WHAT = {
    "--cfg": "config file",
    "--data": "data at",
    "--weights": "weights file at",
    "--init-from": "weights file at",
    "--classifier": "weights file at",
    "--resume": "run folder",
    "--detections": "detections file or folder",
    "--annotations": "annotation file or folder",
    "--proposals": "proposals file",
    "bundle": "bundle at",
    "data": "data at",
    "source": "weights file at",
    "images": "image or folder",
    "paths": "run folder or weights file at",
}
"""Flag, or argument without one -> what its paths are of."""


def missing(arguments: argparse.Namespace, flags: Iterable[str]) -> str | None:
    """Return what to say of the first path, of those given to `flags` of WHAT, that is not there;
    None: all are.

    --cfg is looked for as `config_path` does, weights as weights_called does: a run and a published
    detector by its name too, --resume a run; what may be a name of other published weights is left
    to who knows these.
    """
    for flag in flags:
        given = getattr(arguments, flag.removeprefix("--").replace("-", "_"))
        for path in given if isinstance(given, list) else [given]:
            if path and (fault := _fault_of(flag, path)):
                return fault
    return None


def _fault_of(flag: str, path: str) -> str | None:
    """What to say of a path that is not there, with what was probably meant; None: it is."""
    if flag == "--cfg":
        found, others = config_path(path), CONFIGS.glob("*.yaml")
    elif flag == "images" and is_url(path):
        return None
    elif flag in _OF_DETECTORS and (path in PUBLISHED_DETECTORS or fault_of_name(path)):
        return fault_of_name(path)
    elif _is_known_by_name(flag, path):
        return None
    else:
        others = [*(RUNS.glob("*") if flag in _OF_RUNS else ())]
        others += map(Path, PUBLISHED_DETECTORS if flag in _OF_DETECTORS else ())
        found = Path(expanded(path))
    if os.path.exists(found):
        return None
    fault = fault_of(found) or "does not exist"
    said = f"no {WHAT[flag]} {path}" if fault == "does not exist" else f"{path} {fault}"
    return f"{said}{_like(found, others)}"


_OF_WEIGHTS = ("--weights", "--init-from", "--classifier")
_OF_DETECTORS = ("--weights", "--init-from", "source")
_BY_NAME = (*_OF_WEIGHTS, "--resume")
_OF_RUNS = (*_BY_NAME, "paths")


def _is_known_by_name(flag: str, name: str) -> bool:
    """Whether it is the name of a run, or may be that of published weights."""
    if flag == "--resume" and name == AUTO:
        return True
    is_run = flag in _BY_NAME and bool(folders_called(name))
    return is_run or (flag in _OF_WEIGHTS and _may_be_published(name))


def _may_be_published(name: str) -> bool:
    """Whether it may be a name of a publisher, torchvision/resnet50.v1: the folder is not there."""
    return "/" in name and not Path(expanded(name)).parent.exists()


def _like(path: Path, others: Iterable[Path]) -> str:
    """A hint to what is called like `path`: what lies beside it, or one of `others`."""
    try:
        beside = [path.parent / name for name in sorted(os.listdir(path.parent))]
    except OSError:
        beside = []
    by_name = {each.name: each for each in [*sorted(others), *beside]}
    near = difflib.get_close_matches(path.name, by_name, n=1)
    return f"; did you mean {by_name[near[0]]}?" if near else ""

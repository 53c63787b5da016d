"""Look for what is wrong with annotated data before training on them: `check-data --cfg
configs/coco_r101.yaml --data COCO --out check`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from detres.cli.flags import notice, say
from detres.commands.configured import overrides_of
from detres.commands.own_data import is_own, new_run
from detres.detection.annotations import Annotations
from detres.detection.config import TRAINING_SPLITS, DataConfig, DetectionConfig
from detres.detection.data.audit import Audit, audit, look_at
from detres.detection.data.box_policy import AnnotationError, FaultyFilesError
from detres.detection.data.clean_copy import NOT_MENDED, write_clean_copy
from detres.detection.data.read import read_as_written, splits_of
from detres.detection.own_data import OwnData
from detres.files import require_free_folder, write_text
from detres.report.data_page import data_page
from detres.user_files import JsonError, TextError

PAGE, NUMBERS = "index.html", "check.json"
"""What --out holds."""


def check(arguments: argparse.Namespace) -> int:
    """Look, say what was found, and write what was asked for; returns 1 where there are errors that
    are not mended in a clean copy.
    """
    out, fix = (Path(folder) if folder else None for folder in (arguments.out, arguments.fix))
    _require_places(out, fix, arguments.data)
    try:
        config = _config(arguments)
        splits = _splits(config.data)
    except (AnnotationError, JsonError, TextError) as error:
        faults = error.faults if isinstance(error, FaultyFilesError) else (str(error),)
        _report(Audit.of_unusable(str(arguments.data or arguments.cfg), faults), out)
        return 1
    parts = look_at(splits, config.data.workers)
    found = audit(parts, config.model)
    _report(found, out)
    errors = [finding.kind for finding in found.findings if finding.level == "error"]
    if fix is None:
        return int(bool(errors))
    for line in write_clean_copy(parts, fix):
        say(f"in the copy of {line}")
    say(f"clean copy, as COCO: {fix}")
    return int(any(kind in NOT_MENDED for kind in errors))


def _report(found: Audit, out: Path | None) -> None:
    """Say what was found, and write it where a folder is given."""
    say(found.describe())
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / NUMBERS, json.dumps(found.to_dict(), indent=2))
    write_text(out / PAGE, data_page(found))
    say(f"written: {out / PAGE}, {out / NUMBERS}")


def _config(arguments: argparse.Namespace) -> DetectionConfig:
    """The configuration that train-det would take; what the data were taken for is said."""
    if not is_own(arguments):
        return new_run(arguments).config
    own = OwnData.read(arguments.data, overrides_of(arguments), device=arguments.device, say=say)
    return own.configured()[0]


def _splits(data: DataConfig) -> dict[str, Annotations]:
    """The splits as they are written; test, which training does not need, where it is there."""
    found: dict[str, Annotations] = {}
    for split in splits_of(data):
        try:
            class_map = next(iter(found.values())).class_map if found else None
            found[split] = read_as_written(data, split, class_map)
        except FileNotFoundError as error:
            if split in TRAINING_SPLITS:
                raise
            notice(f"{split} is not looked at: {error}")
    return found


def _require_places(out: Path | None, fix: Path | None, data: str | None) -> None:
    """Raise ValueError for folders that lie in each other, or a copy in the data; TakenFolderError
    for one that holds more than an earlier look wrote.
    """
    if fix is not None and out is not None and (_within(out, fix) or _within(fix, out)):
        raise ValueError(f"--out and --fix are to be folders apart: {out}, {fix}")
    if fix is not None and data is not None:
        given = Path(data)
        if _within(fix, given.parent if given.is_file() else given):
            raise ValueError(f"--fix {fix} lies in the data; give a folder beside them")
    if out is not None:
        made = {path.name for path in out.iterdir()} if out.is_dir() else set()
        if not made or not made <= {PAGE, NUMBERS}:
            require_free_folder(out)
    if fix is not None:
        require_free_folder(fix)


def _within(folder: Path, other: Path) -> bool:
    return folder.resolve().is_relative_to(other.resolve())

"""A folder, or a file, of annotated images as a user has it -> the configuration that reads it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from detres.config import in_yaml
from detres.console import shown
from detres.detection.config import SPLITS, DataConfig
from detres.detection.data.csv_boxes import csv_file_names, is_boxes_csv
from detres.detection.data.found_files import FoundFiles, folder_with
from detres.detection.data.layouts import (
    FORMATS,
    Entry,
    UnrecognisedDataError,
    coco_file_names,
    entries_of_yaml,
    json_kind,
    some,
)
from detres.detection.data.yolo import is_data_yaml
from detres.user_files import fault_of

__all__ = ["Recognised", "UnrecognisedDataError", "recognise"]

VAL_SHARE = 0.2
"""Of the images, where nothing says which are val."""

_OF_ROBOFLOW = {"_annotations.coco", "_annotations"}
"""Stems of its annotation files."""


@dataclass(frozen=True)
class Recognised:
    """How data are read.

    kind: the format, in words. reason: one line, what said so, and what the splits are. data: the
    configuration, its root settled.
    """

    kind: str
    reason: str
    data: DataConfig

    def settings(self) -> list[str]:
        """Return the lines KEY=VALUE that say the same as `data`, the values in YAML."""
        given = self.data.model_dump(mode="json", exclude_defaults=True)
        return [f"data.{key}={in_yaml(value)}" for key, value in given.items()]


def recognise(path: str | Path, wanted: str | None = None) -> Recognised:
    """Return how the data at `path` are read: a folder, a data.yaml of YOLO, a COCO JSON or a CSV
    file.

    wanted: the format (of DataConfig) to take where the folder holds several. Images are not
    opened, and of annotations no more is read than tells them apart; where nothing says which
    images are val, a part of train is, see split.py. Raises FileNotFoundError where there is
    nothing at `path`, UnrecognisedDataError for a folder without files, without annotations, or
    with annotations in several formats, for annotations of other images, and for a data.yaml that
    leads elsewhere.
    """
    path = Path(os.path.abspath(path))
    if path.is_dir():
        return _of_folder(path, wanted)
    fault = fault_of(path)
    if fault is not None:
        raise FileNotFoundError(f"data: {path} {fault}")
    return _of_file(path)


def _of_folder(path: Path, wanted: str | None) -> Recognised:
    files = FoundFiles.below(path)
    if not files.paths:
        raise UnrecognisedDataError(f"{path} is empty: no images, no annotations")
    found = {name: one.evidence(files) for name, one in FORMATS.items()}
    found = {name: evidence for name, evidence in found.items() if evidence}
    if wanted is not None:
        found = {name: evidence for name, evidence in found.items() if name == wanted}
    if not found:
        raise UnrecognisedDataError(_what_is_missing(files, wanted))
    if len(found) > 1:
        listed = " and ".join(
            f"{FORMATS[name].kind} ({some(evidence)})" for name, evidence in found.items()
        )
        choices = " or ".join(f"data.format={name}" for name in found)
        raise UnrecognisedDataError(
            f"{path} has annotations in {len(found)} formats: {listed}. Say which to read, "
            f"{choices}, or give the folder or the file of one of them"
        )
    (name,) = found
    entries, more = FORMATS[name].entries(files, found[name])
    return _recognised(path, name, found[name], entries, more)


def _recognised(
    root: Path, name: str, evidence: list[str], entries: list[Entry], more: dict
) -> Recognised:
    """The data below `root` as those of the format `name` that `evidence` says they are.

    more: other settings of DataConfig.
    """
    splits, words = _in_splits(entries)
    given: dict[str, object] = {}
    for split, of_split in splits.items():
        given[split] = tuple(entry.path for entry in of_split)
        folders = tuple(entry.images for entry in of_split)
        beside = all(entry.images in (None, entry.path) for entry in of_split)
        if name in ("coco", "csv") or not beside:
            given[f"{split}_images"] = folders
    if "val" not in splits:
        given["val_share"] = VAL_SHARE
        words.append(f"nothing says which images are val, so {VAL_SHARE:g} of train are")
    data = DataConfig(format=name, root=str(root), **given, **more)
    described = [f"{split} {some(getattr(data, split))}" for split in SPLITS if split in splits]
    exported = {PurePosixPath(file).stem for file in evidence} <= _OF_ROBOFLOW
    return Recognised(
        FORMATS[name].kind + (", Roboflow's folders" if exported else ""),
        "; ".join([f"told by {some(evidence)}", *described, *words]),
        data,
    )


def _in_splits(entries: list[Entry]) -> tuple[dict[str, list[Entry]], list[str]]:
    """The entries by split, train among them, and what is to be said about them."""
    splits = {
        split: of_split
        for split in (*SPLITS, None)
        if (of_split := [entry for entry in entries if entry.split == split])
    }
    untold = splits.pop(None, [])
    if not untold or "train" in splits:
        words = [f"{some([entry.path for entry in untold])} left out: no split"] * bool(untold)
    else:
        splits["train"], words = untold, []
    if "train" not in splits:
        (first, *_) = splits
        splits["train"] = splits.pop(first)
        words.append(f"there is no train, so {first} is trained on")
    return splits, words


def _what_is_missing(files: FoundFiles, wanted: str | None) -> str:
    """Why a folder is none of the formats."""
    known = "; ".join(dict.fromkeys(one.kind for one in FORMATS.values()))
    num = len(files.images)
    if wanted is not None:
        return f"{files.root} has no annotations of format {wanted}"
    if num:
        return f"{files.root} has {num} images but no annotations of them; what is read: {known}"
    return (
        f"{files.root} has {len(files.paths)} files, such as {files.paths[0]}, but neither images "
        f"nor annotations; what is read: {known}"
    )


def _of_file(path: Path) -> Recognised:
    """A data.yaml, whose images may be anywhere, or an annotation file, whose images lie beside it,
    in folders there, or in such beside its own folder.
    """
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml") and is_data_yaml(path):
        entries = entries_of_yaml(path, path.parent)
        return _recognised(path.parent, "yolo", [path.name], entries, {"class_names": path.name})
    kind = json_kind(path) if suffix == ".json" else None
    if kind == "coco" or (suffix == ".csv" and is_boxes_csv(path)):
        name = kind or "csv"
        names = coco_file_names(path) if kind else csv_file_names(path)
        for root in (path.parent, path.parent.parent):
            folder = folder_with(root, names)
            if folder is not None:
                entry = Entry(os.path.relpath(path, root), folder, None)
                return _recognised(root, name, [entry.path], [entry], {})
        raise UnrecognisedDataError(
            f"{path}: the images that it lists ({shown(names[0]) if names else 'none'}) are "
            f"neither in {path.parent} nor in a folder beside it: give the folder of both"
        )
    raise UnrecognisedDataError(
        f"{path} is no data that can be read: give a folder, a data.yaml of YOLO, a COCO JSON or a "
        "CSV file with a box a line"
    )

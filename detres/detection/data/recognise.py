"""A folder, or a file, of annotated images as a user has it -> the configuration that reads it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import yaml

from detres.console import shown
from detres.detection.config import SPLITS, DataConfig
from detres.detection.data.found_files import FoundFiles, split_of
from detres.user_files import fault_of, read_json

VAL_SHARE = 0.2
"""Of the images, where nothing says which are val."""

_SAMPLE = 50
"""File names of an annotation file by which its images are looked for."""

_LISTED = 3

_OF_ROBOFLOW = {"_annotations.coco", "_annotations"}
"""Stems of its annotation files."""


class UnrecognisedDataError(ValueError):
    """Data of which it cannot be told how they are to be read; the message says why, and what would
    tell.
    """


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
        return [f"data.{key}={_in_yaml(value)}" for key, value in given.items()]


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


class _Entry(NamedTuple):
    """One entry of DataConfig.train, val or test: its path relative to the root, that of its image
    folder (None where the format has none), and the split that their names tell.
    """

    path: str
    images: str | None
    split: str | None


class _Format(NamedTuple):
    """kind: in words. evidence: the files that it is told by, relative to the root; none: it is
    not there. entries: what these files are as entries of a configuration, and its other settings.
    """

    kind: str
    evidence: Callable[[FoundFiles], list[str]]
    entries: Callable[[FoundFiles, list[str]], tuple[list[_Entry], dict]]


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
            f"{FORMATS[name].kind} ({_some(evidence)})" for name, evidence in found.items()
        )
        choices = " or ".join(f"data.format={name}" for name in found)
        raise UnrecognisedDataError(
            f"{path} has annotations in {len(found)} formats: {listed}. Say which to read, {choices}"
            ", or give the folder or the file of one of them"
        )
    (name,) = found
    return _recognised(files, name, found[name])


def _recognised(files: FoundFiles, name: str, evidence: list[str]) -> Recognised:
    """The data in `files` as those of the format `name` that `evidence` says they are."""
    entries, more = FORMATS[name].entries(files, evidence)
    splits, words = _in_splits(entries, files.root)
    given: dict[str, object] = {}
    for split, of_split in splits.items():
        given[split] = tuple(entry.path for entry in of_split)
        folders = tuple(entry.images for entry in of_split)
        if None not in folders:
            given[f"{split}_images"] = folders
    if "val" not in splits:
        given["val_share"] = VAL_SHARE
        words.append(f"nothing says which images are val, so {VAL_SHARE:g} of train are")
    data = DataConfig(format=name, root=str(files.root), **given, **more)
    described = [f"{split} {_some(getattr(data, split))}" for split in SPLITS if split in splits]
    exported = {PurePosixPath(file).stem for file in evidence} <= _OF_ROBOFLOW
    return Recognised(
        FORMATS[name].kind + (", Roboflow's folders" if exported else ""),
        "; ".join([f"told by {_some(evidence)}", *described, *words]),
        data,
    )


def _in_splits(entries: list[_Entry], root: Path) -> tuple[dict[str, list[_Entry]], list[str]]:
    """The entries by split, train among them, and what is to be said about them."""
    splits = {
        split: of_split
        for split in (*SPLITS, None)
        if (of_split := [entry for entry in entries if entry.split == split])
    }
    untold = splits.pop(None, [])
    if not untold or "train" in splits:
        words = [f"{_some([entry.path for entry in untold])} left out: no split"] * bool(untold)
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


def _some(paths: list[str] | tuple[str, ...]) -> str:
    """The first of some paths, and how many there are beside."""
    listed = ", ".join(paths[:_LISTED])
    return listed + (f" and {len(paths) - _LISTED} more" if len(paths) > _LISTED else "")


def _in_yaml(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=2**31, allow_unicode=True)
    return text.strip().removesuffix("\n...")


# ---- VOC's layout ----


def _voc_lists(files: FoundFiles) -> list[str]:
    """The lists of images in ImageSets/Main that have a word for a split, or are the only ones."""
    lists = [
        path
        for path in files.ending(".txt")
        if PurePosixPath(path).parts[-3:-1] == ("ImageSets", "Main")
        and os.path.getsize(files.root / path)
    ]
    splits = [path for path in lists if PurePosixPath(path).stem.lower() in _VOC_LISTS]
    return splits or lists


_VOC_LISTS = ("train", "val", "trainval", "test", "valid", "validation")


def _voc_entries(files: FoundFiles, lists: list[str]) -> tuple[list[_Entry], dict]:
    years: dict[str, list[str]] = {}
    for path in lists:
        year = PurePosixPath(path).parent.parent.parent.as_posix()
        years.setdefault(year, []).append(PurePosixPath(path).stem)
    entries = []
    for year, names in years.items():
        splits = {split_of(name): name for name in names if name != "trainval"}
        if "trainval" in names and not {"train", "val"} <= splits.keys():
            splits["train"] = "trainval"
            splits.pop("val", None)  # part of it
        if len(names) > 1 and set(splits) == {None}:
            raise UnrecognisedDataError(
                f"{files.root / year / 'ImageSets' / 'Main'} has the lists {_some(names)}, and none "
                "is called train: say which to read, data.train and data.val"
            )
        at = "" if year == "." else f"{year}/"
        entries += [_Entry(f"{at}{name}", None, split) for split, name in splits.items()]
    return entries, {}


# ---- COCO JSON ----


def _coco_files(files: FoundFiles) -> list[str]:
    """The JSON files that are COCO's annotations of boxes."""
    found = [path for path in files.ending(".json") if json_kind(files.root / path) == "coco"]
    names = {path: PurePosixPath(path).name for path in found}
    if any(name.startswith("instances_") for name in names.values()):  # COCO's own folder
        return [path for path in found if not names[path].startswith(_OF_OTHER_TASKS)]
    return found


_OF_OTHER_TASKS = ("captions_", "person_keypoints_", "stuff_", "panoptic_")


def _coco_entries(files: FoundFiles, paths: list[str]) -> tuple[list[_Entry], dict]:
    entries = []
    for path in paths:
        names = coco_file_names(files.root / path)
        folder = files.image_folder(names, path)
        if folder is None:
            raise _other_images(files, path, names)
        entries.append(_Entry(path, folder, split_of(path)))
    untold = [entry.path for entry in entries if entry.split is None]
    if len(untold) > 1 or (untold and len(entries) > 1):
        raise UnrecognisedDataError(
            f"{files.root} has {len(entries)} COCO files, and the name of {untold[0]} tells no "
            f"split: {_some(paths)}. Give the file of one of them, or say data.train and data.val"
        )
    return entries, {}


def _other_images(files: FoundFiles, path: str, names: list[str]) -> UnrecognisedDataError:
    """The error for annotations none of whose images is there."""
    listed = f"such as {shown(names[0])}" if names else "it lists none"
    there = (
        f"{len(files.images)} image files, such as {files.images[0]}" if files.images else "none"
    )
    return UnrecognisedDataError(
        f"{files.root / path} is of other images: none of those it lists is in {files.root}, "
        f"{listed}; there are {there}"
    )


def coco_file_names(path: Path) -> list[str]:
    """Return file names that a COCO file lists, some of them where they stand at its beginning."""
    with path.open("rb") as file:
        head = file.read(_HEAD).decode("utf-8", "replace")
    written = re.findall(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', head)
    if written:
        return [json.loads(name) for name in written[:_SAMPLE]]
    content = read_json(path, "annotation file")
    images = content.get("images") if isinstance(content, dict) else None
    records = images[:_SAMPLE] if isinstance(images, list) else []
    names = [record.get("file_name") for record in records if isinstance(record, dict)]
    return [name for name in names if isinstance(name, str)]


_HEAD = 1 << 16
_WHOLE = 1 << 26
"""Bytes of a JSON file that are searched for its keys: of its two ends, and of a file in which they
do not tell.
"""

_KEYS = re.compile(rb'"(images|annotations|categories|shapes|imagePath)"\s*:')


def json_kind(path: Path) -> str | None:
    """Return "coco" or "labelme" for a JSON file that looks like one by its keys, None for
    others.
    """
    if fault_of(path) is not None:
        return None
    with path.open("rb") as file:
        ends = file.read(_HEAD)
        size = os.fstat(file.fileno()).st_size
        if not ends.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
            return None
        if size > _HEAD:
            file.seek(max(_HEAD, size - _HEAD))
            ends += file.read()
        kind = _kind_of(ends)
        if kind is None and 2 * _HEAD < size <= _WHOLE:
            file.seek(0)
            kind = _kind_of(file.read())
    return kind


def _kind_of(text: bytes) -> str | None:
    keys = set(_KEYS.findall(text))
    if {b"shapes", b"imagePath"} <= keys:
        return "labelme"
    return "coco" if len(keys & {b"images", b"annotations", b"categories"}) > 1 else None


FORMATS = {
    "voc": _Format("VOC's layout (Annotations, ImageSets, JPEGImages)", _voc_lists, _voc_entries),
    "coco": _Format("COCO JSON", _coco_files, _coco_entries),
}
"""Format of DataConfig -> how it is recognised."""


def _of_file(path: Path) -> Recognised:
    if path.suffix.lower() == ".json" and json_kind(path) == "coco":
        return _recognised(FoundFiles.below(path.parent), "coco", [path.name])
    raise UnrecognisedDataError(
        f"{path} is no data that can be read: give a folder, a data.yaml of YOLO, a COCO JSON or a "
        "CSV file"
    )

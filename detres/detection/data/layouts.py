"""How the formats of annotations lie in a folder: the files that tell each, and what these are as
entries of a configuration.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from detres.console import shown
from detres.detection.data.csv_boxes import csv_file_names, is_boxes_csv
from detres.detection.data.found_files import (
    FoundFiles,
    best_folder,
    common_folder,
    is_inside,
    parent_of,
    split_of,
)
from detres.detection.data.yolo import (
    NAMES_FILES,
    is_data_yaml,
    places_of,
    read_class_names,
    read_data_yaml,
)
from detres.images.locate import spelling_key
from detres.user_files import fault_of, read_json
from detres.values import integer_of, number_of

_SAMPLE = 50
"""Files, and names of an annotation file, by which images are looked for."""

_LISTED = 3


class UnrecognisedDataError(ValueError):
    """Data of which it cannot be told how they are to be read; the message says why, and what would
    tell.
    """


class Entry(NamedTuple):
    """One entry of DataConfig.train, val or test: its path relative to the root, that of its image
    folder (None where the format has none), and the split that their names tell.
    """

    path: str
    images: str | None
    split: str | None


class Format(NamedTuple):
    """kind: in words. evidence: the files that it is told by, relative to the root; none: it is
    not there. entries: what these files are as entries of a configuration, and its other settings.
    """

    kind: str
    evidence: Callable[[FoundFiles], list[str]]
    entries: Callable[[FoundFiles, list[str]], tuple[list[Entry], dict]]


def some(paths: list[str] | tuple[str, ...]) -> str:
    """Return the first of some paths, and how many there are beside, in words."""
    listed = ", ".join(paths[:_LISTED])
    return listed + (f" and {len(paths) - _LISTED} more" if len(paths) > _LISTED else "")


# ---- VOC's layout ----


def _voc_lists(files: FoundFiles) -> list[str]:
    """The lists of images in ImageSets/Main that have a word for a split, or are the only ones."""
    lists = [
        path
        for path in files.ending(".txt")
        if PurePosixPath(path).parts[-3:-1] == ("ImageSets", "Main")
        and _beginning(files.root / path).strip()
    ]
    splits = [path for path in lists if PurePosixPath(path).stem.lower() in _VOC_LISTS]
    return splits or lists


_VOC_LISTS = ("train", "val", "trainval", "test", "valid", "validation")


def _voc_entries(files: FoundFiles, lists: list[str]) -> tuple[list[Entry], dict]:
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
                f"{files.root / year / 'ImageSets' / 'Main'} has the lists {some(names)}, and "
                "none is called train: say which to read, data.train and data.val"
            )
        at = "" if year == "." else f"{year}/"
        entries += [Entry(f"{at}{name}", None, split) for split, name in splits.items()]
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


def _coco_entries(files: FoundFiles, paths: list[str]) -> tuple[list[Entry], dict]:
    return _entries_of_files(files, paths, "COCO", coco_file_names), {}


def _entries_of_files(
    files: FoundFiles, paths: list[str], what: str, names_in: Callable[[Path], list[str]]
) -> list[Entry]:
    """Annotation files of many images each, with the folders of those."""
    entries = []
    for path in paths:
        names = names_in(files.root / path)
        folder = files.image_folder(names, path)
        if folder is None:
            raise _other_images(files, path, names)
        entries.append(Entry(path, folder, split_of(path)))
    untold = [entry.path for entry in entries if entry.split is None]
    if len(untold) > 1 or (untold and len(entries) > 1):
        raise UnrecognisedDataError(
            f"{files.root} has {len(entries)} {what} files, and the name of {untold[0]} tells no "
            f"split: {some(paths)}. Give one of them as the data, or say data.train and data.val"
        )
    return entries


def _other_images(files: FoundFiles, path: str, names: list[str]) -> UnrecognisedDataError:
    """The error for annotations none of whose images is there."""
    what = f"{files.root / path} is of other images: none of those it lists is in {files.root}"
    if not names:
        return UnrecognisedDataError(f"{what}: it lists none")
    last = PurePosixPath(names[0].replace("\\", "/")).name
    elsewhere = files.by_name.get(spelling_key(last), [])
    if elsewhere:
        there = f"but {elsewhere[0]} is: correct its file names, or folders"
    else:
        num = len(files.images)
        there = f"; there are {num} image files" + (f", such as {files.images[0]}" if num else "")
    return UnrecognisedDataError(
        f"{what}, such as {shown(names[0])}{', ' * bool(elsewhere)}{there}"
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


# ---- files an image: plain XML, LabelMe, YOLO without a data.yaml ----


def _xml_files(files: FoundFiles) -> list[str]:
    """The XML files that are VOC's annotations and not in its layout, told by the first ones of
    each folder.
    """
    layouts = {parent_of(parent_of(parent_of(path))) for path in _voc_lists(files)}
    own = {"Annotations" if year == "." else f"{year}/Annotations" for year in layouts}
    return [
        path
        for folder, of_folder in _by_folder(files.ending(".xml")).items()
        if folder not in own and any(_is_xml(files.root / path) for path in of_folder[:_SAMPLE])
        for path in of_folder
    ]


def _is_xml(path: Path) -> bool:
    return re.search(rb"<annotation[\s>]", _beginning(path), re.IGNORECASE) is not None


def _xml_entries(files: FoundFiles, paths: list[str]) -> tuple[list[Entry], dict]:
    if any(path.startswith(_OF_ILSVRC) for path in files.paths):
        raise UnrecognisedDataError(
            f"{files.root} has ImageNet's layout, whose lists have to be chosen: data.format=ilsvrc"
            " with data.train and data.val, as in the configurations for it"
        )
    return _entries_of_labels(files, paths, rb"<filename>([^<]+)</filename>"), {}


_OF_ILSVRC = ("ImageSets/DET/", "ImageSets/CLS-LOC/")


def _labelme_files(files: FoundFiles) -> list[str]:
    return [path for path in files.ending(".json") if json_kind(files.root / path) == "labelme"]


def _labelme_entries(files: FoundFiles, paths: list[str]) -> tuple[list[Entry], dict]:
    return _entries_of_labels(files, paths, rb'"imagePath"\s*:\s*"((?:[^"\\]|\\.)*)"'), {}


def _entries_of_labels(
    files: FoundFiles, paths: list[str], image_name: bytes | None = None
) -> list[Entry]:
    """Label files, one an image, as folders of them with the folders of their images: those of
    their own stems, else those of the image names that they have in them.

    image_name: pattern of that name in a label file. Raises UnrecognisedDataError where no image
    of any is there.
    """
    entries, lost = [], []
    for folder, labels in _by_folder(paths).items():
        stems = {PurePosixPath(path).stem for path in labels}
        counts = {at: len(stems & there) for at, there in files.image_stems.items()}
        counts = {at: count for at, count in counts.items() if count}
        images = best_folder(counts, f"{folder}/x")
        if images is None and image_name is not None:
            heads = [_beginning(files.root / path) for path in labels[:_SAMPLE]]
            named = [
                match[1].decode("utf-8", "replace")
                for head in heads
                if (match := re.search(image_name, head))
            ]
            names = [PurePosixPath(name.replace("\\", "/")).name for name in named]
            images = files.image_folder(names, f"{folder}/x")
        if images is None:
            lost.append(labels[0])
        else:
            entries.append(Entry(folder, images, split_of(f"{folder}/x")))
    if not entries:
        raise _other_images(files, lost[0], [PurePosixPath(lost[0]).stem])
    return _merged(entries, files.root)


def _merged(entries: list[Entry], root: Path) -> list[Entry]:
    """Entries of one split as the one folder that holds them all, where it holds none of another
    split; the reader looks into sub-folders.
    """
    merged = []
    for split in dict.fromkeys(entry.split for entry in entries):
        own = [entry for entry in entries if entry.split == split]
        others = [entry for entry in entries if entry.split != split]
        whole = Entry(
            common_folder(entry.path for entry in own),
            common_folder(entry.images for entry in own),
            split,
        )
        apart = not any(
            is_inside(other.path, whole.path) or is_inside(other.images, whole.images)
            for other in others
        )
        merged += [whole] if apart else own
    for one, other in itertools.permutations(merged, 2):
        if is_inside(one.path, other.path) and one.path != other.path:
            raise UnrecognisedDataError(
                f"{root}: the annotations in {one.path} lie in a folder of those of another split, "
                f"{other.path}: put them into folders beside each other"
            )
    return merged


def _by_folder(paths: list[str]) -> dict[str, list[str]]:
    """Folder -> the files in it itself."""
    folders: dict[str, list[str]] = {}
    for path in paths:
        folders.setdefault(parent_of(path), []).append(path)
    return folders


def _beginning(path: Path) -> bytes:
    if fault_of(path) is not None:
        return b""
    with path.open("rb") as file:
        return file.read(_HEAD)


# ---- YOLO ----


def _yolo_files(files: FoundFiles) -> list[str]:
    """The data.yaml nearest to the root; without one, the label files."""
    yamls = [path for path in files.ending(".yaml", ".yml") if is_data_yaml(files.root / path)]
    if yamls:
        depths = {path: path.count("/") for path in yamls}
        return [path for path in yamls if depths[path] == min(depths.values())]
    texts = [path for path in files.ending(".txt") if PurePosixPath(path).name not in NAMES_FILES]
    return [
        path
        for of_folder in _by_folder(texts).values()
        if any(_is_label(files.root / path) for path in _first_with_text(files.root, of_folder))
        for path in of_folder
    ]


def _first_with_text(root: Path, paths: list[str]) -> list[str]:
    """The first _SAMPLE files that are not empty: an empty label file, of an image without objects,
    does not tell what it is.
    """
    with_text = (path for path in paths if _beginning(root / path).strip())
    return list(itertools.islice(with_text, _SAMPLE))


def _is_label(path: Path) -> bool:
    """Whether the first line of a text file is a class number and four numbers or more."""
    line = _beginning(path).lstrip().partition(b"\n")[0].split()
    numbers = [number_of(field.decode("ascii", "replace")) for field in line]
    return len(line) > 4 and None not in numbers and integer_of(numbers[0]) is not None


def _yolo_entries(files: FoundFiles, paths: list[str]) -> tuple[list[Entry], dict]:
    if PurePosixPath(paths[0]).suffix.lower() == ".txt":
        return _entries_of_labels(files, paths), {"class_names": _names_file(files, paths)}
    if len(paths) > 1:
        raise UnrecognisedDataError(
            f"{files.root} has {len(paths)} data.yaml: {some(paths)}; give the one to read"
        )
    entries = entries_of_yaml(files.root / paths[0], files.root)
    for entry in entries:
        if os.path.isabs(entry.path):
            raise UnrecognisedDataError(
                f"{files.root / paths[0]} points outside of {files.root}, its {entry.split} to "
                f"{entry.path}: correct it, or give the file itself as the data to follow it"
            )
    return entries, {"class_names": paths[0]}


def entries_of_yaml(path: Path, root: Path) -> list[Entry]:
    """Return the entries of a data.yaml, their paths relative to `root` where they lie in it, else
    whole; raises what `read_data_yaml` and `places_of` raise, UnrecognisedDataError for none.
    """
    entries = [
        Entry(_below(place, root), None, split)
        for split, places in places_of(read_data_yaml(path)).items()
        for place in places
    ]
    if not entries:
        raise UnrecognisedDataError(f"{path} names no images: give train, a folder of them")
    return entries


def _below(place: Path, root: Path) -> str:
    for one, other in ((place, root), (place.resolve(), root.resolve())):
        if one.is_relative_to(other):
            return one.relative_to(other).as_posix()
    return str(place)


def _names_file(files: FoundFiles, labels: list[str]) -> str:
    """The file that names the classes of labels without a data.yaml."""
    found = [
        path
        for path in files.ending(".txt", ".names")
        if PurePosixPath(path).name in NAMES_FILES or PurePosixPath(path).suffix == ".names"
    ]
    yamls = files.ending(".yaml", ".yml")
    found += [path for path in yamls if is_data_yaml(files.root / path, with_split=False)]
    if not found:
        raise UnrecognisedDataError(
            f"{files.root} has YOLO's labels ({some(labels)}), and nothing names their classes: "
            "put a classes.txt there, a name a line in the order of the numbers, or a data.yaml"
        )
    first, *others = found
    for other in others:
        if read_class_names(files.root / other) != read_class_names(files.root / first):
            raise UnrecognisedDataError(
                f"{files.root}: {first} and {other} name other classes; leave one of them"
            )
    return first


# ---- CSV ----


def _csv_files(files: FoundFiles) -> list[str]:
    return [path for path in files.ending(".csv") if is_boxes_csv(files.root / path)]


def _csv_entries(files: FoundFiles, paths: list[str]) -> tuple[list[Entry], dict]:
    return _entries_of_files(files, paths, "CSV", csv_file_names), {}


FORMATS = {
    "voc": Format("VOC's layout (Annotations, ImageSets, JPEGImages)", _voc_lists, _voc_entries),
    "xml": Format("images with VOC's XML files", _xml_files, _xml_entries),
    "coco": Format("COCO JSON", _coco_files, _coco_entries),
    "yolo": Format("YOLO", _yolo_files, _yolo_entries),
    "labelme": Format("LabelMe JSON", _labelme_files, _labelme_entries),
    "csv": Format("CSV (a box a line)", _csv_files, _csv_entries),
}
"""Format of DataConfig -> how it is recognised."""

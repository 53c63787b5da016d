"""YOLO's label files, one an image, and its data.yaml -> Annotations."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from detres.class_map import ClassMap
from detres.config import read_texts
from detres.console import one_line, shown
from detres.detection.annotations import Annotations
from detres.detection.data.assemble import Labelled, assembled
from detres.detection.data.box_policy import AnnotationError, BoxPolicy, known_classes
from detres.detection.data.found_files import FoundFiles
from detres.detection.data.label_files import LabelledFiles, image_ids, match_labels
from detres.detection.data.read_each import read_each
from detres.images.decode import read_size
from detres.images.locate import require_usable
from detres.user_files import TextError, fault_of, read_text, tidied
from detres.values import integer_of, number_of

SUFFIX = ".txt"

NAMES_FILES = ("classes.txt", "obj.names", "names.txt", "labels.txt", "predefined_classes.txt")
"""Files of class names, one a line, beside YOLO's labels."""

SPLIT_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Split -> the keys of a data.yaml that name its images."""

_ROUNDING = 1e-5
"""By which a fraction of the image may leave 0..1."""

_IMAGES = re.compile(r"(.*)/(images|JPEGImages)/(.*)", re.DOTALL)


@dataclass(frozen=True)
class DataYaml:
    """What a data.yaml says. names: of the classes. root: its `path`, None without one. splits:
    split -> its entries as written. values: how many numbers a label has after the class, where
    labels are boxes with keypoints; None: they are boxes or polygons.
    """

    path: Path
    names: tuple[str, ...]
    root: str | None
    splits: dict[str, tuple[str, ...]]
    values: int | None


def is_data_yaml(path: Path, *, with_split: bool = True) -> bool:
    """Return whether a YAML file names classes, and with_split a split too; False for one that is
    no YAML.
    """
    try:
        content = read_texts(path, "YAML file")
    except (ValueError, OSError):
        return False
    keys = {key for keys in SPLIT_KEYS.values() for key in keys}
    return "names" in content and bool(keys & content.keys() or not with_split)


def read_data_yaml(path: Path) -> DataYaml:
    """Read a data.yaml.

    names: a list, or a mapping of the numbers 0..K-1; `nc`, where it is given, must be their
    number. A split is a folder of images, a list of them (.txt), or several of these. Raises
    ConfigError for what is no YAML, AnnotationError for names or a split that are none of this,
    FileNotFoundError where there is no such file.
    """
    content = read_texts(path, "data.yaml")
    names = _names_of(content.get("names"), path)
    number = content.get("nc")
    if number is not None and integer_of(number) != len(names):
        raise AnnotationError(f"{path}: nc is {shown(number)}, and names has {len(names)}")
    splits = {}
    for split, keys in SPLIT_KEYS.items():
        given = next((content[key] for key in keys if content.get(key)), None)
        entries = [given] if isinstance(given, str) else given
        if entries is None:
            continue
        if not isinstance(entries, list) or not all(isinstance(one, str) for one in entries):
            raise AnnotationError(
                f"{path}: {split} is {shown(given)}, expected a folder of images, a list of images "
                "(.txt), or several of them"
            )
        splits[split] = tuple(entries)
    root = content.get("path")
    keypoints = content.get("kpt_shape")
    shape = [integer_of(value) for value in keypoints] if isinstance(keypoints, list) else []
    values = 4 + int(np.prod(shape)) if len(shape) == 2 and None not in shape else None
    return DataYaml(path, names, root if isinstance(root, str) else None, splits, values)


def _names_of(given: object, path: Path) -> tuple[str, ...]:
    names = given
    if isinstance(given, dict):
        numbers = {integer_of(key): name for key, name in given.items()}
        if numbers.keys() != set(range(len(given))):
            raise AnnotationError(
                f"{path}: names has the keys {shown(list(given))}, expected 0 to {len(given) - 1}"
            )
        names = [numbers[number] for number in range(len(given))]
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, list) or not names:
        raise AnnotationError(f"{path}: names is {shown(given)}, expected a list of class names")
    named = [one_line(name).strip() if isinstance(name, str) else "" for name in names]
    return _each_once(named, path)


def _each_once(names: list[str], path: Path) -> tuple[str, ...]:
    for number, name in enumerate(names):
        if not name:
            raise AnnotationError(f"{path}: the name of class {number} is empty")
        if names.index(name) != number:
            raise AnnotationError(
                f"{path}: classes {names.index(name)} and {number} are both called {shown(name)}"
            )
    return tuple(names)


def read_class_names(path: Path) -> tuple[str, ...]:
    """Return the names of the classes 0..K-1: of a data.yaml, or of a text file, one a line.

    Raises as `read_data_yaml` does, TextError for a text file in an unknown encoding.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        return read_data_yaml(path).names
    lines = [one_line(line).strip() for line in read_text(path, "class names").splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise AnnotationError(f"{path} is empty; expected the names of the classes, one a line")
    return _each_once(lines, path)


def places_of(data: DataYaml) -> dict[str, list[Path]]:
    """Return split -> the folders and lists that a data.yaml means by its entries.

    An entry is looked for below `path`, where that is there, then beside the data.yaml; "../"
    before it, as Roboflow writes it, is left out where that leads to something. One of another
    machine (an absolute path that is not there) is looked for by the end of its path. A test split
    that is nowhere is left out. Raises FileNotFoundError for others.
    """
    base = data.path.parent
    root = tidied(base / _slashed(data.root)) if data.root else base
    roots = [root, base] if root.is_dir() else [base]
    places = {}
    for split, entries in data.splits.items():
        found = [_place_of(entry, roots) for entry in entries]
        if None not in found:
            places[split] = found
        elif split != "test":
            entry = entries[found.index(None)]
            looked = " and ".join(str(tidied(root / _slashed(entry))) for root in roots)
            raise FileNotFoundError(
                f"{data.path}: {split} is {shown(entry)}, and there is no such folder or list of "
                f"images: looked at {looked}. Correct it, relative to the folder of the file"
            )
    _require_apart(data, places)
    return places


def _require_apart(data: DataYaml, places: dict[str, list[Path]]) -> None:
    """Raise FileNotFoundError where entries of train and of another split that are written
    otherwise are found at one place: neither is where it is said to be.
    """
    for split in set(places) - {"train"}:
        both = [place for place in places.get("train", []) if place in places[split]]
        if both and data.splits["train"] != data.splits[split]:
            raise FileNotFoundError(
                f"{data.path}: train is {shown(data.splits['train'][0])} and {split} is "
                f"{shown(data.splits[split][0])}, and of both only {both[0]} is there: correct "
                "them, relative to the folder of the file"
            )


def _place_of(entry: str, roots: list[Path]) -> Path | None:
    entry = _slashed(entry)
    ways = [entry.removeprefix("../")] if entry.startswith("../") else []
    parts = PurePosixPath(entry).parts
    if entry.startswith("/") or re.match(r"[A-Za-z]:/", entry):
        ends = ["/".join(parts[first:]) for first in range(1, len(parts))]
    else:
        ends = []
    for way in (*ways, entry, *ends):
        for root in roots:
            place = root / way
            if place.exists():
                return tidied(place)
    return None


def _slashed(path: str) -> str:
    return path.replace("\\", "/")


def read_yolo(
    root: str | Path,
    entries: Sequence[str],
    folders: Sequence[str],
    class_names: Path,
    *,
    classes: Sequence[str] | None = None,
    box_policy: BoxPolicy = "drop",
) -> Annotations:
    """Read images with YOLO's label files; image ids are file stems, see label_files.image_ids.

    entries: without `folders`, folders of images, sub-folders too, and lists of images (.txt): the
    label of images/a.jpg is labels/a.txt (the last folder called so), else a.txt beside it. With
    `folders`, the image folder of each, they are folders of label files, see
    label_files.match_labels. class_names: see `read_class_names`. classes: these only; objects of
    others are left out and counted. A line is a class number and a box (centre x, y, width,
    height), as fractions of the image as it is seen upright, or a polygon (x, y of three points or
    more), which counts as the box around it. Images without label file, or with an empty one, are
    such without objects. Sizes are read from the images.

    Raises FileNotFoundError for a folder, a list or an image that is not there, AnnotationError
    for images none of which has a label file, and naming file and line for a class beyond the
    names, another number of columns, a value outside 0..1; ImageReadError for an image that cannot
    be read; and what `read_class_names` and apply_box_policy raise.
    """
    root = Path(root)
    names = read_class_names(class_names)
    values = None
    if class_names.suffix.lower() in (".yaml", ".yml"):
        values = read_data_yaml(class_names).values
    if folders:
        others = frozenset((*NAMES_FILES, class_names.name))
        matched = match_labels(
            root, entries, folders, suffix=SUFFIX, keep_unlabelled=True, others=others
        )
    else:
        matched = _labels_of_images(root, entries)
    sizes = read_each(matched.images, read_size, "images")
    sizes = np.array(sizes, np.int32).reshape(-1, 2)
    labels = read_each(
        matched.labels,
        lambda path: read_label_file(path, len(names), values) if path is not None else [],
        "label files",
    )
    objects = [label for of_image in labels for label in of_image]
    rows = np.repeat(np.arange(len(labels)), list(map(len, labels))).astype(np.int64)
    fractions = np.array([item.box for item in objects], np.float64).reshape(-1, 4)
    boxes = fractions * sizes[rows][:, [1, 0, 1, 0]]
    source = f"{root}: {' + '.join(entries)}"
    class_map = ClassMap(names, tuple(range(len(names))))
    if classes is not None:
        chosen = known_classes(classes, names, source)
        class_map = ClassMap(chosen, tuple(names.index(name) for name in chosen))
    labelled = Labelled(
        source=source,
        ids=image_ids(matched.images),
        files=matched.images,
        sizes=sizes,
        rows=rows,
        names=[names[item.index] for item in objects],
        boxes=boxes,
        written=boxes,
        describe_row=lambda row: (
            f"{matched.labels[rows[row]]}:{objects[row].line}: box {boxes[row].tolist()} px"
        ),
        difficult=np.zeros(len(objects), bool),
        notes=matched.notes,
    )
    index_of_name = {name: index for index, name in enumerate(class_map.names)}
    return assembled(labelled, class_map, index_of_name, box_policy)


class YoloLabel(NamedTuple):
    """One line of a label file: its number, the class 0..K-1, and the box, xyxy, as fractions of
    the image.
    """

    line: int
    index: int
    box: tuple[float, float, float, float]


def read_label_file(path: Path, num_classes: int, values: int | None = None) -> list[YoloLabel]:
    """Return what a label file says; nothing for an empty one.

    values: how many numbers come after the class where that is a box with keypoints, which are
    passed over; None: boxes and polygons. Raises AnnotationError naming file and line, see
    read_yolo.
    """
    try:
        lines = read_text(path, "label file").splitlines()
    except TextError as error:
        raise AnnotationError(str(error)) from None
    written = ((number, line.split()) for number, line in enumerate(lines, start=1))
    return [
        _label_of(fields, number, num_classes, values, f"{path}:{number}")
        for number, fields in written
        if fields
    ]


def _label_of(
    fields: list[str], line: int, num_classes: int, values: int | None, where: str
) -> YoloLabel:
    numbers = [number_of(field) for field in fields]
    if None in numbers:
        raise AnnotationError(
            f"{where}: {shown(fields[numbers.index(None)])} is no number; expected a class number "
            "and x, y, width, height"
        )
    index = integer_of(numbers[0])
    if index is None or index < 0:
        raise AnnotationError(f"{where}: the class is {shown(fields[0])}, expected 0, 1, 2, ...")
    if index >= num_classes:
        raise AnnotationError(
            f"{where}: class {index}, but the names are those of {num_classes} classes, 0 to "
            f"{num_classes - 1}"
        )
    rest = numbers[1:]
    polygon = values is None and len(rest) >= 6 and len(rest) % 2 == 0
    if not polygon and len(rest) != (values or 4):
        expected = f"{values + 1}" if values else "5, or a class and three points (x y) or more"
        raise AnnotationError(
            f"{where}: {len(fields)} columns, expected {expected}: class, x, y, width, height"
        )
    used = rest if polygon else rest[:4]
    outside = [value for value in used if not -_ROUNDING <= value <= 1 + _ROUNDING]
    if outside:
        raise AnnotationError(
            f"{where}: {outside[0]:g} is outside 0..1; expected are fractions of the image's width "
            "and height" + (", and these look like pixels" if max(outside) > 2 else "")
        )
    if polygon:
        xs, ys = used[::2], used[1::2]
        return YoloLabel(line, index, (min(xs), min(ys), max(xs), max(ys)))
    x, y, width, height = used
    box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return YoloLabel(line, index, box)


def _labels_of_images(root: Path, entries: Sequence[str]) -> LabelledFiles:
    """The images of folders and lists, and the label files that go with them."""
    images = [image for entry in entries for image in _images_of(root, tidied(root / entry))]
    first_row: dict[str, int] = {}
    for row, image in enumerate(images):
        if first_row.setdefault(image, row) != row:
            raise AnnotationError(f"{root}: image {image} is in {' + '.join(entries)} twice")
    labels = [_label_file(image) for image in images]
    unlabelled = [image for image, label in zip(images, labels, strict=True) if label is None]
    if unlabelled and len(unlabelled) == len(images):
        raise AnnotationError(
            f"{root}: none of the {len(images)} images of {' + '.join(entries)} has a label file, "
            f"such as {_label_places(images[0])[0]} for {images[0]}"
        )
    notes = (
        [
            f"{len(unlabelled)} of {len(images)} images have no label file and count as without "
            f"objects, such as {unlabelled[0]}"
        ]
        if unlabelled
        else []
    )
    labels_alone = _without_image(labels)
    if labels_alone:
        notes.append(
            f"{len(labels_alone)} label files belong to no image, such as {labels_alone[0]}"
        )
    return LabelledFiles(images, labels, notes)


def _images_of(root: Path, place: Path) -> list[str]:
    if place.is_dir():
        images = [os.path.join(place, name) for name in FoundFiles.below(place).images]
        if not images:
            raise AnnotationError(f"{place} has no image")
        return images
    if place.suffix.lower() != ".txt":
        fault = fault_of(place) or "is neither a folder nor a list of images (.txt)"
        raise FileNotFoundError(f"images {place}: it {fault}")
    lines = [line.strip() for line in read_text(place, "image list").splitlines()]
    listed = [_listed(root, place, line) for line in lines if line]
    if not listed:
        raise AnnotationError(f"{place} lists no image")
    require_usable([(image, fault_of(image)) for image in listed], len(listed), str(place))
    return listed


def _listed(root: Path, place: Path, line: str) -> str:
    """The image that a line of a list means: relative to the list's folder, or to the root."""
    for folder in (place.parent, root):
        path = tidied(folder / line.replace("\\", "/"))
        if path.exists():
            return str(path)
    return str(place.parent / line)


def _label_places(image: str) -> list[str]:
    """Where the label file of an image may be, the usual place first."""
    beside = os.path.splitext(image)[0] + SUFFIX
    match = _IMAGES.fullmatch(beside.replace(os.sep, "/"))
    return [f"{match[1]}/labels/{match[3]}", beside] if match else [beside]


def _label_file(image: str) -> Path | None:
    return next((Path(place) for place in _label_places(image) if os.path.isfile(place)), None)


def _without_image(labels: Sequence[Path | None]) -> list[Path]:
    """The label files in folders called labels, of some of `labels`, that are none of these."""
    known = {label for label in labels if label is not None}
    folders = {label.parent for label in known if "labels" in label.parts}
    inside = (path for folder in sorted(folders) for path in sorted(folder.glob("[!.]*.txt")))
    return [path for path in inside if path not in known and path.name not in NAMES_FILES]

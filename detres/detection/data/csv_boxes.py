"""CSV files, a box a line -> Annotations."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detres.class_map import ClassMap
from detres.console import one_line, shown
from detres.detection.annotations import Annotations
from detres.detection.data.assemble import Labelled, assembled
from detres.detection.data.box_policy import LARGEST_SIDE, AnnotationError, BoxPolicy
from detres.detection.data.found_files import FoundFiles
from detres.detection.data.label_files import image_ids
from detres.detection.data.read_each import read_each
from detres.images.decode import read_size
from detres.images.locate import Outside, locate
from detres.user_files import TextError, fault_of, read_text, tidied
from detres.values import integer_of, number_of

SUFFIX = ".csv"

_COLUMNS = {
    "file": (
        "filename", "file", "imagename", "image", "imagefile", "imagefilename", "imagepath",
        "filepath", "path", "img", "imgname", "imgpath", "imageid", "imgid",
    ),
    "class": (
        "class", "label", "name", "classname", "labelname", "category", "categoryname", "object",
        "objectclass", "classlabel",
    ),
    "xmin": ("xmin", "x1", "left", "minx", "xleft"),
    "ymin": ("ymin", "y1", "top", "miny", "ytop"),
    "xmax": ("xmax", "x2", "right", "maxx", "xright"),
    "ymax": ("ymax", "y2", "bottom", "maxy", "ybottom"),
    "x": ("x",),
    "y": ("y",),
    "w": ("w", "boxwidth"),
    "h": ("h", "boxheight"),
    "width": ("imagewidth", "imgwidth", "widthimage", "width"),
    "height": ("imageheight", "imgheight", "heightimage", "height"),
}  # fmt: skip
"""What a column has -> the names it goes by, as `_plain` writes them, the surest first."""

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_SIDES = ("x", "y", "w", "h")

EXPECTED = "filename, class, xmin, ymin, xmax, ymax (and width, height of the image)"


class CsvBox(NamedTuple):
    """One line: its number in the file, the image, its size (h, w) px (0: not given), and the
    object, whose name is "" and box (0, 0, 0, 0) in the line of an image without objects.
    """

    line: int
    file_name: str
    size: tuple[int, int]
    name: str
    box: tuple[float, ...]


def read_csv_boxes(
    root: str | Path,
    entries: Sequence[str],
    folders: Sequence[str],
    class_map: ClassMap,
    *,
    box_policy: BoxPolicy = "drop",
    outside: Outside = "error",
) -> Annotations:
    """Read CSV files with a box a line; image ids are file stems, see label_files.image_ids.

    entries: the files, below `root`. folders: that of the images of each. outside: see
    images.locate. The columns are told by the names in the first line, in any order; see _COLUMNS:
    the box is xmin, ymin, xmax, ymax, or x, y and its sides, in px, continuous; others are passed
    over. An image is of the size its lines give, else of that of its file. A line with an image
    alone is of one without objects; images in the folder that no line names are left out and
    counted. class_map: the classes; objects of others are left out and counted. Raises what
    `read_csv_file`, `locate` and `apply_box_policy` raise, AnnotationError for an image of two
    sizes, ImageReadError for one whose size has to be read and cannot be.
    """
    root = Path(root)
    parts = [
        _read_part(tidied(root / entry), tidied(root / folder), class_map, box_policy, outside)
        for entry, folder in zip(entries, folders, strict=True)
    ]
    return Annotations.concatenate(parts)


def _read_part(
    path: Path, folder: Path, class_map: ClassMap, box_policy: BoxPolicy, outside: Outside
) -> Annotations:
    lines = read_csv_file(path)
    first_of = {line.file_name: line for line in reversed(lines)}
    names = list(dict.fromkeys(line.file_name for line in lines))
    files, notes = locate(folder, names, source=str(path), outside=outside)
    for line in lines:
        first = first_of[line.file_name]
        if line.size != first.size:
            raise AnnotationError(
                f"{path}:{line.line}: image {line.file_name} is {line.size[1]}x{line.size[0]} px, "
                f"and {first.size[1]}x{first.size[0]} in line {first.line}"
            )
    sizes = [first_of[name].size for name in names]
    sizes = read_each(
        list(zip(sizes, files, strict=True)),
        lambda pair: pair[0] if min(pair[0]) else read_size(pair[1]),
        "images",
    )
    row_of = {name: row for row, name in enumerate(names)}
    lines = sorted((line for line in lines if line.name), key=lambda line: row_of[line.file_name])
    unnamed = len(FoundFiles.below(folder).images) - len(files)
    if unnamed > 0:
        notes.append(f"{path}: {unnamed} images in {folder} are in no line and are left out")
    boxes = np.array([line.box for line in lines], np.float64).reshape(-1, 4)
    labelled = Labelled(
        source=str(path),
        ids=image_ids(files),
        files=files,
        sizes=np.array(sizes, np.int32).reshape(-1, 2),
        rows=np.array([row_of[line.file_name] for line in lines], np.int64),
        names=[line.name for line in lines],
        boxes=boxes,
        written=boxes,
        describe_row=lambda row: f"{path}:{lines[row].line}: box {list(lines[row].box)}",
        difficult=np.zeros(len(lines), bool),
        notes=notes,
    )
    index_of_name = {name: index for index, name in enumerate(class_map.names)}
    return assembled(labelled, class_map, index_of_name, box_policy)


def csv_names(root: Path, entries: Sequence[str]) -> set[str]:
    """Return the names of all objects in CSV files below `root`; raises what `read_csv_file`
    raises.
    """
    return {line.name for entry in entries for line in read_csv_file(root / entry) if line.name}


def read_csv_file(path: Path) -> list[CsvBox]:
    """Return the lines of a CSV file, empty ones left out.

    Between the columns are commas, semicolons or tabs. Raises AnnotationError naming the file, and
    the line, for: no line, a column that is missing or there twice, another number of columns than
    the first line has, a line without image, an object without name or one of its numbers, a size
    that is none; FileNotFoundError where there is no such file.
    """
    try:
        text = read_text(path, "annotation file")
    except TextError as error:
        raise AnnotationError(str(error)) from None
    header = next(iter(text.splitlines()), "")
    delimiter = max(",;\t", key=header.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    rows = ((reader.line_num, [value.strip() for value in row]) for row in reader)
    rows = [(number, row) for number, row in rows if any(row)]
    if not rows:
        raise AnnotationError(f"{path} is empty; expected the columns {EXPECTED}")
    number, header = rows[0]
    columns = columns_of(header)
    missing = missing_columns(columns)
    if missing:
        raise AnnotationError(
            f"{path}:{number}: no column for {', '.join(missing)} among "
            f"{shown(', '.join(header))}; expected {EXPECTED}"
        )
    if len(rows) == 1:
        raise AnnotationError(f"{path} has no line but the names of its columns")

    def read_line(numbered: tuple[int, list[str]]) -> CsvBox:
        number, row = numbered
        if len(row) != len(header):
            raise AnnotationError(
                f"{path}:{number}: {len(row)} columns, the first line has {len(header)}"
            )
        values = {what: row[index] for what, index in columns.items()}
        return _line_of(values, number, f"{path}:{number}")

    return read_each(rows[1:], read_line, "lines")


def _line_of(values: dict[str, str], number: int, where: str) -> CsvBox:
    keys = _CORNERS if "xmax" in values else _SIDES
    if not values["file"]:
        raise AnnotationError(f"{where}: no image file")
    name = one_line(values["class"])
    size = (_side(values, "height", where), _side(values, "width", where))
    if not name and not any(values[key] for key in keys):
        return CsvBox(number, values["file"], size, "", (0.0,) * 4)
    if not name:
        raise AnnotationError(f"{where}: a box without class")
    box = [number_of(values[key]) for key in keys]
    if None in box:
        key = keys[box.index(None)]
        raise AnnotationError(f"{where}: {key} is {shown(values[key])}, expected a number")
    if keys == _SIDES:
        box[2:] = box[0] + box[2], box[1] + box[3]
    return CsvBox(number, values["file"], size, name, tuple(box))


def _side(values: dict[str, str], key: str, where: str) -> int:
    """The height or width of the image in px, 0 where it is not given."""
    text = values.get(key, "") or "0"
    pixels = integer_of(text)
    if pixels is None or not 0 <= pixels <= LARGEST_SIDE:
        raise AnnotationError(
            f"{where}: {key} of the image is {shown(text)}, expected px up to {LARGEST_SIDE}"
        )
    return pixels


def columns_of(header: Sequence[str]) -> dict[str, int]:
    """Return what of _COLUMNS stands in which column, by the names in the first line.

    Where a box has a corner x, y and no sides of its own, `width` and `height` are those of it;
    where it has two corners, w and h are the sides of the image.
    """
    plain = [_plain(name) for name in header]
    columns = {}
    for what, names in _COLUMNS.items():
        index = next((plain.index(name) for name in names if name in plain), None)
        if index is not None:
            columns[what] = index
    for here, there, needs in (("width", "w", "x"), ("height", "h", "y")):
        if "xmax" in columns and there in columns:
            columns.setdefault(here, columns.pop(there))
        elif needs in columns and there not in columns and here in columns:
            columns[there] = columns.pop(here)
    return columns


def _plain(name: str) -> str:
    """A column's name in small letters without signs; of the box's, "box" only before its sides."""
    text = re.sub(r"[^a-z0-9]", "", name.lower())
    of_box = re.sub(r"^(bnd|b)?box(?=.)", "", text)
    return f"box{of_box}" if of_box != text and of_box in ("width", "height") else of_box


def missing_columns(columns: dict[str, int]) -> list[str]:
    """Return what columns are needed beside those there are."""
    keys = _SIDES if {"x", "y"} <= columns.keys() and "xmin" not in columns else _CORNERS
    return [key for key in ("file", "class", *keys) if key not in columns]


def csv_file_names(path: Path) -> list[str]:
    """Return the names of the images in a CSV file; raises as `read_csv_file` does."""
    return list(dict.fromkeys(line.file_name for line in read_csv_file(path)))


def is_boxes_csv(path: Path) -> bool:
    """Return whether the first line of a CSV file has the columns that are needed."""
    if fault_of(path) is not None:
        return False
    with path.open("rb") as file:
        line = file.readline(1 << 16).decode("utf-8-sig", "replace").rstrip("\r\n")
    header = next(csv.reader([line], delimiter=max(",;\t", key=line.count)), [])
    return not missing_columns(columns_of([name.strip() for name in header]))

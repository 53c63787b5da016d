"""Annotation files in VOC's XML, which several data sets use, and what becomes of their objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse

from detres.class_map import ClassMap
from detres.console import one_line, shown
from detres.detection.annotations import Annotations
from detres.detection.data.assemble import Labelled, assembled
from detres.detection.data.box_policy import LARGEST_SIDE, AnnotationError, BoxPolicy
from detres.user_files import TextError, read_text, require_file
from detres.values import FLAG, flag_of, integer_of, number_of


class XmlObject(NamedTuple):
    """One object as written: `number` counts from 1 in its file, box is (xmin, ymin, xmax,
    ymax).
    """

    number: int
    name: str
    box: tuple[float, ...]
    difficult: bool


class XmlRecord(NamedTuple):
    """One XML file: size (h, w) px, 0 where it is not given, its objects, and the image file that
    it names ("" where none).
    """

    size: tuple[int, int]
    objects: list[XmlObject]
    file_name: str = ""


@dataclass(frozen=True)
class XmlImages:
    """The N images of a data set with what their XML files say.

    source: where they were read from, for messages. ids: (N,) str. files: N image files. paths: N
    XML files. records: N of them as read. told_apart: as Annotations have it.
    """

    source: str
    ids: np.ndarray
    files: Sequence[str]
    paths: Sequence[Path]
    records: Sequence[XmlRecord]
    told_apart: bool = False


def annotations_of(
    images: XmlImages,
    class_map: ClassMap,
    index_of_name: Mapping[str, int],
    *,
    corner: int,
    box_policy: BoxPolicy,
    notes: Sequence[str] = (),
) -> Annotations:
    """Return the data set; objects whose name is not in `index_of_name` are left out and counted.

    index_of_name: the name in the files -> index in `class_map`. corner: the number that the first
    pixel has in the files, 1 (VOC) or 0 (ILSVRC); their boxes are inclusive, so that the continuous
    ones are xmin - corner .. xmax - corner + 1. box_policy: see apply_box_policy; a box with xmax
    <= xmin or ymax <= ymin has no area. notes: what else is to be said. Raises what
    apply_box_policy raises.
    """
    objects = [item for record in images.records for item in record.objects]
    image_rows = np.repeat(
        np.arange(len(images.records)), [len(record.objects) for record in images.records]
    )

    def describe_row(row: int) -> str:
        item = objects[row]
        path = images.paths[image_rows[row]]
        return f"{path}: object {item.number} ({item.name}), bndbox {list(item.box)}"

    written = np.array([item.box for item in objects], np.float64).reshape(-1, 4)
    labelled = Labelled(
        source=images.source,
        ids=images.ids,
        files=images.files,
        sizes=np.array([record.size for record in images.records], np.int32).reshape(-1, 2),
        rows=image_rows.astype(np.int64),
        names=[item.name for item in objects],
        boxes=_continuous(written, corner, box_policy),
        written=written,
        describe_row=describe_row,
        difficult=np.array([item.difficult for item in objects], bool),
        notes=notes,
        told_apart=images.told_apart,
    )
    return assembled(labelled, class_map, index_of_name, box_policy)


def _continuous(inclusive: np.ndarray, corner: int, box_policy: BoxPolicy) -> np.ndarray:
    """Boxes (M, 4) float64 xyxy px of inclusive ones; "as_written" keeps corners that are swapped,
    and the side of one number is 0.
    """
    xyxy = inclusive - corner + np.array((0, 0, 1, 1))
    if box_policy == "as_written":
        first, last = inclusive[:, :2], inclusive[:, 2:]
        swapped = last < first  # it is the later pixel that stands first
        xyxy[:, :2] += swapped
        xyxy[:, 2:] -= swapped
        xyxy[:, 2:] = np.where(last == first, xyxy[:, :2], xyxy[:, 2:])
    elif box_policy != "keep":
        # A side of one number (xmin = xmax) is no area by the file's own reckoning, though 1 px
        # wide once continuous.
        flat = (inclusive[:, 2:] <= inclusive[:, :2]).any(axis=1)
        xyxy[flat, 2:] = xyxy[flat, :2]
    return xyxy


def read_xml(path: Path) -> XmlRecord:
    """Return what one annotation file says.

    Raises FileNotFoundError where there is no such file, AnnotationError naming it for XML that is
    malformed, no VOC annotation or declares entities, for an object without name or box, a flag
    that is none and a side beyond LARGEST_SIDE.
    """
    require_file(path, "annotation file")
    try:
        tree = parse(path, forbid_dtd=True).getroot()
    except DefusedXmlException as error:
        raise AnnotationError(
            f"{path}: refused, it declares a document type or entities ({type(error).__name__}); "
            "VOC files have none"
        ) from None
    except (ParseError, ValueError, LookupError) as error:
        raise AnnotationError(
            f"{path} is not well-formed XML: {error}{_encoding_hint(path)}"
        ) from None
    if tree.tag.lower() != "annotation":
        raise AnnotationError(
            f"{path} is no VOC annotation: its root is <{tree.tag}>, expected <annotation>"
        )
    return XmlRecord(
        (_read_side(tree, "height", path), _read_side(tree, "width", path)),
        [
            _read_object(node, number, path)
            for number, node in enumerate(tree.iter("object"), start=1)
        ],
        one_line((_text(tree, "filename") or "").strip()),
    )


def _encoding_hint(path: Path) -> str:
    """What to do about text in an undeclared encoding; nothing where it is in a known one."""
    try:
        read_text(path)
    except TextError as error:
        return f" ({error}, or declare its encoding)"
    return ""


def _read_side(tree: Element, side: str, path: Path) -> int:
    """The height or width in px; 0 where it is not given."""
    text = (_text(tree, f"size/{side}") or "").strip() or "0"
    pixels = integer_of(number_of(text))
    if pixels is None or not 0 <= pixels <= LARGEST_SIDE:
        raise AnnotationError(
            f"{path}: size must have the numbers width and height, whole px up to {LARGEST_SIDE}, "
            f"or be left out; {side} is {shown(text)}"
        )
    return pixels


def _text(node: Element, tag: str) -> str | None:
    """The text of an element, None without one; elements in it, where text alone belongs, as they
    are written, so that it reads as no number.
    """
    found = node.find(tag)
    if found is None:
        return None
    return "".join([found.text or "", *(f"<{child.tag}>{child.tail or ''}" for child in found)])


def _read_object(node: Element, number: int, path: Path) -> XmlObject:
    name = one_line((_text(node, "name") or "").strip())
    if not name or node.find("name/*") is not None:
        raise AnnotationError(f"{path}: object {number} has no name")
    box = tuple(
        number_of(_text(node, f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax")
    )
    if None in box:
        raise AnnotationError(
            f"{path}: object {number} ({name}) has no bndbox with the numbers xmin, ymin, "
            "xmax, ymax"
        )
    difficult = flag_of(_text(node, "difficult"))
    if difficult is None:
        raise AnnotationError(
            f"{path}: object {number} ({name}) has difficult "
            f"{shown(_text(node, 'difficult'))}, expected {FLAG}"
        )
    return XmlObject(number, name, box, difficult)

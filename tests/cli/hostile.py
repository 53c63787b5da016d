"""Hostile files and flags of every kind a command reads, made from small good ones.

A case writes its files into an empty folder and says which command reads them, what an error must
name, and whether the input is nonsense, which must be refused, or may also be read.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

DEEP = 100_000
"""Levels of nesting, beyond any parser's recursion."""


@dataclass(frozen=True)
class Case:
    """write: makes the files in a folder that is the working directory then. named: text of which
    an error names at least one. refused: reading it without an error would be accepting nonsense.
    said: what the output must tell where it is read.
    """

    name: str
    write: Callable[[Path], None]
    named: tuple[str, ...]
    refused: bool
    said: str = ""


class Raw:
    """Text that stands in a JSON file as it is."""

    def __init__(self, text: str) -> None:
        self.text = text


def dump(value: object) -> str:
    if isinstance(value, Raw):
        return value.text
    if isinstance(value, dict):
        inner = ", ".join(f"{json.dumps(key)}: {dump(item)}" for key, item in value.items())
        return f"{{{inner}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(dump, value))}]"
    return json.dumps(value)


# --- JSON: COCO annotations and results

SCENE = {
    "images": [
        {"id": 1, "file_name": "a.jpg", "width": 100, "height": 80},
        {"id": 2, "file_name": "b.jpg", "width": 100, "height": 80},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [10, 10, 30, 20], "area": 600,
         "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 3, "bbox": [5, 5, 30, 20], "area": 600,
         "iscrowd": 0},
    ],
    "categories": [{"id": 3, "name": "cat"}],
}  # fmt: skip
RESULTS = [
    {"image_id": 1, "category_id": 3, "bbox": [10.5, 10, 30, 20], "score": 0.9},
    {"image_id": 2, "category_id": 3, "bbox": [5, 6, 30, 20], "score": 0.4},
]

HUGE = Raw("9" * 400)
NESTED = Raw("[" * DEEP + "]" * DEEP)
STEERING = ("\x1b[31mred", "two\nlines", "\r0 faults", "\u202eesrever", "bell\x07", "\ud800")
"""Text that would change what a terminal shows."""
NO_NUMBERS = {
    "null": None,
    "text": "much",
    "empty text": "",
    "list": [1],
    "object": {"a": 1},
    "NaN": Raw("NaN"),
    "Infinity": Raw("Infinity"),
    "1e400": Raw("1e400"),
    "400 digits": HUGE,
    "nested": NESTED,
}
"""Nonsense wherever a number is expected."""


def _changed(document: object, keys: tuple, value: object) -> object:
    copy = json.loads(json.dumps(document))
    place = copy
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    return copy


def _json_cases(
    kind: str, file: str, document: object, changes: Iterator[tuple[tuple, str, object, bool]]
) -> Iterator[Case]:
    for keys, name, value, refused in changes:
        text = dump(_changed(document, keys, value))
        # such an area is the box's, by rule
        said = "replaced by the box's" if keys[-1] == "area" and not refused else ""
        yield Case(
            f"{kind} {'.'.join(map(str, keys))} = {name}",
            _writing({file: text.encode()}),
            (file,),
            refused,
            said if value is not None else "",
        )
    whole = {
        "empty": b"",
        "no JSON": b"images: []",
        "cut": dump(document).encode()[:-7],
        "two": dump(document).encode() * 2,
        "nested": NESTED.text.encode(),
        "nested objects": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
        "number": b"5",
        "text": b'"images"',
        "null": b"null",
        "binary": bytes(range(256)),
        "NUL": dump(document).encode() + b"\0",
        "latin-1": dump(document).replace("cat", "caf\u00e9").encode("latin-1")[:-1] + b"\xe9}",
        "gzip": zlib.compress(dump(document).encode()),
        "half a surrogate": dump(document).encode()[:-1] + b',"x":"\\ud800"',
        "half a character": b"\xff\xfe" + dump(document).encode("utf-16-le")[:-1],
        "a mark alone": b"\xef\xbb\xbf",
        "another mark": b"\xfe\xff" + dump(document).encode("utf-16-le"),
        "two marks": b"\xef\xbb\xbf\xef\xbb\xbf" + dump(document).encode(),
        "a mark within": dump(document).encode().replace(b"[", b"[\xef\xbb\xbf", 1),
        "lines": b"".join(dump(r).encode() + b"\n" for r in document),
        "single quotes": dump(document).replace('"', "'").encode(),
        "a comment": b"// made by hand\n" + dump(document).encode(),
        "a comma too many": dump(document).encode()[:-1] + b"," + dump(document).encode()[-1:],
    }
    for name, content in whole.items():
        yield Case(f"{kind}: {name}", _writing({file: content}), (file,), True)
    special: dict[str, Callable[[Path], object]] = {
        "FIFO": os.mkfifo,
        "folder": Path.mkdir,
        "dangling link": lambda path: path.symlink_to("gone"),
        "link to itself": lambda path: path.symlink_to(path.name),
        "device": lambda path: path.symlink_to("/dev/zero"),
    }
    for name, make in special.items():

        def write(folder: Path, make: Callable[[Path], object] = make) -> None:
            _writing({})(folder)
            (folder / file).unlink()
            make(folder / file)

        yield Case(f"{kind}: {name}", write, (file,), True)


def _writing(files: dict[str, bytes]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        good = {"truth.json": dump(SCENE).encode(), "found.json": dump(RESULTS).encode()}
        for name, content in {**good, **files}.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)

    return write


def coco_cases() -> Iterator[Case]:
    """Annotations, of which a command makes numbers."""

    def changes() -> Iterator[tuple[tuple, str, object, bool]]:
        numbers = [
            ("images", 0, "id"),
            ("images", 0, "width"),
            ("images", 1, "height"),
            ("annotations", 0, "id"),
            ("annotations", 0, "image_id"),
            ("annotations", 1, "category_id"),
            ("annotations", 1, "area"),
            ("annotations", 1, "bbox", 2),
            ("categories", 0, "id"),
        ]
        # may be left out, or is no size
        lenient = {("width", "null"), ("height", "null"), ("area", "null"), ("id", "null")}
        counted = {"NaN", "Infinity", "1e400", "400 digits", "null"}  # boxes the box policy drops
        for keys in numbers:
            for name, value in NO_NUMBERS.items():
                allowed = (keys[-1], name) in lenient or (
                    keys[-1] in (2, "area") and name in counted
                )
                yield keys, name, value, not allowed
        for name in ("text", "list", "object", "400 digits", "nested", "NaN"):
            yield ("annotations", 0, "iscrowd"), name, NO_NUMBERS[name], True
        for value in (2, -1, 0.5, "yes indeed"):
            yield ("annotations", 0, "iscrowd"), str(value), value, True
        for value in (
            None,
            "text",
            5,
            {},
            [1, 2, 3],
            [1, 2, 3, 4, 5],
            [[1, 2, 3, 4]],
            [],
            ["a"] * 4,
        ):
            yield ("annotations", 0, "bbox"), dump(value), value, True
        for keys in (("images", 0, "file_name"), ("categories", 0, "name")):
            for value in (None, 5, [], {}, ""):
                yield keys, dump(value), value, True
        for name in ("images", "annotations", "categories"):
            for value in (None, 5, "text", {}, [5], [None], [[]]):
                yield (name,), dump(value), value, True
        yield ("images", 1, "id"), "given twice", 1, True
        yield ("categories",), "given twice", SCENE["categories"] * 2, True
        yield ("annotations", 0, "image_id"), "of no image", 77, True
        yield ("annotations", 0, "category_id"), "of no category", 77, True
        yield ("images", 0, "width"), "negative", -5, True
        yield ("images", 0, "width"), "10^12", 10**12, True
        yield ("images", 0, "id"), "2^70", 2**70, True
        for text in STEERING:
            yield ("categories", 0, "name"), repr(text), text, False
            yield ("images", 0, "file_name"), repr(text), text, False
        yield ("categories", 0, "name"), "long", "x" * 100_000, False
        yield ("images", 0, "file_name"), "NUL", "a\0.jpg", True
        yield ("annotations", 0, "bbox"), "text", ["1", "2", "3", "x"], True
        yield ("annotations", 0, "bbox"), "bool", [True, 1, 1, 1], True

    return _json_cases("annotations", "truth.json", SCENE, changes())


def coco_image_cases(root: Path) -> Iterator[Case]:
    """A copy of a COCO folder as `data`, one of whose training images is called, or is, something
    else.
    """
    content = json.loads((root / "annotations/train.json").read_text())
    first = content["images"][0]["file_name"]

    def changed(change: Callable[[Path], object], name: object = first) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            shutil.copytree(root, folder / "data")
            changed_file = _changed(content, ("images", 0, "file_name"), name)
            (folder / "data/annotations/train.json").write_text(dump(changed_file))
            change(folder / "data/train" / first)

        return write

    names = ("../../../etc/passwd", "/etc/passwd", "..\\..\\passwd", "C:\\passwd", "..", ".", "/",
             "a\0b", "x" * 5000, "x/" * 3000, "http://localhost/a.jpg", "file:///etc/passwd", "",
             " ", "%2e%2e/%2e%2e/passwd", "~/a.jpg", "$(touch it_ran)", "*", *STEERING)  # fmt: skip
    for name in names:
        write = changed(lambda _: None, name)
        yield Case(f"file_name {name[:20]!r}", write, ("train.json", "data/train"), True)

    def instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
        return lambda path: (path.unlink(), make(path))

    files = {
        "FIFO": os.mkfifo,
        "folder": Path.mkdir,
        "dangling link": lambda path: path.symlink_to("gone"),
        "link to itself": lambda path: path.symlink_to(path.name),
        "device": lambda path: path.symlink_to("/dev/zero"),
        "empty": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_bytes(b"hello"),
        "bomb": lambda path: path.write_bytes(png(100_000, 100_000)),
        "nothing": lambda _: None,
    }
    for name, make in files.items():
        yield Case(f"image: {name}", changed(instead(make)), (first,), True)


def results_cases() -> Iterator[Case]:
    """Results in COCO's format."""

    def changes() -> Iterator[tuple[tuple, str, object, bool]]:
        for row, key in ((0, "image_id"), (1, "category_id"), (1, "score")):
            for name, value in NO_NUMBERS.items():
                yield (row, key), name, value, True
        for name, value in NO_NUMBERS.items():
            yield (0, "bbox", 1), name, value, True
        for value in (None, "text", 5, {}, [1, 2, 3], [1, 2, 3, 4, 5], [[1, 2, 3, 4]], []):
            yield (0, "bbox"), dump(value), value, True
        for value in (None, 5, "text", []):
            yield (1,), dump(value), value, True
        yield (0, "image_id"), "2^70", 2**70, True
        yield (0, "image_id"), "1.5", 1.5, True
        yield (0, "image_id"), "bool", True, True
        yield (1, "category_id"), "bool", True, True
        yield (1, "score"), "bool", True, True
        yield (0, "bbox"), "1e300", [1, 1, 1e300, 1], True
        yield (0, "bbox"), "negative", [1, 1, -3, 4], True
        for text in ("0,5", "1_0", "0x10", "\u0661", "NaN", "1e400", "1 2", "--1"):
            yield (1, "score"), f"text {text}", text, True
            yield (0, "bbox", 3), f"text {text}", text, True
        for text in ("1_0", "0x1", "\u0661", "1e0", "1.5", "9" * 400, "", *STEERING):
            yield (0, "image_id"), f"text {text[:9]!r}", text, True
            yield (1, "category_id"), f"text {text[:9]!r}", text, True
        yield (0, "image_id"), "long", "x" * 10**6, True
        yield (0, "category_id"), "0.5", 0.5, True

    return _json_cases("results", "found.json", RESULTS, changes())


# --- VOC: XML and comp4 text

XML = (
    "<annotation><size><width>100</width><height>80</height></size><object><name>cat</name>"
    "<difficult>0</difficult><bndbox><xmin>10</xmin><ymin>10</ymin><xmax>40</xmax><ymax>30</ymax>"
    "</bndbox></object></annotation>"
)


def _write_voc(xml: bytes, comp4: bytes, listed: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name in ("Annotations", "ImageSets/Main", "JPEGImages", "results"):
            (folder / "VOC2007" / name).mkdir(parents=True)
        (folder / "VOC2007/Annotations/b.xml").write_text(XML)
        (folder / "VOC2007/Annotations/a.xml").write_bytes(xml)
        (folder / "VOC2007/ImageSets/Main/test.txt").write_bytes(listed)
        for stem in ("a", "b"):
            image = np.zeros((80, 100, 3), np.uint8)
            cv2.imwrite(str(folder / f"VOC2007/JPEGImages/{stem}.jpg"), image)
        (folder / "VOC2007/results/comp4_det_test_cat.txt").write_bytes(comp4)

    return write


OF_CAT, OF_DOG = "comp4_det_test_cat.txt", "comp4_det_test_dog.txt"
COMP4 = b"a 0.9 10 10 40 30\nb 0.4 11 10 40 30\n"


def voc_cases() -> Iterator[Case]:
    """One annotation file, list or detections file of a folder in VOC layout."""
    values = ["", "much", "nan", "inf", "1e12", "1e400", "9" * 400, "-5e9", "0x10", "1,5", "<b/>"]
    for tag, good in (("xmin", "10"), ("ymax", "30"), ("width", "100"), ("height", "80")):
        for value in values:
            xml = XML.replace(f"<{tag}>{good}<", f"<{tag}>{value}<")
            size = tag in ("width", "height")
            dropped = value in ("nan", "inf", "1e400", "1e12", "-5e9", "9" * 400)
            yield Case(
                f"VOC {tag} = {value[:12]}",
                _write_voc(xml.encode(), COMP4, b"a\nb\n"),
                ("a.xml",),
                not (dropped and not size) and not (size and value in ("", "nan")),
            )
    for value in ("maybe", "[]", "nan", "-7"):
        xml = XML.replace("<difficult>0<", f"<difficult>{value}<")
        yield Case(
            f"VOC difficult = {value}",
            _write_voc(xml.encode(), COMP4, b"a\nb\n"),
            ("a.xml",),
            True,
        )
    for tag in ("bndbox", "name", "xmin"):
        xml = XML.replace(f"<{tag}>", f"<x{tag}>").replace(f"</{tag}>", f"</x{tag}>")
        yield Case(
            f"VOC without {tag}", _write_voc(xml.encode(), COMP4, b"a\nb\n"), ("a.xml",), True
        )
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 10))
    bomb = f'<!DOCTYPE x [<!ENTITY e0 "ha">{entities}]><annotation>&e9;</annotation>'
    outside = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><annotation>&e;</annotation>'
    whole = {
        "empty": b"",
        "no XML": b"hello",
        "cut": XML.encode()[:60],
        "binary": bytes(range(256)),
        "nested": b"<a>" * DEEP + b"</a>" * DEEP,
        "entities": bomb.encode(),
        "another file": outside.encode(),
        "unknown encoding": b'<?xml version="1.0" encoding="klingon"?>' + XML.encode(),
        "other root": b"<html><body/></html>",
        "two roots": XML.encode() * 2,
        "NUL": XML.encode().replace(b"cat", b"c\0t"),
        "text for a root": b"annotation",
        "cut character": '<annotation encoding="\u00e9'.encode()[:-1],
        "control character": XML.encode().replace(b"cat", b"c\x1bt"),
        "control character, as a reference": XML.encode().replace(b"cat", b"c&#27;t"),
        "no such entity": XML.encode().replace(b"cat", b"&nobody;"),
        "empty name": XML.encode().replace(b"cat", b" \n "),
        "long attribute": b'<annotation x="' + b"y" * 10**6 + b"<",
    }
    for name, xml in whole.items():
        yield Case(f"VOC XML: {name}", _write_voc(xml, COMP4, b"a\nb\n"), ("a.xml",), True)
    lists = {
        "missing image": b"a\nb\nzzz\n",
        "empty": b"",
        "binary": bytes(range(128, 256)),
        "path": b"../../etc/passwd\n",
        "absolute": b"/etc/passwd\n",
        "NUL": b"a\0\n",
        "twice": b"a\na\nb\n",
        "wrong columns": b"a 1 2 3 4\n",
        "control characters": b"a\n\x1b[31mred\n",
        "long": b"a\n" + b"x" * 10**6,
        "half a character": b"\xff\xfea\0b",
    }
    for name, text in lists.items():
        case = _write_voc(XML.encode(), COMP4, text)
        yield Case(f"VOC list: {name}", case, ("test.txt", "zzz"), True)
    lines = {
        "five columns": b"a 0.9 10 10 40\n",
        "seven columns": b"a 0.9 10 10 40 30 5\n",
        "text": b"a much 10 10 40 30\n",
        "nan": b"a nan 10 10 40 30\n",
        "inf": b"a 0.9 10 inf 40 30\n",
        "1e400": b"a 0.9 1e400 10 40 30\n",
        "400 digits": b"a 0.9 10 10 40 " + b"9" * 400 + b"\n",
        "binary": bytes(range(256)),
        "JSON": dump(RESULTS).encode(),
        "hex": b"a 0x1 10 10 40 30\n",
        "commas": b"a,0.9,10,10,40,30\n",
        "NUL": b"a 0.9 10 10 40 3\0\n",
        "underscore": b"a 0.9 1_0 10 40 30\n",
        "other digits": "a 0.9 \u0661\u0660 10 40 30\n".encode(),
        "latin-1": b"caf\xe9 0.9 10 10 40 30\n",
        "half a character": "a 0.9 10 10 40 30\n".encode("utf-16")[:-1],
        "another image": b"zzz 0.9 10 10 40 30\n",
        "control characters": b"\x1b[31m 0.9 10 10 40 30\n",
        "long": b"z" * 10**6 + b" 0.9 10 10 40 30\n",
        "long, without numbers": b"z" * 10**6,
        "reversed": b"a 0.9 40 30 10 10\n",
        "1e10": b"a 0.9 10 10 1e10 30\n",
        "header": b"image score x1 y1 x2 y2\na 0.9 10 10 40 30\n",
    }
    for name, text in lines.items():
        case = _write_voc(XML.encode(), text, b"a\nb\n")
        yield Case(f"comp4: {name}", case, ("comp4_det_test_cat.txt",), True)
    yield from _comp4_folders()


def _comp4_folders() -> Iterator[Case]:
    """Folders of results files of which one is something else."""
    odd: dict[str, tuple[Callable[[Path], object], str, bool]] = {
        "nothing": (lambda results: (results / OF_CAT).unlink(), "results", True),
        "a FIFO": (lambda results: os.mkfifo(results / OF_DOG), OF_DOG, True),
        "a folder": (lambda results: (results / OF_DOG).mkdir(), OF_DOG, True),
        "a dangling link": (lambda results: (results / OF_DOG).symlink_to("gone"), OF_DOG, True),
        "a device": (lambda results: (results / OF_DOG).symlink_to("/dev/zero"), OF_DOG, True),
        "two results": (
            lambda results: (results / "comp3_det_test_cat.txt").write_bytes(COMP4),
            "comp3",
            True,
        ),
        "two splits": (
            lambda results: (results / "comp4_det_val_dog.txt").write_bytes(COMP4),
            "val",
            True,
        ),
        "another class": (
            lambda results: (results / OF_CAT).rename(results / "comp4_det_test_klingon.txt"),
            "klingon",
            True,
        ),
        "a class that steers": (  # of none of the classes: left out, by name
            lambda results: (results / "comp4_det_test_\x1b[31m\n.txt").write_bytes(COMP4),
            OF_CAT,
            False,
        ),
        "many classes": (
            lambda results: [(results / f"comp4_det_test_c{n}.txt").touch() for n in range(2000)],
            OF_CAT,
            False,
        ),
    }
    for name, (change, named, refused) in odd.items():

        def write(folder: Path, change: Callable[[Path], object] = change) -> None:
            _write_voc(XML.encode(), COMP4, b"a\nb\n")(folder)
            change(folder / "VOC2007/results")

        yield Case(f"comp4 folder: {name}", write, (named,), refused)


# --- settings: YAML and --set

YAML = "name: tiny\ndata: {format: shapes}\ntrain: {steps: 2}\n"


def yaml_cases() -> Iterator[Case]:
    """A configuration file; the data folder that goes with it is not there."""
    laughs = "a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
    )
    texts = {
        "list": "- a\n",
        "number": "5\n",
        "text": "hello\n",
        "null": "null\n",
        "tab": "name: t\n\tdata: 1\n",
        "unclosed": "name: [\n",
        "twice": YAML + "name: other\n",
        "twice, nested": "name: t\ndata: {format: shapes}\ntrain: {steps: 1, steps: 2}\n",
        "tag": "name: !!python/object/apply:os.system [echo]\n",
        "unknown tag": "name: !x y\n",
        "self": "name: &a [*a]\n",
        "self, merged": "train: &a\n  <<: *a\n",
        "laughs": laughs,
        "deep lists": "name: " + "[" * DEEP + "]" * DEEP,
        "deep maps": "name: " + "{a: " * 3000 + "1" + "}" * 3000,
        "two documents": YAML + "---\n" + YAML,
        "number as key": YAML + "5: 6\n",
        "list as key": YAML + "? [a]\n: b\n",
        "null as key": YAML + "~: 1\n",
        "long key": YAML + "k" * 10**6 + ": 1\n",
        "unknown anchor": "name: *nobody\n",
        "control character": "name: \x07bell\n",
        "escape": 'name: "\\e[31mred"\n',
        "path as name": "name: ../../evil\ndata: {format: shapes}\ntrain: {steps: 2}\n",
        "400 digits": f"name: t\ndata: {{format: shapes}}\ntrain: {{steps: {'9' * 400}}}\n",
        "5000 digits": f"name: t\ndata: {{format: shapes}}\ntrain: {{steps: {'9' * 5000}}}\n",
        "date": "name: t\ndata: {format: shapes}\ntrain: {steps: 2024-05-01}\n",
        "bad date": "name: t\ndata: {format: shapes}\ntrain: {steps: 2024-99-99}\n",
        "sexagesimal": "name: t\ndata: {format: shapes}\ntrain: {lr: 1:30:00, steps: 2}\n",
        "no shapes": "name: t\ndata: {format: klingon}\ntrain: {steps: 2}\n",
        "bool": "name: t\ndata: {format: shapes}\ntrain: {steps: yes}\n",
        "binary tag": "name: !!binary aGVsbG8=\n",
        "set": "name: !!set {a, b}\n",
        "merge of a number": YAML + "<<: 5\n",
        "merge of a list of numbers": YAML + "<<: [1, 2]\n",
        "merge of nobody": YAML + "<<: *nobody\n",
        "merge, in quotes": YAML + "'<<': {seed: 1}\n",
        "merge into a list": "name: [<<: {a: b}]\n",
        "merged foreign key": YAML + "<<: {klingon: 1}\n",
        "merges of merges": "a0: &a0 {x: 1}\n"
        + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 9)),
        "long tag": f"name: !{'x' * 9999} y\n",
        "long anchor": f"name: *{'x' * 9999}\n",
        "long text": f"name: t\ndata: {{format: '{'x' * 100_000}'}}\n",
        "many keys": YAML + "".join(f"key{n}: 1\n" for n in range(10_000)),
        "key that steers": YAML + '"\\e[31mred": 1\n',
        "key of two lines": YAML + '"a\\nb": 1\n',
        "half a surrogate": YAML + '"\\ud800": 1\n',
        "directive": "%YAML 9.9\n---\n" + YAML + "klingon: 1\n",
        "unclosed quote": "name: 'tiny\n",
        "JSON of nothing": "{}",
    }
    for name, text in texts.items():
        write = _writing({"bad.yaml": text.encode()})
        yield Case(f"YAML: {name}", write, ("bad.yaml",), True)
    raw = {
        "binary": bytes(range(256)),
        "latin-1": YAML.encode() + b"# caf\xe9\n",
        "NUL": YAML.encode() + b"\0",
        "UTF-16 without a mark": YAML.encode("utf-16-le"),
        "UTF-32 without a mark": YAML.encode("utf-32-be"),
        "gzip": zlib.compress(YAML.encode()),
        "half a character": YAML.encode() + b"\xc3",
        "surrogate": YAML.encode() + b"# \xed\xa0\x80\n",
    }
    for name, content in raw.items():
        yield Case(f"YAML: {name}", _writing({"bad.yaml": content}), ("bad.yaml",), True)
    yield Case("YAML: folder", lambda folder: (folder / "bad.yaml").mkdir(), ("bad.yaml",), True)
    yield Case("YAML: FIFO", lambda folder: os.mkfifo(folder / "bad.yaml"), ("bad.yaml",), True)
    yield Case(
        "YAML: dangling link",
        lambda folder: (folder / "bad.yaml").symlink_to("gone"),
        ("bad.yaml",),
        True,
    )
    yield Case(
        "YAML: link to itself",
        lambda folder: (folder / "bad.yaml").symlink_to("bad.yaml"),
        ("bad.yaml",),
        True,
    )


SETTINGS = (
    "", "=", "a", "=1", "train.lr", "train.lr=", "train.lr=nan", "train.lr=.nan", "train.lr=inf",
    "train.lr=.inf", "train.lr=-1", "train.lr=0", "train.lr=1e400", "train..lr=1", ".=1", "..=1",
    "train.lr.x=1", "train.lr.=1", ".train.lr=1", "train=5", "train=[", "train={}", "train=null",
    "train.lr={a: b}", "train.lr=[1]", "train.lr=!!python/name:os.system", "train.steps=1e30",
    "train.steps=0", "train.steps=-1", "train.steps=1.5", "train.steps=true", "train.steps=nan",
    "train.batch_size=0", "train.batch_size=two", "train.momentum=1.5", "train.gamma=-1",
    "train.clip_grad_norm=0", "train.clip_grad_norm=-1", "train.weight_decay=-1",
    "train.weight_decay=nan", "train.warmup_steps=-1", "train.milestones=[2, 1]",
    "train.milestones=[nan]", "train.milestones=[-1]", "train.milestones=5", "train.lr=&a [*a]",
    "model.anchors.sizes=[]", "model.anchors.sizes=[0]", "model.anchors.sizes=[-4]",
    "model.anchors.sizes=[nan]", "model.anchors.sizes=[.inf]", "model.anchors.aspect_ratios=[0]",
    "model.anchors.style=klingon", "model.input.std=[0, 0, 0]", "model.input.std=[1, 1]",
    "model.input.mean=[nan, 1, 1]", "model.input.short_side=0", "model.input.short_side=-5",
    "model.rpn.nms_thresh=2", "model.rpn.nms_thresh=nan", "model.rpn.min_size=-1",
    "model.rpn.fg_iou_thresh=0.1", "model.rpn.batch_size=0", "model.roi.pool=klingon",
    "model.roi.pool_size=0", "model.roi.box_weights=[1, 1]", "model.roi.box_weights=[nan, 1, 1, 1]",
    "model.roi.smooth_l1_beta=-1", "model.roi.smooth_l1_beta=nan", "model.roi.score_thresh=2",
    "model.backbone.freeze_at=9",
    "data.format=null", "data.workers=-1", "data.shapes_train=0", "data.flip=2", "data.color=nan",
    "eval.protocol=klingon", "eval.batch_size=0", "name=", "name=a/b", "name=..", "name=.",
    "seed=-1", "seed=1e99", "eval={protocol: voc07, protocol: coco}", "a" * 100_000 + "=1",
    "train.lr=" + "[" * 5000, "train.lr=" + "9" * 5000, "tr\x1b[31main.lr=1", "train.lr=1\n2: 3",
    "a." * 50_000 + "b=1", "train." + "b" * 100_000 + "=1", "train.lr=" + "x" * 100_000,
    "train.lr=!" + "y" * 9999, "train.lr=*" + "z" * 9999, "train.milestones=" + "[2, 1]" * 2,
    "train.lr={<<: {a: 1}}", "train.lr=<<", "train.<<=1", "<<.lr=1", "<<={lr: 1}", "data=[]",
    "train.lr=\x1b[31m", "train.lr='\n\n\n\n\n'", "model.anchors.sizes=" + str([-1] * 50_000),
    "seed=\udcff", "\udcff=1", "name=\u202e", "name=" + "x" * 5000,
    "data.train=5", "data.train=[[a]]", "data.train=[null]", "data.outside=klingon",
    "data.box_policy=klingon", "data.shapes_val=-1", "data.damaged=klingon",
    "eval.batch_size=1e3", "train.steps=9223372036854775808", "seed=18446744073709551616",
)  # fmt: skip
"""Values of --set that no configuration takes."""


# --- archives of weights


def pickled(value: object) -> bytes:
    return pickle.dumps(value, protocol=2)


def torch_zip(data: bytes, **more: bytes) -> bytes:
    """An archive laid out as torch.save's, with `data` as its pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", b"little")
        archive.writestr("archive/version", b"3\n")
        for name, content in more.items():
            archive.writestr(f"archive/data/{name}", content)
    return buffer.getvalue()


NO_METADATA = {
    "empty": "", "null": "null", "number": "5", "text": '"x"', "list": "[]", "cut": "{",
    "object": '{"klingon": 1}', "nested": NESTED.text, "5000 digits": "9" * 5000, "NaN": "NaN",
    "steering": "\x1b[31m\n\n\n\n", "long": '"' + "x" * 10**6 + '"',
}  # fmt: skip


def metadata_changes(
    metadata: dict[str, str], inner: dict[str, list[object]]
) -> Iterator[tuple[str, dict[str, str], bool]]:
    """Name, metadata with one entry that is something else, and whether that is nonsense.

    inner: dotted key inside one of the entries that are JSON -> values that it cannot have.
    """
    for key in metadata:
        if key == "sha256":  # made anew for each
            continue
        yield f"without {key}", {k: v for k, v in metadata.items() if k != key}, False
        for name, value in NO_METADATA.items():
            # the step is told, and the backbone's own facts are for those who take it alone
            nonsense = key not in ("step", "backbone")
            yield f"{key} = {name}", {**metadata, key: value}, nonsense
    for place, values in inner.items():
        key, *keys = place.split(".")
        for value in values:
            text = dump(_changed(json.loads(metadata[key]), tuple(keys), value))
            yield f"{place} = {text_of(value)}", {**metadata, key: text}, True


def text_of(value: object) -> str:
    return dump(value)[:30]


def weights_cases(safetensors: bytes, bare: bytes) -> Iterator[Case]:
    """Files that are given as weights: damaged copies of a good one of either kind, and others."""
    rng = np.random.default_rng(0)
    for suffix, content in ((".safetensors", safetensors), (".pth", bare)):
        file = f"bad{suffix}"
        for number in range(20):
            place = int(rng.integers(len(content)))
            flipped = bytearray(content)
            flipped[place] ^= 1 << int(rng.integers(8))
            yield Case(
                f"{suffix}: bit {number} flipped at {place}",
                _writing({file: bytes(flipped)}),
                (file,),
                suffix == ".safetensors",  # of a zip, bytes that nothing reads may differ
            )
        for number in range(10):
            place = int(rng.integers(len(content)))
            write = _writing({file: content[:place]})
            yield Case(f"{suffix}: cut {number} at {place}", write, (file,), True)
        for number in range(10):
            place = int(rng.integers(len(content) - 600))
            zeroed = content[:place] + bytes(512) + content[place + 512 :]
            write = _writing({file: zeroed})
            yield Case(f"{suffix}: zeros {number} at {place}", write, (file,), zeroed != content)
    header = struct.unpack("<Q", safetensors[:8])[0]
    text = safetensors[8 : 8 + header]
    rest = safetensors[8 + header :]

    def with_header(new: bytes) -> bytes:
        return struct.pack("<Q", len(new)) + new + rest

    others = {
        "empty.safetensors": b"",
        "short.safetensors": b"\1\2\3",
        "length.safetensors": struct.pack("<Q", 2**63) + text,
        "long.safetensors": struct.pack("<Q", 10**12) + text + rest,
        "nested.safetensors": with_header(b"[" * DEEP),
        "list.safetensors": with_header(b"[]"),
        "no_tensors.safetensors": with_header(b"{}"),
        "digits.safetensors": with_header(
            b'{"a":{"dtype":"F32","shape":[' + b"9" * 400 + b'],"data_offsets":[0,4]}}'
        ),
        "overlap.safetensors": with_header(
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
            b'"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}'
        ),
        "page.pth": b"<!DOCTYPE html><html>Not found</html>",
        "pointer.pth": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        "page.safetensors": b"<!DOCTYPE html><html>Not found</html>",
        "text.pth": b"hello",
        "empty.pth": b"",
        "zip.pth": torch_zip(b""),
        "list.pth": torch_zip(pickled([1, 2])),
        "number.pth": torch_zip(pickled(5)),
        "system.pth": torch_zip(b"cos\nsystem\n(S'touch it_ran'\ntR."),
        "self.pth": torch_zip(b"\x80\x02]q\x00h\x00a."),
        "deep.pth": torch_zip(b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b"."),
        "memo.pth": torch_zip(b"\x80\x02r\xff\xff\xff\x7f."),
        "frames.pth": torch_zip(b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"."),
        "text_of_2_GB.pth": torch_zip(b"\x80\x02X\xff\xff\xff\x7fab."),
        "long_integer.pth": torch_zip(b"\x80\x02\x8b\xff\xff\xff\x7f1."),
        "old.pth": pickled({"conv1.weight": 5}),
    }
    for file, content in others.items():
        yield Case(f"weights: {file}", _writing({file: content}), (file,), True)


# --- pictures


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG file that declares a size, whatever it holds."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def picture_cases() -> Iterator[Case]:
    """One file among two good pictures: passed over with its name, or refused by it."""
    rng = np.random.default_rng(0)
    good = cv2.imencode(".jpg", rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))[1].tobytes()
    whole_png = cv2.imencode(".png", rng.integers(0, 255, (60, 80, 3), dtype=np.uint8))[1].tobytes()
    contents = {
        "empty.jpg": b"",
        "byte.jpg": b"\xff",
        "text.jpg": b"hello",
        "page.png": b"<!DOCTYPE html>",
        "cut.jpg": good[: len(good) // 2],
        "cut.png": whole_png[: len(whole_png) // 2],
        "start.jpg": good[:20],
        "declared.png": png(100_000, 100_000),
        "negative.png": png(0xFFFFFFFF, 0xFFFFFFFF),
        "nothing.png": png(0, 0),
        "no_data.png": png(80, 60),
        "bomb.png": png(30_000, 30_000, bytes(30_000)),
        "zeros.jpg": bytes(1000),
        "loop.tiff": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
        "declared.bmp": b"BM" + struct.pack("<IHHIIiiHH", 54, 0, 0, 54, 40, 2**30, 2**30, 1, 24),
        "cut.webp": b"RIFF\xff\xff\xff\x7fWEBPVP8 \xff\xff\xff\x7f",
        "npy.png": b"\x93NUMPY\x01\x00",
        "zip.jpg": torch_zip(b""),
    }
    for number in range(12):
        broken = bytearray(good)
        for place in rng.integers(len(good), size=40):
            broken[place] = int(rng.integers(256))
        contents[f"noise{number}.jpg"] = bytes(broken)
    for name, content in contents.items():
        refused = not name.startswith("noise")
        yield Case(f"picture {name}", _pictures({name: content}, good), (name,), refused)

    def special(make: Callable[[Path], None]) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            _pictures({}, good)(folder)
            make(folder / "photos/odd.jpg")

        return write

    for name, content in _strange_pictures(good, whole_png).items():
        yield Case(f"picture {name}", _pictures({name: content}, good), (name,), False)

    made = {
        "FIFO": os.mkfifo,
        "folder": Path.mkdir,
        "dangling link": lambda path: path.symlink_to("gone"),
        "link to itself": lambda path: path.symlink_to(path.name),
        "link to a device": lambda path: path.symlink_to("/dev/zero"),
        "no permission": lambda path: (path.write_bytes(b"x"), path.chmod(0)),
    }
    for name, make in made.items():
        yield Case(f"picture: {name}", special(make), ("odd.jpg",), name != "folder")


def _strange_pictures(jpeg: bytes, whole_png: bytes) -> dict[str, bytes]:
    """Pictures that can be seen, with something beside the pixels that is damaged or too much."""
    rng = np.random.default_rng(1)

    def segment(marker: int, content: bytes) -> bytes:
        return jpeg[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + jpeg[2:]

    def exif(*entries: bytes, offset: int = 8) -> bytes:
        table = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
        return segment(0xE1, b"Exif\0\0II*\0" + struct.pack("<I", offset) + table)

    def entry(tag: int, kind: int, count: int, value: int) -> bytes:
        return struct.pack("<HHII", tag, kind, count, value)

    def with_chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        chunk = struct.pack(">I", len(content)) + kind + content + checksum
        return whole_png[:33] + chunk + whole_png[33:]  # behind the signature and IHDR

    strange = {
        f"orientation_{value}.jpg": exif(entry(0x112, 3, 1, value)) for value in (0, 9, 65535)
    }
    strange |= {
        "orientation_text.jpg": exif(entry(0x112, 2, 4, 0x41414141)),
        "orientation_twice.jpg": exif(entry(0x112, 3, 1, 6), entry(0x112, 3, 1, 3)),
        "orientation_2_32.jpg": exif(entry(0x112, 3, 2**32 - 1, 6)),
        "orientation_of_no_type.jpg": exif(entry(0x112, 999, 1, 6)),
        "exif_far.jpg": exif(entry(0x112, 3, 1, 6), offset=2**32 - 1),
        "exif_loop.jpg": exif(entry(0x8769, 4, 1, 8), entry(0x8825, 4, 1, 8)),
        "exif_many.jpg": exif(*[entry(0x112, 3, 1, 6)] * 5000),
        "exif_empty.jpg": segment(0xE1, b"Exif\0\0"),
        "exif_cut.jpg": segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0\xff\xff"),
        "icc.jpg": segment(0xE2, b"ICC_PROFILE\0\x01\x01" + bytes(rng.integers(256, size=300))),
        "adobe.jpg": segment(0xEE, b"Adobe\0d\0\0\0\0\x02"),
        "comment.jpg": segment(0xFE, b"\x1b[31m" * 1000),
        "xmp.jpg": segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta" + b"<a>" * 9999),
        "tail.jpg": jpeg + bytes(10**6),
        "exif.png": with_chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
        "text.png": with_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200 << 20))),
        "profile.png": with_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(200 << 20))),
        "palette.png": with_chunk(b"PLTE", b"\1\2"),
        "gamma.png": with_chunk(b"gAMA", bytes(4)),
        "animated.png": with_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)),
        "chunk.png": with_chunk(b"\x1b[3m", b"x"),
        "two_headers.png": with_chunk(b"IHDR", struct.pack(">IIBBBBB", 9**9, 9**9, 8, 2, 0, 0, 0)),
    }
    for number in range(8):
        noise = bytes(rng.integers(256, size=200, dtype=np.uint8))
        strange[f"exif_noise{number}.jpg"] = segment(0xE1, b"Exif\0\0II*\0\x08\0\0\0" + noise)
    return strange


def _pictures(more: dict[str, bytes], good: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "photos").mkdir()
        for name, content in {"a.jpg": good, "z.jpg": good, **more}.items():
            (folder / "photos" / name).write_bytes(content)

    return write


# --- classification: class folders and shards


def class_folder_cases() -> Iterator[Case]:
    """train/CLASS/ and val/CLASS/ with something in it that is no image, or too little."""
    good = cv2.imencode(".jpg", np.full((40, 48, 3), 90, np.uint8))[1].tobytes()

    def folder_with(change: Callable[[Path], object]) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            for split in ("train", "val"):
                for name in ("cat", "dog"):
                    (folder / "classes" / split / name).mkdir(parents=True)
                    for n in range(3):
                        (folder / "classes" / split / name / f"{n}.jpg").write_bytes(good)
            change(folder / "classes")

        return write

    odd = {
        "FIFO": lambda root: os.mkfifo(root / "train/cat/odd.jpg"),
        "dangling link": lambda root: (root / "train/cat/odd.jpg").symlink_to("gone"),
        "link to itself": lambda root: (root / "train/cat/odd.jpg").symlink_to("odd.jpg"),
        "device": lambda root: (root / "train/cat/odd.jpg").symlink_to("/dev/zero"),
        "empty": lambda root: (root / "train/cat/odd.jpg").write_bytes(b""),
        "cut": lambda root: (root / "train/cat/odd.jpg").write_bytes(good[:300]),
        "bomb": lambda root: (root / "train/cat/odd.jpg").write_bytes(png(100_000, 100_000)),
        "text": lambda root: (root / "val/dog/odd.jpg").write_bytes(b"hello"),
        "val dangling": lambda root: (root / "val/dog/odd.jpg").symlink_to("gone"),
        "val FIFO": lambda root: os.mkfifo(root / "val/dog/odd.jpg"),
    }
    for name, change in odd.items():
        yield Case(f"class folder: {name}", folder_with(change), ("odd.jpg",), True)

    def without(*parts: str) -> Callable[[Path], None]:
        def change(root: Path) -> None:
            for part in parts:
                for path in sorted((root / part).rglob("*"), reverse=True):
                    path.unlink() if path.is_file() else path.rmdir()

        return change

    def instead(part: str) -> Callable[[Path], None]:
        def change(root: Path) -> None:
            without(part)(root)
            (root / part).rmdir()
            (root / part).write_text("a file")

        return change

    structures = {
        "a class without images": (without("train/cat"), "cat"),
        "no images": (without("train/cat", "train/dog"), "train"),
        "no classes": (without("train"), "train"),
        "a file for a split": (instead("train"), "train"),
        "a file for val": (instead("val"), "val"),
        "another class in val": (lambda root: (root / "val/cat").rename(root / "val/cow"), "cow"),
    }
    for name, (change, named) in structures.items():
        yield Case(f"class folder: {name}", folder_with(change), (named,), True)
    for name in ODD_NAMES:
        odd_class = Path(os.fsdecode(name))

        def renamed(root: Path, odd_class: Path = odd_class) -> None:
            for split in ("train", "val"):
                (root / split / "cat").rename(root / split / odd_class)

        def odd_file(root: Path, odd_class: Path = odd_class) -> None:
            (root / "train/cat" / f"{str(odd_class)[:200]}.jpg").write_bytes(b"no image")

        yield Case(f"class folder: called {name[:20]!r}", folder_with(renamed), ("classes",), False)
        yield Case(f"class folder: with {name[:20]!r}", folder_with(odd_file), ("classes",), True)
    more = {
        "one class in two Unicode forms": lambda root: [
            (root / split / name).mkdir()
            for split in ("train", "val")
            for name in ("\u00e9", "e\u0301")
        ],
        "a link to itself for a class": lambda root: (root / "train/cow").symlink_to("cow"),
        "a FIFO for a class": lambda root: os.mkfifo(root / "train/cow"),
        "a dangling link for a class": lambda root: (root / "train/cow").symlink_to("gone"),
        "a loop of folders": lambda root: (root / "train/cat/again").symlink_to(".."),
        "many classes": lambda root: [(root / f"train/c{n}").mkdir() for n in range(3000)],
    }
    for name, change in more.items():
        yield Case(f"class folder: {name}", folder_with(change), ("classes",), False)


ODD_NAMES = (
    b"two\nlines", b"\x1b[31mred", b"\r0 faults", b"x" * 255, b"caf\xe9", b"\xed\xa0\x80", b"a b",
    b" ", b"*", b"$(touch it_ran)", b"-rf", b"%s%n", "\u202eesrever".encode(), b"{0..9}", b"a,b",
    b"'\"", b"con", b"\x7f",
)  # fmt: skip
"""Names that a file system takes."""


def shard_cases() -> Iterator[Case]:
    """A tar file as WebDataset writes it, with members that are none, or cut."""
    good = cv2.imencode(".jpg", np.full((40, 48, 3), 90, np.uint8))[1].tobytes()

    def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for info, content in members:
                archive.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    def member(name: str, content: bytes, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for field, value in fields.items():
            setattr(info, field, value)
        return info, content

    sample = [member("0.jpg", good), member("0.cls", b"0"), member("1.jpg", good),
              member("1.cls", b"1")]  # fmt: skip
    whole = tar(*sample)
    claimed = bytearray(whole)
    claimed[124:136] = b"77777777777\0"  # the size in the first header
    shards = {
        "empty": b"",
        "text": b"hello",
        "no archive": bytes(2000),
        "cut": whole[:700],
        "cut header": whole[:300],
        "size": bytes(claimed),
        "label text": tar(member("0.jpg", good), member("0.cls", b"cat")),
        "label missing": tar(member("0.jpg", good)),
        "label huge": tar(member("0.jpg", good), member("0.cls", b"9" * 400)),
        "label negative": tar(member("0.jpg", good), member("0.cls", b"-1")),
        "label empty": tar(member("0.jpg", good), member("0.cls", b"")),
        "image text": tar(member("0.jpg", b"hello"), member("0.cls", b"0")),
        "image empty": tar(member("0.jpg", b""), member("0.cls", b"0")),
        "image bomb": tar(member("0.png", png(100_000, 100_000)), member("0.cls", b"0")),
        "link": tar(
            member("0.jpg", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
            member("0.cls", b"0"),
        ),
        "FIFO": tar(member("0.jpg", b"", type=tarfile.FIFOTYPE), member("0.cls", b"0")),
        "device": tar(member("0.jpg", b"", type=tarfile.CHRTYPE), member("0.cls", b"0")),
        "page": b"<!DOCTYPE html><html>Not found</html>",
        "steering": tar(member("\x1b[31m\n.jpg", b"hello"), member("\x1b[31m\n.cls", b"0")),
        "surrogate": tar(member("\udcff.jpg", b"hello"), member("\udcff.cls", b"0")),
        "long name": tar(member("x" * 5000 + ".jpg", b"hello"), member("x" * 5000 + ".cls", b"0")),
        "far path": tar(member("../../0.jpg", b"hello"), member("../../0.cls", b"0")),
        "twice": tar(*sample[:2], member("0.jpg", b"hello")),
        "label of lines": tar(member("0.jpg", good), member("0.cls", b"0\n\n\n1\x1b[31m")),
        "label long": tar(member("0.jpg", good), member("0.cls", b"x" * 10**6)),
        "label in other digits": tar(member("0.jpg", good), member("0.cls", "\u0661".encode())),
        "hard link": tar(
            member("0.jpg", b"", type=tarfile.LNKTYPE, linkname="0.jpg"), member("0.cls", b"0")
        ),
        "pax bomb": tar(
            member("h", b"9" * 30 + b" path=x\n", type=tarfile.XHDTYPE), *sample[:2],
            member("1.jpg", b"hello"), member("1.cls", b"1"),
        ),
        "gzip": zlib.compress(whole),
    }  # fmt: skip
    for name, content in shards.items():

        def write(folder: Path, content: bytes = content) -> None:
            (folder / "shards").mkdir()
            (folder / "shards/train-0.tar").write_bytes(content)
            (folder / "shards/val-0.tar").write_bytes(whole)
            (folder / "shards/classes.txt").write_text("cat\ndog\n")

        yield Case(f"shard: {name}", write, ("train-0.tar",), True)

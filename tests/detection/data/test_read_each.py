"""All that is wrong with many files is said at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from detres.class_map import ClassMap
from detres.detection.data.box_policy import AnnotationError
from detres.detection.data.csv_boxes import read_csv_boxes
from detres.detection.data.ilsvrc import read_ilsvrc
from detres.detection.data.labelme import labelme_names, read_labelme
from detres.detection.data.plain_xml import read_plain_xml, xml_names
from detres.detection.data.read_each import LISTED, read_each
from detres.detection.data.voc import read_voc
from detres.detection.data.yolo import read_yolo

CLASSES = ClassMap.of_names(["cat"])


def read_even(number: int) -> int:
    if number % 2:
        raise ValueError(f"{number} is odd")
    return 10 * number


def test_each_is_read_in_its_order() -> None:
    assert read_each([4, 2, 8], read_even) == [40, 20, 80]
    assert read_each([], read_even) == []


def test_one_fault_is_its_own_error() -> None:
    fault = FileNotFoundError("no annotation file b.xml")

    def read(name: str) -> str:
        if name == "b.xml":
            raise fault
        return name

    with pytest.raises(FileNotFoundError) as raised:
        read_each(["a.xml", "b.xml", "c.xml"], read)
    assert raised.value is fault


def test_several_faults_are_counted_and_listed() -> None:
    with pytest.raises(AnnotationError) as raised:
        read_each([1, 2, 3, 4, 5], read_even, "lines")
    assert str(raised.value) == ("3 of 5 lines cannot be used:\n  1 is odd\n  3 is odd\n  5 is odd")
    with pytest.raises(AnnotationError) as raised:
        read_each(range(1, 2 * LISTED + 4), read_even)
    lines = str(raised.value).splitlines()
    assert lines[0] == f"{LISTED + 2} of {2 * LISTED + 3} annotation files cannot be used:"
    assert lines[-2:] == [f"  {2 * LISTED - 1} is odd", "  and 2 more"]
    assert len(lines) == LISTED + 2


def test_a_fault_of_ours_is_not_taken_for_one_of_the_data() -> None:
    def read(number: int) -> int:
        raise KeyError(number)

    with pytest.raises(KeyError):
        read_each([1, 2], read)


# --- in every format of more than one file or line


def yolo(root: Path) -> Callable[[], object]:
    (root / "classes.txt").write_text("cat\n")
    for name, label in (("a", "0 .5 .5 2 .1"), ("b", "0 .5 .5 .1 .1"), ("c", "7 .5 .5 .1 .1")):
        picture_of(root / f"{name}.jpg")
        (root / f"{name}.txt").write_text(label)
    return lambda: read_yolo(root, ["."], [], root / "classes.txt")


def yolo_images(root: Path) -> Callable[[], object]:
    (root / "classes.txt").write_text("cat\n")
    for name in ("a", "c"):
        (root / f"{name}.jpg").write_bytes(b"no picture")
        (root / f"{name}.txt").write_text("0 .5 .5 .1 .1")
    return lambda: read_yolo(root, ["."], [], root / "classes.txt")


def labelme(root: Path) -> Callable[[], object]:
    for name, shapes in (("a", "none"), ("b", []), ("c", [3])):
        (root / f"{name}.jpg").touch()
        (root / f"{name}.json").write_text(json.dumps({"shapes": shapes}))
    return lambda: read_labelme(root, ["."], [], CLASSES)


def labelme_classes(root: Path) -> Callable[[], object]:
    labelme(root)
    return lambda: labelme_names(root, ["."], [])


def xml(root: Path) -> Callable[[], object]:
    for name, text in (("a", "<annotation>"), ("b", "<annotation/>"), ("c", "<other/>")):
        (root / f"{name}.jpg").touch()
        (root / f"{name}.xml").write_text(text)
    return lambda: read_plain_xml(root, ["."], [], CLASSES)


def xml_classes(root: Path) -> Callable[[], object]:
    xml(root)
    return lambda: xml_names(root, ["."], [])


def csv(root: Path) -> Callable[[], object]:
    lines = ["a.jpg,cat,1,1,x,9", "b.jpg,cat,1,1,9,9", "c.jpg,cat,1,1,9"]
    (root / "boxes.csv").write_text("\n".join(["file,class,xmin,ymin,xmax,ymax", *lines]))
    for name in "abc":
        picture_of(root / f"{name}.jpg")
    return lambda: read_csv_boxes(root, ["boxes.csv"], ["."], CLASSES)


def voc(root: Path) -> Callable[[], object]:
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("a\nb\nc\n")
    cat = "<annotation><object><name>cat</name></object></annotation>"
    for name, text in (("a", "<annotation>"), ("b", cat), ("c", "<other/>")):
        (root / "JPEGImages" / f"{name}.jpg").touch()
        (root / "Annotations" / f"{name}.xml").write_text(text)
    return lambda: read_voc(root, ["train"])


def ilsvrc(root: Path) -> Callable[[], object]:
    for folder in ("Annotations/DET/val", "ImageSets/DET", "Data/DET/val"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/DET/val.txt").write_text("a 1\nc 2\n")
    for name in ("a", "c"):
        (root / "Data/DET/val" / f"{name}.JPEG").touch()
        (root / "Annotations/DET/val" / f"{name}.xml").write_text("<annotation>")
    return lambda: read_ilsvrc(root, ["DET/val"])


def picture_of(path: Path) -> None:
    Image.new("RGB", (20, 20)).save(path)


@pytest.mark.parametrize(
    "make",
    [yolo, yolo_images, labelme, labelme_classes, xml, xml_classes, csv, voc, ilsvrc],
    ids=lambda make: make.__name__,
)
def test_the_first_and_the_last_that_are_wrong_are_both_named(make: Callable, tmp_path: Path):
    read = make(tmp_path)
    with pytest.raises(AnnotationError) as raised:
        read()
    first, *listed = str(raised.value).splitlines()
    assert first.endswith(" cannot be used:")
    assert first.startswith(f"{len(listed)} of ")
    wanted = (":2", ":4") if make is csv else ("/a.", "/c.")
    assert wanted[0] in listed[0]
    assert wanted[1] in listed[-1]

"""VOC XML -> Annotations: coordinates, flags, splits, classes, and what bad folders and files
get.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from detres.detection.annotations import Annotations
from detres.detection.data.box_policy import AnnotationError
from detres.detection.data.voc import VOC_CLASSES, read_voc
from detres.detection.structures import names_of


def xml(
    *objects: str, size: str = "<size><width>100</width><height>80</height><depth>3</depth></size>"
) -> str:
    return (
        f"<annotation><filename>some other name.png</filename>{size}{''.join(objects)}</annotation>"
    )


def thing(name: str, box: tuple[object, ...], difficult: str = "<difficult>0</difficult>") -> str:
    sides = "".join(
        f"<{side}>{value}</{side}>"
        for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{difficult}<bndbox>{sides}</bndbox></object>"


def write(folder: Path, files: dict[str, str], splits: dict[str, str] | None = None) -> Path:
    """Write a year's folder: stem -> XML, and split name -> text (default: one split `train` with
    all stems).
    """
    for sub in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for stem, text in files.items():
        (folder / "Annotations" / f"{stem}.xml").write_text(text, encoding="utf-8")
        (folder / "JPEGImages" / f"{stem}.jpg").touch()
    for name, text in (splits or {"train": "\n".join(files)}).items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder


def rows(annotations: Annotations, stem: str) -> slice:
    index = annotations.image_ids.tolist().index(stem)
    return slice(annotations.offsets[index], annotations.offsets[index + 1])


def test_one_object_by_hand(tmp_path: Path) -> None:
    root = write(tmp_path / "own", {"a": xml(thing("cell", (11, 21, 30, 60)))})
    result = read_voc(root, ["train"])
    np.testing.assert_array_equal(result.boxes, [[10, 20, 30, 60]])  # 20 pixels wide, 40 high
    assert result.boxes.dtype == np.float64
    assert result.areas.tolist() == [800]
    assert result.labels.tolist() == [1]
    assert result.class_map.names == ("cell",)
    assert result.class_map.source_ids == (1,)
    assert result.image_ids.tolist() == ["a"]
    assert result.image_files.tolist() == [str(root / "JPEGImages" / "a.jpg")]
    assert result.image_sizes.tolist() == [[80, 100]]
    assert result.offsets.tolist() == [0, 1]
    assert result.dropped == {}


def test_flags_fractions_missing_size_and_empty_images(tmp_path: Path) -> None:
    files = {
        "a": xml(
            thing("dog", (1, 1, 10, 10), "<difficult>1</difficult>"),
            thing("cat", (" 1.5 ", "2.25", "40.75", "50"), ""),
            size="",
        ),
        "empty": xml(),
        "b": xml(thing("dog", (1, 1, 100, 80))),
    }
    result = read_voc(write(tmp_path / "own", files), ["train"])
    assert result.difficult.tolist() == [True, False, False]
    assert not result.crowd.any()
    np.testing.assert_allclose(result.boxes[1], [0.5, 1.25, 40.75, 50])
    assert result.image_sizes.tolist() == [[0, 0], [80, 100], [80, 100]]
    assert result.offsets.tolist() == [0, 2, 2, 3]
    np.testing.assert_array_equal(result.boxes[2], [0, 0, 100, 80])
    assert names_of(result.class_map, result.labels) == ["dog", "cat", "dog"]
    assert len(result.target(1)) == 0


def test_parts_of_an_object_are_not_objects(tmp_path: Path) -> None:
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>"
    part = f"<part><name>head</name>{box}</part>"
    person = thing("person", (10, 10, 50, 50)).replace("</object>", part + "</object>")
    result = read_voc(write(tmp_path / "own", {"a": xml(person)}), ["train"])
    assert result.class_map.names == ("person",)
    np.testing.assert_array_equal(result.boxes, [[9, 9, 50, 50]])


@pytest.mark.parametrize(
    "box", [(10, 10, 10, 20), (10, 20, 30, 20), (0, 0, 0, 0), (30, 10, 20, 20), (10, 30, 20, 20)]
)
def test_box_without_area_by_the_files_own_numbers(tmp_path: Path, box: tuple[int, ...]) -> None:
    root = write(tmp_path / "own", {"a": xml(thing("dog", (1, 1, 9, 9)), thing("cat", box))})
    result = read_voc(root, ["train"])
    assert result.num_objects == 1
    assert result.dropped == {"box without area": 1}
    assert result.class_map.names == ("cat", "dog")
    with pytest.raises(
        AnnotationError, match=r"a\.xml: object 2 \(cat\), bndbox .*box without area"
    ):
        read_voc(root, ["train"], box_policy="error")
    np.testing.assert_array_equal(
        read_voc(root, ["train"], box_policy="keep").boxes[1], np.subtract(box, (1, 1, 0, 0))
    )


def test_box_over_the_border_is_clipped_and_one_beyond_it_dropped(tmp_path: Path) -> None:
    root = write(
        tmp_path / "own",
        {"a": xml(thing("dog", (91, 71, 120, 90)), thing("dog", (120, 1, 140, 20)))},
    )
    result = read_voc(root, ["train"])
    np.testing.assert_array_equal(result.boxes, [[90, 70, 100, 80]])
    assert result.areas.tolist() == [100]
    assert result.dropped == {"box outside its image": 1, "clipped to the image": 1}


def test_years_combine_and_ids_stay_unique(tmp_path: Path) -> None:
    write(tmp_path / "VOC2007", {"a": xml(thing("dog", (1, 1, 9, 9)))}, {"trainval": "a\n"})
    write(
        tmp_path / "VOC2012", {"b": xml(thing("cat", (1, 1, 9, 9)))}, {"trainval": "\ufeffb \n\n"}
    )
    result = read_voc(tmp_path, ["VOC2007/trainval", "2012/trainval"])
    assert result.image_ids.tolist() == ["a", "b"]
    assert result.ids.tolist() == [1, 2]
    assert result.class_map.names == VOC_CLASSES
    assert names_of(result.class_map, result.labels) == ["dog", "cat"]


def test_the_same_stem_in_two_folders_is_two_images(tmp_path: Path) -> None:
    for folder, name in (("VOC2007", "dog"), ("own", "cat")):
        write(tmp_path / folder, {"same": xml(thing(name, (1, 1, 9, 9)))})
    write(tmp_path / "own", {"b": xml()}, {"train": "same\nb"})
    result = read_voc(tmp_path, ["own/train", "2007/train"])
    assert result.image_ids.tolist() == ["own/same", "own/b", "VOC2007/same"]
    assert result.image_files.tolist() == [
        str(tmp_path / folder / "JPEGImages" / f"{stem}.jpg")
        for folder, stem in (("own", "same"), ("own", "b"), ("VOC2007", "same"))
    ]
    assert names_of(result.class_map, result.labels) == ["cat", "dog"]
    assert result.told_apart
    assert result.notes == (
        "image ids are told apart by their folder: 2 folders have some of the same file names",
    )


def test_the_same_image_in_two_splits_of_a_folder_is_refused(tmp_path: Path) -> None:
    files = {stem: xml(thing("dog", (1, 1, 9, 9))) for stem in ("a", "same")}
    write(tmp_path / "own", files, {"train": "a\nsame", "val": "same"})
    write(tmp_path / "VOC2007", files)
    with pytest.raises(AnnotationError, match="image same is listed twice"):
        read_voc(tmp_path, ["own/train", "2007/train", "own/val"])


def test_classes_are_those_of_the_folder_not_of_the_split(tmp_path: Path) -> None:
    files = {"a": xml(thing("zebra", (1, 1, 9, 9))), "b": xml(thing("ant", (1, 1, 9, 9)))}
    root = write(tmp_path / "own", files, {"train": "a", "test": "b"})
    train, test = read_voc(root, ["train"]), read_voc(root, ["test"])
    assert train.class_map == test.class_map
    assert train.class_map.names == ("ant", "zebra")
    assert train.labels.tolist() == [2]
    assert test.labels.tolist() == [1]


def test_voc_names_in_a_folder_of_another_name_are_not_all_twenty(tmp_path: Path) -> None:
    assert read_voc(
        write(tmp_path / "own", {"a": xml(thing("dog", (1, 1, 9, 9)))}), ["train"]
    ).class_map.names == ("dog",)


def test_chosen_classes_give_the_order_and_the_rest_is_counted(tmp_path: Path) -> None:
    root = write(
        tmp_path / "own",
        {"a": xml(*(thing(name, (1, 1, 9, 9)) for name in ("dog", "cat", "owl", "cat")))},
    )
    result = read_voc(root, ["train"], classes=["owl", "cat"])
    assert result.class_map.names == ("owl", "cat")
    assert result.labels.tolist() == [2, 1, 2]
    assert result.dropped == {"other class": 1}
    with pytest.raises(AnnotationError, match="no class 'cta'; did you mean 'cat'"):
        read_voc(root, ["train"], classes=["cta"])


def test_an_official_class_may_be_chosen_though_absent_from_a_small_copy(tmp_path: Path) -> None:
    root = write(tmp_path / "VOC2007", {"a": xml(thing("dog", (1, 1, 9, 9)))})
    assert read_voc(root, ["train"], classes=["sofa", "dog"]).labels.tolist() == [2]


def test_list_of_a_class_leaves_out_the_images_without_it(tmp_path: Path) -> None:
    files = {stem: xml(thing("dog", (1, 1, 9, 9))) for stem in ("a", "b", "c")}
    root = write(tmp_path / "own", files, {"dog_train": "a  1\nb -1\nc  0\n"})
    assert read_voc(root, ["dog_train"]).image_ids.tolist() == ["a", "c"]


def test_stems_may_hold_spaces_and_dots(tmp_path: Path) -> None:
    files = {"my photo": xml(thing("dog", (1, 1, 9, 9))), "v1.2": xml()}
    assert read_voc(write(tmp_path / "own", files), ["train"]).image_ids.tolist() == [
        "my photo",
        "v1.2",
    ]


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg", ".bmp"])
def test_image_is_found_by_stem_with_any_usual_suffix(tmp_path: Path, suffix: str) -> None:
    root = write(tmp_path / "own", {"a": xml(thing("dog", (1, 1, 9, 9)))})
    (root / "JPEGImages" / "a.jpg").rename(root / "JPEGImages" / f"a{suffix}")
    (root / "JPEGImages" / "a.txt").touch()
    assert read_voc(root, ["train"]).image_files.tolist() == [
        str(root / "JPEGImages" / f"a{suffix}")
    ]


def test_missing_images_are_counted_and_named_unless_unwanted(tmp_path: Path) -> None:
    files = {f"i{k}": xml(thing("dog", (1, 1, 9, 9))) for k in range(6)}
    root = write(tmp_path / "own", files)
    for k in range(5):
        (root / "JPEGImages" / f"i{k}.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"5 image files missing: .*i0.*i1.*i2.*\.\.\."):
        read_voc(root, ["train"])
    unchecked = read_voc(root, ["train"], check_images=False)
    assert unchecked.image_files.tolist() == [f"i{k}" for k in range(6)]
    assert unchecked.num_objects == 6


def test_missing_xml_split_and_folder_say_what_exists(tmp_path: Path) -> None:
    root = write(
        tmp_path / "VOC2007",
        {"a": xml(thing("dog", (1, 1, 9, 9)))},
        {"train": "a\nb\n", "val": "a"},
    )
    (root / "JPEGImages" / "b.jpg").touch()
    missing = r"1 annotation file missing: .*b\.xml \(listed in .*ImageSets/Main/train\.txt:2\)"
    with pytest.raises(FileNotFoundError, match=missing):
        read_voc(root, ["train"])
    with pytest.raises(FileNotFoundError, match=r"test\.txt; there are: train, val"):
        read_voc(root, ["test"])
    with pytest.raises(FileNotFoundError, match=r"has VOC2007: write VOC2007/train"):
        read_voc(tmp_path, ["train"])
    with pytest.raises(FileNotFoundError, match=r"VOC2012"):
        read_voc(tmp_path, ["VOC2012/train"])
    with pytest.raises(AnnotationError, match="no split"):
        read_voc(root, [])


def test_empty_split_and_folder_without_objects_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path / "own", {"a": xml()}, {"train": "a", "none": "\n \n"})
    with pytest.raises(AnnotationError, match=r"none\.txt lists no image"):
        read_voc(root, ["none"])
    with pytest.raises(AnnotationError, match="no object in any annotation file"):
        read_voc(root, ["train"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation><object>", "not well-formed XML"),
        ("", "not well-formed XML"),
        ('<?xml version="1.0" encoding="no-such"?><annotation/>', "not well-formed XML"),
        ("<html></html>", "root is <html>, expected <annotation>"),
        (xml("<object><bndbox/></object>"), "object 1 has no name"),
        (xml("<object><name>dog</name></object>"), r"object 1 \(dog\) has no bndbox"),
        (xml(thing("dog", (1, "left", 3, 4))), r"object 1 \(dog\) has no bndbox with the numbers"),
        (xml(size="<size><width>wide</width></size>"), "size must have the numbers"),
    ],
)
def test_bad_xml_names_the_file_and_the_record(tmp_path: Path, text: str, message: str) -> None:
    root = write(tmp_path / "own", {"good": xml(thing("dog", (1, 1, 9, 9))), "bad": text})
    with pytest.raises(AnnotationError, match=rf"bad\.xml.*{message}"):
        read_voc(root, ["train"])


@pytest.mark.parametrize("entity", ['<!ENTITY x SYSTEM "{secret}">', '<!ENTITY x "dog">'])
def test_entities_are_refused_and_nothing_is_read_through_them(tmp_path: Path, entity: str) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("dog")
    declared = f"<!DOCTYPE a [{entity.format(secret=secret.as_uri())}]>" + xml(
        thing("&x;", (1, 1, 9, 9))
    )
    root = write(tmp_path / "own", {"bad": declared})
    with pytest.raises(AnnotationError, match=r"bad\.xml: refused, it declares"):
        read_voc(root, ["train"])


def test_number_that_is_not_finite_is_dropped_by_name(tmp_path: Path) -> None:
    root = write(
        tmp_path / "own", {"a": xml(thing("dog", ("nan", 1, 9, 9)), thing("dog", (1, 1, 9, 9)))}
    )
    assert read_voc(root, ["train"]).dropped == {"box with a number that is not finite": 1}


def test_bccd_as_counted_by_a_naive_reader(shared_data) -> None:
    root = shared_data("bccd") / "BCCD"
    parts = {split: read_voc(root, [split]) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 205,
        "val": 87,
        "test": 72,
    }
    assert {part.class_map.names for part in parts.values()} == {("Platelets", "RBC", "WBC")}
    assert sum(part.dropped.get("box without area", 0) for part in parts.values()) == 2
    assert sum(part.num_objects for part in parts.values()) == 4888 - 2

    for part in parts.values():
        for stem in part.image_ids.tolist():
            expected = []
            for node in (
                ElementTree.parse(root / "Annotations" / f"{stem}.xml").getroot().findall("object")
            ):
                x1, y1, x2, y2 = (
                    int(node.find("bndbox").find(side).text)
                    for side in ("xmin", "ymin", "xmax", "ymax")
                )
                if x2 > x1 and y2 > y1:
                    expected.append(
                        (
                            node.find("name").text,
                            [max(x1 - 1, 0), max(y1 - 1, 0), min(x2, 640), min(y2, 480)],
                        )
                    )
            own = rows(part, stem)
            names = names_of(part.class_map, part.labels[own])
            assert list(zip(names, part.boxes[own].tolist(), strict=True)) == expected


@pytest.mark.parametrize("stem", ["BloodImage_00338", "BloodImage_00343"])
def test_bccd_zero_size_boxes_are_named(shared_data, tmp_path: Path, stem: str) -> None:
    source = shared_data("bccd") / "BCCD" / "Annotations" / f"{stem}.xml"
    root = write(tmp_path / "own", {stem: source.read_text()})
    assert read_voc(root, ["train"]).dropped == {"box without area": 1}
    with pytest.raises(AnnotationError, match=rf"{stem}\.xml: object \d+ .*box without area"):
        read_voc(root, ["train"], box_policy="error")


def test_voc_mini_has_the_official_classes_and_its_flags(shared_data) -> None:
    devkit = shared_data("voc_mini") / "VOCdevkit"
    result = read_voc(devkit, ["VOC2012/train", "VOC2012/val"])
    assert len(result) == 820
    assert result.class_map.names == VOC_CLASSES
    text = "".join(
        (devkit / "VOC2012" / "Annotations" / f"{stem}.xml").read_text()
        for stem in result.image_ids.tolist()
    )
    assert result.num_objects == text.count("<object>") - sum(
        count for reason, count in result.dropped.items() if reason != "clipped to the image"
    )
    assert result.difficult.sum() == len(re.findall(r"<difficult>1</difficult>", text)) > 0
    assert (result.boxes[:, 2:] > result.boxes[:, :2]).all()
    assert len(read_voc(devkit / "VOC2012", ["trainval"])) == 820


# ---- as exporters write it ----


@pytest.mark.parametrize(
    ("text", "difficult"),
    [("1", True), (" 1 ", True), ("true", True), ("0", False), ("Unspecified", False), ("", False)],
)
def test_difficult_however_it_is_written(tmp_path: Path, text: str, difficult: bool) -> None:
    flag = f"<difficult>{text}</difficult>"
    root = write(tmp_path / "own", {"a": xml(thing("dog", (1, 1, 9, 9), flag))})
    assert read_voc(root, ["train"]).difficult.tolist() == [difficult]


@pytest.mark.parametrize("text", ["2", "-1", "maybe", "01x"])
def test_difficult_that_is_no_flag_is_refused_by_name(tmp_path: Path, text: str) -> None:
    flag = f"<difficult>{text}</difficult>"
    root = write(tmp_path / "own", {"a": xml(thing("dog", (1, 1, 9, 9), flag))})
    with pytest.raises(
        AnnotationError, match=rf"a\.xml: object 1 \(dog\) has difficult '{text}', expected 0, 1"
    ):
        read_voc(root, ["train"])


@pytest.mark.parametrize("width", ["1e12", "-5", "96.5", "9" * 400, "nan", "inf"])
def test_a_side_that_no_image_has(tmp_path: Path, width: str) -> None:
    size = f"<size><width>{width}</width><height>80</height></size>"
    root = write(tmp_path / "own", {"a": xml(thing("dog", (1, 1, 9, 9)), size=size)})
    with pytest.raises(AnnotationError, match=r"a\.xml: size must have the numbers") as caught:
        read_voc(root, ["train"])
    assert len(str(caught.value)) < 400


def test_fractions_are_doubted_as_they_are_written(tmp_path: Path) -> None:
    root = write(tmp_path / "own", {"a": xml(thing("dog", (0.1, 0.2, 0.5, 0.9)))})
    (note,) = read_voc(root, ["train"]).notes
    assert "all 1 boxes lie within 0..1 px of images of up to 100 px" in note


def test_hidden_files_are_passed_over(tmp_path: Path) -> None:
    root = write(tmp_path / "own", {"a": xml(thing("dog", (1, 1, 9, 9)))})
    (root / "Annotations" / "._a.xml").write_bytes(b"\0\5\26\7 no XML")
    (root / "Annotations" / ".DS_Store").touch()
    (root / "JPEGImages" / "._a.jpg").touch()
    (root / "ImageSets" / "Main" / "._train.txt").write_bytes(b"\0\5")
    assert read_voc(root, ["train"]).image_ids.tolist() == ["a"]
    with pytest.raises(FileNotFoundError, match=r"val\.txt; there are: train$"):
        read_voc(root, ["val"])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_list_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    root = write(tmp_path / "own", {"é": xml(thing("dog", (1, 1, 9, 9)))})
    path = root / "ImageSets" / "Main" / "train.txt"
    path.write_bytes("é\r\n".encode(encoding))
    assert read_voc(root, ["train"]).image_ids.tolist() == ["é"]
    path.write_bytes("é\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"train\.txt: byte 0xe9 at offset 0 \(line 1\)"):
        read_voc(root, ["train"])


def test_xml_in_its_declared_encoding_and_in_an_undeclared_one(tmp_path: Path) -> None:
    root = write(tmp_path / "own", {"a": ""})
    path, text = root / "Annotations" / "a.xml", xml(thing("café", (1, 1, 9, 9)))
    for encoding in ("utf-16", "utf-8-sig"):
        path.write_bytes(text.encode(encoding))
        assert read_voc(root, ["train"]).class_map.names == ("café",)
    latin = text.encode("latin-1")
    path.write_bytes(b'<?xml version="1.0" encoding="latin-1"?>' + latin)
    assert read_voc(root, ["train"]).class_map.names == ("café",)
    path.write_bytes(latin)
    with pytest.raises(AnnotationError, match=r"a\.xml is not well-formed XML.*byte 0xe9 at"):
        read_voc(root, ["train"])


@pytest.mark.parametrize("listed", ["A", "a.jpg", "A.JPG"])
def test_a_stem_in_another_spelling_is_found_and_said(tmp_path: Path, listed: str) -> None:
    root = write(tmp_path / "own", {"a": xml(thing("dog", (1, 1, 9, 9)))}, {"train": listed})
    result = read_voc(root, ["train"])
    assert result.image_ids.tolist() == ["a"]
    assert f"such as 'a' for '{listed}'" in result.notes[0]


def test_suffixes_may_be_capitals(tmp_path: Path) -> None:
    root = write(tmp_path / "own", {"a": xml(thing("dog", (1, 1, 9, 9)))})
    for folder, suffix in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
        path = root / folder / f"a{suffix}"
        path.rename(path.with_suffix(suffix.upper()))
    result = read_voc(root, ["train"])
    assert result.image_files.tolist() == [str(root / "JPEGImages" / "a.JPG")]
    assert (len(result.boxes), result.notes) == (1, ())


@pytest.mark.parametrize("listed", ["../../secret", "/etc/passwd", "a 1 2 3", "x" * 100_000])
def test_what_is_no_stem_is_named_with_its_line(tmp_path: Path, listed: str) -> None:
    root = write(
        tmp_path / "own", {"a": xml(thing("dog", (1, 1, 9, 9)))}, {"train": f"a\n\n{listed}\n"}
    )
    with pytest.raises(FileNotFoundError, match=r"train\.txt:3\)") as caught:
        read_voc(root, ["train"])
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize(
    ("written", "nonsense", "message"),
    [
        ("<width>100</width>", "<width><b/></width>", "width is '<b>'"),
        ("<height>80</height>", "<height>8<b/>0</height>", "height is '8<b>0'"),
        ("<xmin>1</xmin>", "<xmin>1<b>2</b></xmin>", "object 1 .dog. has no bndbox"),
        ("<difficult>0</difficult>", "<difficult>0<b/></difficult>", "has difficult '0<b>'"),
        ("<name>dog</name>", "<name>dog<b/></name>", "object 1 has no name"),
    ],
)
def test_an_element_where_text_belongs_is_refused(
    tmp_path: Path, written: str, nonsense: str, message: str
) -> None:
    whole = xml(thing("dog", (1, 1, 9, 9)))
    root = write(tmp_path / "own", {"a": whole.replace(written, nonsense)})
    with pytest.raises(AnnotationError, match=rf"a\.xml: .*{message}"):
        read_voc(root, ["train"])
    commented = whole.replace(written, written.replace("</", "<!-- as measured --></"))
    write(root, {"a": commented})
    assert read_voc(root, ["train"]).num_objects == 1


def test_two_spellings_of_one_image_are_one_listed_twice(tmp_path: Path) -> None:
    root = write(tmp_path / "own", {"a": xml(thing("dog", (1, 1, 9, 9)))}, {"train": "a\na.jpg"})
    with pytest.raises(AnnotationError, match="image a is listed twice"):
        read_voc(root, ["train"])


def test_an_image_and_an_annotation_that_are_no_files(tmp_path: Path) -> None:
    root = write(tmp_path / "own", {"a": xml(thing("dog", (1, 1, 9, 9)))})
    (root / "JPEGImages" / "a.jpg").unlink()
    (root / "JPEGImages" / "a.jpg").symlink_to("gone.jpg")
    with pytest.raises(FileNotFoundError, match=r"a\.jpg is a link to gone\.jpg, which is not"):
        read_voc(root, ["train"])
    (root / "Annotations" / "a.xml").unlink()
    os.mkfifo(root / "Annotations" / "a.xml")
    with pytest.raises(FileNotFoundError, match=r"a\.xml is a FIFO, expected a file"):
        read_voc(root, ["train"], check_images=False)


def test_the_largest_side_is_a_size_and_one_px_more_is_none(tmp_path: Path) -> None:
    def read(width: int) -> Annotations:
        size = f"<size><width>{width}</width><height>80</height></size>"
        text = xml(thing("cell", (11, 21, 30, 60)), size=size)
        return read_voc(write(tmp_path / "own", {"a": text}), ["train"])

    assert read(1_000_000).image_sizes.tolist() == [[80, 1_000_000]]
    with pytest.raises(AnnotationError, match="whole px up to 1000000"):
        read(1_000_001)


def picture(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))


def test_a_list_of_which_an_image_has_no_xml_is_without_truth(tmp_path: Path) -> None:
    files = {"a": xml(thing("dog", (1, 1, 9, 9))), "b": xml(thing("cat", (1, 1, 9, 9)))}
    root = write(tmp_path / "own", files, {"train": "a", "test": "b\nÇ d.JPG\ne"})
    for stem, size in (("b", (11, 12)), ("Ç d", (13, 14)), ("E", (15, 16))):
        picture(root / "JPEGImages" / f"{stem}.jpg", *size)
    data = read_voc(root, ["test"], may_lack_truth=True, names=("cat", "dog", "owl"))
    assert data.without_truth == "2 of 3 have no XML file in Annotations, such as Ç d.JPG"
    assert data.image_ids.tolist() == ["b", "Ç d", "E"]
    assert data.image_sizes.tolist() == [[11, 12], [13, 14], [15, 16]]
    assert (data.class_map.names, data.num_objects) == (("cat", "dog", "owl"), 0)
    assert "image files are spelt otherwise than they are listed" in data.notes[0]
    assert read_voc(root, ["train"], may_lack_truth=True).without_truth is None
    # the classes of its files, where those of the detector do not hold them
    other = read_voc(root, ["test"], may_lack_truth=True, names=("dog",))
    assert other.class_map.names == ("cat", "dog")
    some = read_voc(root, ["test"], may_lack_truth=True, names=("cat", "dog"), classes=["dog"])
    assert some.class_map.names == ("dog",)
    with pytest.raises(FileNotFoundError, match="2 annotation files missing"):
        read_voc(root, ["test"])


def test_a_test_set_that_tells_no_class_needs_them_given(tmp_path: Path) -> None:
    root = write(tmp_path / "own", {}, {"test": "a"})
    picture(root / "JPEGImages" / "a.jpg", 5, 6)
    assert read_voc(root, ["test"], may_lack_truth=True, names=("owl",)).class_map.names == ("owl",)
    with pytest.raises(AnnotationError, match="no object in any annotation file, so there are no"):
        read_voc(root, ["test"], may_lack_truth=True)
    its_own = root.rename(tmp_path / "VOC2012")
    data = read_voc(its_own, ["test"], may_lack_truth=True, names=("owl",))
    assert data.class_map.names == VOC_CLASSES


def test_a_test_image_that_is_listed_twice_or_in_two_folders(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        write(tmp_path / folder, {}, {"test": "a", "twice": "a\na.jpg"})
        picture(tmp_path / folder / "JPEGImages" / "a.jpg", 5, 6)
    with pytest.raises(AnnotationError, match="image a is listed twice"):
        read_voc(tmp_path / "x", ["twice"], may_lack_truth=True, names=("owl",))
    both = read_voc(tmp_path, ["x/test", "y/test"], may_lack_truth=True, names=("owl",))
    assert (both.image_ids.tolist(), both.told_apart) == (["x/a", "y/a"], True)
    assert "told apart by their folder" in both.notes[0]


def test_as_written_corners_stay_swapped_and_a_side_of_one_number_is_none(tmp_path: Path) -> None:
    """In order, a swapped box is the one that was meant: pixels 11..30 are 10..30."""
    boxes = ((11, 21, 30, 60), (30, 60, 11, 21), (30, 21, 11, 60), (11, 21, 11, 60), (0, 0, 0, 0))
    files = {"a": xml(*(thing("cell", box) for box in boxes))}
    result = read_voc(write(tmp_path / "own", files), ["train"], box_policy="as_written")
    assert result.boxes.tolist() == [
        [10, 20, 30, 60],
        [30, 60, 10, 20],
        [30, 20, 10, 60],
        [10, 20, 10, 60],
        [-1, -1, -1, -1],
    ]
    assert result.dropped == {}

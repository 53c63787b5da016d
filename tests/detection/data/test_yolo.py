"""YOLO's label files and data.yaml, by hand and with every fault by file and line."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from detres.config import ConfigError
from detres.detection.data.box_policy import AnnotationError
from detres.detection.data.yolo import (
    read_class_names,
    read_data_yaml,
    read_label_file,
    read_yolo,
)


def image(path: Path, width: int = 200, height: int = 100) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images with labels, one without, one with an empty file; 200x100 px."""
    for name in "abcd":
        image(tmp_path / "images" / f"{name}.png")
    write(tmp_path / "labels" / "a.txt", "1 0.5 0.5 0.2 0.4\n\n 0 0.1 0.2 0.1 0.2\n")
    write(tmp_path / "labels" / "b.txt", "2 0.1 0.1 0.5 0.2 0.3 0.9\n")
    write(tmp_path / "labels" / "d.txt", "")
    write(tmp_path / "data.yaml", "names: [cat, no, 007]\nnc: 3\n")
    return tmp_path


def test_boxes_and_polygons_by_hand(root: Path) -> None:
    data = read_yolo(root, ["images"], [], root / "data.yaml")
    assert data.class_map.names == ("cat", "no", "007")
    assert data.class_map.source_ids == (0, 1, 2)
    assert data.image_ids.tolist() == ["a", "b", "c", "d"]
    assert data.image_sizes.tolist() == [[100, 200]] * 4
    assert data.offsets.tolist() == [0, 2, 3, 3, 3]
    assert data.labels.tolist() == [2, 1, 3]
    np.testing.assert_allclose(
        data.boxes, [[80, 30, 120, 70], [10, 10, 30, 30], [20, 10, 100, 90]], atol=1e-9
    )
    np.testing.assert_allclose(data.areas, [1600, 400, 6400])
    (note,) = data.notes
    assert note.startswith("1 of 4 images have no label file and count as without objects")


def test_labels_lie_in_labels_or_beside(tmp_path: Path) -> None:
    """The last folder called images counts; without one, a.txt beside a.png."""
    write(tmp_path / "classes.txt", "cat\n")
    image(tmp_path / "images" / "set" / "images" / "x" / "a.png")
    write(tmp_path / "images" / "set" / "labels" / "x" / "a.txt", "0 0.5 0.5 1 1")
    image(tmp_path / "images" / "b.png")
    write(tmp_path / "images" / "b.txt", "0 0.5 0.5 0.5 0.5")
    names = tmp_path / "classes.txt"
    assert read_yolo(tmp_path, ["images/set"], [], names).boxes.tolist() == [[0, 0, 200, 100]]
    (beside,) = read_yolo(tmp_path, ["images"], [], names).boxes[:1].tolist()
    assert beside == [50, 25, 150, 75]


def test_a_list_of_images_is_relative_to_itself_or_the_root(root: Path) -> None:
    write(root / "lists" / "val.txt", "../images/b.png\n\nimages/a.png\n")
    data = read_yolo(root, ["lists/val.txt"], [], root / "data.yaml")
    assert data.image_ids.tolist() == ["b", "a"]
    assert data.offsets.tolist() == [0, 1, 3]
    write(root / "lists" / "val.txt", "images/a.png\nimages/z.png\n")
    with pytest.raises(FileNotFoundError, match=r"val.txt: image .*z.png does not exist \(1 of 2"):
        read_yolo(root, ["lists/val.txt"], [], root / "data.yaml")
    write(root / "lists" / "val.txt", "images/a.png\nimages/a.png\n")
    with pytest.raises(AnnotationError, match=r"a.png is in lists/val.txt twice"):
        read_yolo(root, ["lists/val.txt"], [], root / "data.yaml")


def test_folders_of_labels_with_folders_of_images(root: Path) -> None:
    (root / "labels").rename(root / "marks")
    (root / "images").rename(root / "photos")
    write(root / "marks" / "classes.txt", "cat\nno\n007\n")
    data = read_yolo(root, ["marks"], ["photos"], root / "marks" / "classes.txt")
    assert data.offsets.tolist() == [0, 2, 3, 3, 3]
    assert "1 images have no label file and count as without objects" in data.notes[0]


def test_some_classes_alone(root: Path) -> None:
    data = read_yolo(root, ["images"], [], root / "data.yaml", classes=["007", "cat"])
    assert data.class_map.to_dict() == {"names": ["007", "cat"], "source_ids": [2, 0]}
    assert data.labels.tolist() == [2, 1]
    assert data.dropped == {"other class": 1}
    with pytest.raises(AnnotationError, match="has no class 'dog'"):
        read_yolo(root, ["images"], [], root / "data.yaml", classes=["dog"])


def test_a_box_without_area_is_dropped_or_refused_by_line(root: Path) -> None:
    write(root / "labels" / "a.txt", "0 0.5 0.5 0.2 0.2\n0 0.5 0.5 0 0.2\n")
    data = read_yolo(root, ["images"], [], root / "data.yaml")
    assert data.dropped == {"box without area": 1}
    with pytest.raises(AnnotationError, match=r"a\.txt:2: box .* box without area"):
        read_yolo(root, ["images"], [], root / "data.yaml", box_policy="error")


def test_labels_of_another_set_are_told(root: Path) -> None:
    for path in (root / "labels").iterdir():
        path.rename(path.with_name(f"other_{path.name}"))
    with pytest.raises(AnnotationError, match=r"none of the 4 images of images has a label file"):
        read_yolo(root, ["images"], [], root / "data.yaml")


def test_labels_without_image_are_told(root: Path) -> None:
    write(root / "labels" / "z.txt", "0 0.5 0.5 1 1")
    notes = read_yolo(root, ["images"], [], root / "data.yaml").notes
    assert any(note.startswith("1 label files belong to no image") for note in notes)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 1.2 0.5 0.1 0.1", "a.txt:2: 1.2 is outside 0..1; expected are fractions"),
        ("0 0.5 -0.01 0.1 0.1", "a.txt:2: -0.01 is outside 0..1"),
        ("0 320 240 50 60", "outside 0..1.*look like pixels"),
        ("0 0.1 0.1 0.5 1.3 0.3 0.9", "a.txt:2: 1.3 is outside 0..1"),
        ("0 nan 0.5 0.1 0.1", "a.txt:2: nan is outside 0..1"),
        ("3 0.5 0.5 0.1 0.1", r"a.txt:2: class 3, but the names are those of 3 classes, 0 to 2"),
        ("-1 0.5 0.5 0.1 0.1", "a.txt:2: the class is '-1', expected 0, 1, 2"),
        ("0.5 0.5 0.5 0.1 0.1", "a.txt:2: the class is '0.5'"),
        ("cat 0.5 0.5 0.1 0.1", "a.txt:2: 'cat' is no number"),
        ("0 0.5 0.5 0.1", "a.txt:2: 4 columns, expected 5"),
        ("0 0.5 0.5 0.1 0.1 0.9", "a.txt:2: 6 columns, expected 5"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "a.txt:2: 8 columns, expected 5"),
        ("0,0.5,0.5,0.1,0.1", "a.txt:2: '0,0.5,0.5,0.1,0.1' is no number"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "a.txt", f"0 0.5 0.5 0.1 0.1\n{line}\n")
    with pytest.raises(AnnotationError, match=message):
        read_label_file(path, 3)


def test_edges_and_rounding_are_inside(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "2 0.5 0.5 1 1\n0 1.000001 0 -0.000001 1\n0.0 1 1 0 0\n")
    labels = read_label_file(path, 3)
    assert [label.line for label in labels] == [1, 2, 3]
    assert labels[0].box == (0, 0, 1, 1)
    assert [label.index for label in labels] == [2, 0, 0]


def test_keypoints_behind_a_box_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "0 0.5 0.5 0.2 0.2 0.4 0.4 2 0.6 0.6 1\n")
    (label,) = read_label_file(path, 1, values=10)
    np.testing.assert_allclose(label.box, (0.4, 0.4, 0.6, 0.6))
    with pytest.raises(AnnotationError, match="11 columns, expected 8"):
        read_label_file(path, 1, values=7)
    write(tmp_path / "data.yaml", "train: images\nnames: [a]\nkpt_shape: [2, 3]\n")
    assert read_data_yaml(tmp_path / "data.yaml").values == 10


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("[yes, null_, 1e3]", ("yes", "null_", "1e3")),
        ("{0: cat, 1: dog}", ("cat", "dog")),
        ("{1: dog, 0: cat}", ("cat", "dog")),
        ("\n  0: person\n  '1': on", ("person", "on")),
        ("cat", ("cat",)),
    ],
)
def test_names_are_text_in_a_list_or_by_number(
    tmp_path: Path, names: str, expected: tuple[str, ...]
) -> None:
    assert read_class_names(write(tmp_path / "d.yaml", f"names: {names}")) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a, b]\nnc: 3", "d.yaml: nc is '3', and names has 2"),
        ("names: {1: a, 2: b}", r"names has the keys \['1', '2'\], expected 0 to 1"),
        ("names: [a, b, a]", "classes 0 and 2 are both called 'a'"),
        ("names: [a, '']", "the name of class 1 is empty"),
        ("names: []", r"names is \[\], expected a list of class names"),
        ("train: x", "names is None, expected a list"),
        ("names: [a]\ntrain: {a: b}", "train is {'a': 'b'}, expected a folder of images"),
    ],
)
def test_a_wrong_data_yaml_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_data_yaml(write(tmp_path / "d.yaml", text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [a", "d.yaml:1: "),
        ("names: [a]\nnames: [b]", "d.yaml:2: key 'names' is given twice"),
        ("- a", "expected a mapping, got list"),
        ("names: !!python/object:os.system x", "could not determine a constructor"),
    ],
)
def test_what_is_no_yaml_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_data_yaml(write(tmp_path / "d.yaml", text))


def test_names_in_a_text_file(tmp_path: Path) -> None:
    path = write(tmp_path / "classes.txt", "cat\n a dog \n\n\n")
    assert read_class_names(path) == ("cat", "a dog")
    with pytest.raises(AnnotationError, match="the name of class 1 is empty"):
        read_class_names(write(path, "cat\n\ndog"))
    with pytest.raises(AnnotationError, match=r"classes.txt is empty"):
        read_class_names(write(path, "\n"))
    with pytest.raises(AnnotationError, match="classes 0 and 1 are both called 'cat'"):
        read_class_names(write(path, "cat\ncat"))

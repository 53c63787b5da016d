from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detres.class_map import ClassMap
from detres.detection.data.box_policy import AnnotationError
from detres.detection.data.labelme import labelme_names, read_labelme, read_labelme_file

CLASSES = ClassMap.of_names(["cat", "dog"])


def shape(label: object, points: object, kind: str | None = "polygon", **more: object) -> dict:
    return {"label": label, "points": points, "shape_type": kind, **more}


def write(folder: Path, name: str, shapes: object, **more: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.jpg").touch()
    path = folder / f"{name}.json"
    content = {"version": "5.0", "shapes": shapes, "imagePath": f"{name}.jpg", **more}
    path.write_text(json.dumps(content))
    return path


def test_every_shape_by_hand(tmp_path: Path) -> None:
    write(
        tmp_path,
        "a",
        [
            shape("dog", [[30, 5], [10, 25]], "rectangle"),
            shape("cat", [[1, 2], [5, 9], [3, 12.5]]),
            shape("cat", [[50, 50], [53, 54]], "circle"),
            shape("dog", [[1, 1]], "point"),
            shape("dog", [[1, 1], [4, 4]], "line"),
            shape("owl", [[0, 0], [9, 9]], "rectangle"),
            shape("cat", [[0, 0], [9, 0], [9, 9], [0, 9]], None, difficult=True),
        ],
        imageHeight=100,
        imageWidth=200,
    )
    write(tmp_path, "b", [])
    (tmp_path / "c.jpg").touch()
    data = read_labelme(tmp_path, ["."], [], CLASSES)
    assert data.image_ids.tolist() == ["a", "b"]
    assert data.image_sizes.tolist() == [[100, 200], [0, 0]]
    assert data.offsets.tolist() == [0, 4, 4]
    assert data.labels.tolist() == [2, 1, 1, 1]
    assert data.boxes.tolist() == [
        [10, 5, 30, 25],
        [1, 2, 5, 12.5],
        [45, 45, 55, 55],
        [0, 0, 9, 9],
    ]
    assert data.difficult.tolist() == [False, False, False, True]
    assert data.dropped == {"other class": 1}
    assert any(
        "1 images have no .json file and are left out, such as c.jpg" in n for n in data.notes
    )
    assert "1 shapes of kind line are no boxes and are left out" in data.notes
    assert "1 shapes of kind point are no boxes and are left out" in data.notes
    assert labelme_names(tmp_path, ["."]) == {"cat", "dog", "owl"}


def test_parts_of_one_group_are_one_object(tmp_path: Path) -> None:
    """LabelMe's converters join shapes of one label and group_id; another label is another."""
    triangle, far = [[1, 1], [2, 1], [1, 3]], [[8, 9], [9, 9], [8, 7]]
    record = read_labelme_file(
        write(
            tmp_path,
            "a",
            [
                shape("cat", triangle, group_id=1),
                shape("dog", far, group_id=1),
                shape("cat", far, group_id=1),
                shape("cat", triangle, group_id=None),
                shape("cat", far, group_id=None),
            ],
        )
    )
    assert [(item.name, item.box) for item in record.objects] == [
        ("cat", (1, 1, 9, 9)),
        ("dog", (8, 7, 9, 9)),
        ("cat", (1, 1, 2, 3)),
        ("cat", (8, 7, 9, 9)),
    ]


def test_the_image_may_have_another_name_than_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "labels", "1", [shape("cat", [[0, 0], [5, 5]], "rectangle")])
    (tmp_path / "labels" / "1.jpg").rename(tmp_path / "IMG 7.jpg")
    content = json.loads(path.read_text()) | {"imagePath": "..\\IMG 7.jpg"}
    path.write_text(json.dumps(content))
    data = read_labelme(tmp_path, ["labels"], ["."], CLASSES)
    assert data.image_files.tolist() == [str(tmp_path / "IMG 7.jpg")]


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (None, "a.json is no LabelMe annotation: it has no list of 'shapes'"),
        ([3], "shape 1 is 3, expected an object"),
        ([shape("", [[0, 0], [1, 1]])], "shape 1 has no label"),
        ([shape(None, [[0, 0], [1, 1]])], "shape 1 has no label"),
        ([shape("cat", [[0, 0]], "rectangle")], r"shape 1 \(cat\) has points .*two or more"),
        ([shape("cat", [[0, 0], [1]])], r"shape 1 \(cat\) has points"),
        ([shape("cat", [[0, 0], [1, "x"]])], r"shape 1 \(cat\) has points"),
        ([shape("cat", None)], r"shape 1 \(cat\) has points None"),
        ([shape("cat", [[0, 0], [1, 1]], "cube")], "shape_type 'cube', expected rectangle"),
        ([shape("cat", [[0, 0], [1, 1]], difficult=2)], "difficult 2, expected 0, 1"),
    ],
)
def test_a_wrong_shape_is_named(tmp_path: Path, shapes: object, message: str) -> None:
    with pytest.raises(AnnotationError, match=message):
        read_labelme_file(write(tmp_path, "a", shapes))


def test_a_wrong_size_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="imageHeight is 'tall', expected px"):
        read_labelme_file(write(tmp_path, "a", [], imageHeight="tall"))
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(AnnotationError, match=r"b\.json is not JSON"):
        read_labelme_file(tmp_path / "b.json")
    with pytest.raises(FileNotFoundError, match=r"no annotation file .*c\.json"):
        read_labelme_file(tmp_path / "c.json")


def test_a_bad_box_is_named_by_its_shape(tmp_path: Path) -> None:
    shapes = [shape("cat", [[0, 0], [5, 5]], "rectangle"), shape("dog", [[3, 3], [3, 9]])]
    write(tmp_path, "a", shapes)
    with pytest.raises(AnnotationError, match=r"a\.json: shape 2 \(dog\), box .* without area"):
        read_labelme(tmp_path, ["."], [], CLASSES, box_policy="error")
    data = read_labelme(tmp_path, ["."], [], CLASSES)
    assert data.dropped == {"box without area": 1}
    assert np.array_equal(data.boxes, [[0, 0, 5, 5]])

from __future__ import annotations

from pathlib import Path

import pytest

from detres.class_map import ClassMap
from detres.config import check
from detres.detection.config import DataConfig
from detres.detection.data.box_policy import AnnotationError
from detres.detection.data.plain_xml import read_plain_xml, xml_names
from detres.detection.data.read import read_split

CLASSES = ClassMap.of_names(["cat", "dog"])


def write(folder: Path, stem: str, *objects: tuple[str, str], image: str = ".jpg") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}{image}").touch()
    items = "".join(
        f"<object><name>{name}</name><bndbox>{sides}</bndbox></object>" for name, sides in objects
    )
    text = f"<annotation><size><width>80</width><height>50</height></size>{items}</annotation>"
    (folder / f"{stem}.xml").write_text(text)


def sides(xmin: float, ymin: float, xmax: float, ymax: float) -> str:
    return f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"


def test_boxes_are_vocs(tmp_path):
    write(tmp_path, "b", ("dog", sides(1, 1, 80, 50)), ("owl", sides(1, 1, 2, 2)))
    write(tmp_path, "a")
    data = read_plain_xml(tmp_path, ["."], [], CLASSES)
    assert data.image_ids.tolist() == ["a", "b"]
    assert data.boxes.tolist() == [[0, 0, 80, 50]]
    assert data.labels.tolist() == [2]
    assert data.offsets.tolist() == [0, 0, 1]
    assert data.image_sizes.tolist() == [[50, 80], [50, 80]]
    assert data.dropped == {"other class": 1}
    assert xml_names(tmp_path, ["."]) == {"dog", "owl"}


def config(root: Path, **data: object) -> DataConfig:
    return check(DataConfig, {"format": "xml", "root": str(root), **data}, "test")


def test_classes_are_those_of_all_splits(tmp_path):
    """So that val, which lacks some, agrees with train; test has one of its own."""
    write(tmp_path / "train", "a", ("dog", sides(1, 1, 9, 9)), ("cat", sides(1, 1, 9, 9)))
    write(tmp_path / "val", "b", ("dog", sides(1, 1, 9, 9)))
    write(tmp_path / "test", "c", ("ant", sides(1, 1, 9, 9)))
    data = config(tmp_path, train=["train"], val=["val"], test=["test"])
    train, val = read_split(data, "train"), read_split(data, "val")
    assert train.class_map == val.class_map
    assert train.class_map.names == ("ant", "cat", "dog")
    assert val.labels.tolist() == [3]
    chosen = config(tmp_path, train=["train"], val=["val"], classes=["dog"])
    assert read_split(chosen, "train").class_map.names == ("dog",)
    with pytest.raises(AnnotationError, match="has no class 'bird'"):
        read_split(config(tmp_path, train=["train"], val=["val"], classes=["bird"]), "train")


def test_no_object_at_all_is_told(tmp_path):
    write(tmp_path, "a")
    with pytest.raises(AnnotationError, match="no object in any annotation file"):
        read_split(config(tmp_path, train=["."], val=["."]), "train")


def test_a_foreign_xml_file_is_named(tmp_path):
    write(tmp_path, "a", ("dog", sides(1, 1, 9, 9)))
    (tmp_path / "a.xml").write_text("<project/>")
    with pytest.raises(
        AnnotationError, match=r"a\.xml is no VOC annotation: its root is <project>"
    ):
        read_plain_xml(tmp_path, ["."], [], CLASSES)

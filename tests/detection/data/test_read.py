from __future__ import annotations

import json

import pytest

from detres.config import check
from detres.detection.config import DataConfig
from detres.detection.data.box_policy import AnnotationError
from detres.detection.data.read import NoSplitError, read_split, read_to_detect, trained_on
from tests.detection.configs import box, coco_config
from tests.helpers import CLASSES, write_coco

ILSVRC = {"format": "ilsvrc", "root": "/data"}


def test_training_drops_bad_boxes_and_evaluation_keeps_them(tmp_path):
    write_coco(tmp_path, [(50, 60)], [box(1), {**box(1, xywh=(5, 5, 0, 9)), "id": 2}])
    data = coco_config(tmp_path).data
    assert len(read_split(data, "train").boxes) == 1
    assert len(read_split(data, "val").boxes) == 2


def test_a_policy_that_is_given_takes_the_place_of_the_configurations(tmp_path):
    write_coco(tmp_path, [(50, 60)], [box(1), {**box(1, xywh=(5, 5, 0, 9)), "id": 2}])
    data = coco_config(tmp_path).data
    assert len(read_split(data, "train", box_policy="keep").boxes) == 2
    assert len(read_split(data, "val", box_policy="drop").boxes) == 1
    strict = coco_config(tmp_path, data={"box_policy": "error"}).data
    with pytest.raises(AnnotationError, match="box without area"):
        read_split(strict, "train")
    assert len(read_split(strict, "val").boxes) == 2


def test_several_files_are_one_data_set(tmp_path):
    write_coco(tmp_path / "a", [(50, 60)], [box(1)])
    write_coco(tmp_path / "b", [(50, 60)], [box(1, category_id=90)])
    content = (tmp_path / "b" / "annotations.json").read_text()
    (tmp_path / "b" / "annotations.json").write_text(
        content.replace('"images": [{"id": 1', '"images": [{"id": 2').replace(
            '"image_id": 1', '"image_id": 2'
        )
    )
    files = {
        "train": ["a/annotations.json", "b/annotations.json"],
        "train_images": ["a/images", "b/images"],
    }
    both = read_split(coco_config(tmp_path, data=files).data, "train")
    assert both.class_map == CLASSES
    assert both.image_ids.tolist() == [1, 2]
    assert both.labels.tolist() == [1, 3]


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"annotations\.json"):
        read_split(coco_config(tmp_path).data, "train")


def two_files(root, **data):
    """Two COCO folders, both numbered from 1, and the configuration that reads them as train."""
    for name, category in (("a", 3), ("b", 90)):
        write_coco(root / name, [(50, 60)], [box(1, category_id=category)])
    files = {
        "train": ["a/annotations.json", "b/annotations.json"],
        "train_images": ["a/images", "b/images"],
        "val": ["a/annotations.json"],
        "val_images": ["a/images"],
    }
    return coco_config(root, data=files | data).data


def test_ids_of_several_files_are_told_apart_by_their_file(tmp_path):
    data = two_files(tmp_path)
    both = read_split(data, "train")
    assert both.image_ids.tolist() == [f"{tmp_path}/{n}/annotations.json: 1" for n in "ab"]
    assert [both.target(n).labels.tolist() for n in (0, 1)] == [[1], [3]]
    assert "image ids are told apart by their file" in both.notes[0]
    assert read_split(data, "val").image_ids.tolist() == [1]  # the ids of its one file


def test_held_out_ids_must_be_those_of_one_file(tmp_path):
    data = two_files(tmp_path)
    data = data.model_copy(update={"val": data.train, "val_images": data.train_images})
    with pytest.raises(ValueError, match="have the same image ids, and results of held-out"):
        read_split(data, "val")


def test_held_out_stems_must_be_those_of_one_folder(tmp_path):
    sides = "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    item = f"<object><name>dog</name><bndbox>{sides}</bndbox></object>"
    text = f"<annotation>{item}</annotation>"
    for folder in ("a", "b"):
        for name, content in (
            ("Annotations/x.xml", text),
            ("ImageSets/Main/all.txt", "x"),
            ("JPEGImages/x.jpg", ""),
        ):
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True)
            path.write_text(content)
    both = DataConfig(format="voc", root=str(tmp_path), train=("a/all", "b/all"), val=("a/all",))
    assert read_split(both, "train").image_ids.tolist() == ["a/x", "b/x"]
    assert read_split(both, "val").image_ids.tolist() == ["x"]
    both = both.model_copy(update={"val": both.train})
    with pytest.raises(ValueError, match="have the same image ids, and results of held-out"):
        read_split(both, "val")


def test_an_image_in_two_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"image file \S+1\.jpg is in more than one of"):
        read_split(two_files(tmp_path, train_images=["a/images", "a/images"]), "train")


def test_classes_of_several_files_are_told_by_their_names(tmp_path):
    data = two_files(tmp_path)
    path = tmp_path / "b" / "annotations.json"
    content = json.loads(path.read_text())
    content["categories"] = [{"id": i, "name": n} for i, n in ((1, "owl"), (2, "dog"), (90, "cat"))]
    path.write_text(json.dumps(content))
    both = read_split(data, "train")
    assert both.class_map == CLASSES
    assert both.labels.tolist() == [1, 1]  # its object is a cat there, 90
    assert any("under other ids (cat is 3 there and 90 here)" in note for note in both.notes)


def test_classes_without_an_object_to_learn_from_are_noted(tmp_path):
    write_coco(tmp_path, [(50, 60)], [box(1), box(1, category_id=7) | {"id": 2, "iscrowd": 1}])
    data = coco_config(tmp_path).data
    (note,) = read_split(data, "train").notes
    assert note == "no object to learn from of 2 of 3 classes: dog, owl"
    assert read_split(data, "val").notes == ()


def test_a_file_name_that_leads_out_needs_the_setting(tmp_path):
    write_coco(tmp_path, [(50, 60)], [box(1)])
    path = tmp_path / "annotations.json"
    path.write_text(path.read_text().replace('"1.jpg"', '"../out.jpg"'))
    (tmp_path / "images" / "1.jpg").rename(tmp_path / "out.jpg")
    with pytest.raises(ValueError, match=r"lies outside the image folder"):
        read_split(coco_config(tmp_path).data, "train")
    allowed = coco_config(tmp_path, data={"outside": "allow"}).data
    assert read_split(allowed, "train").image_files.tolist() == [str(tmp_path / "out.jpg")]


def test_paths_with_dots_are_shown_tidy(tmp_path):
    write_coco(tmp_path / "a", [(50, 60)], [box(1)])
    (tmp_path / "b").mkdir()
    files = {"train": ["../a/annotations.json"], "train_images": ["../a/images"]}
    data = coco_config(tmp_path / "b", data=files).data
    annotations = read_split(data, "train")
    assert annotations.source == str(tmp_path / "a" / "annotations.json")
    assert annotations.image_files.tolist() == [str(tmp_path / "a" / "images" / "1.jpg")]


def test_held_out_images_are_val_and_are_not_trained_on(tmp_path):
    boxes = [{**box(n), "id": n} for n in range(1, 11)]
    write_coco(tmp_path, [(50, 60)] * 10, [*boxes, {**box(4, xywh=(5, 5, 0, 9)), "id": 99}])
    data = coco_config(tmp_path).data
    data = data.model_copy(update={"val": (), "val_images": (), "hold_out": 3})
    train, val = read_split(data, "train"), read_split(data, "val")
    assert (len(train), len(val)) == (7, 3)
    assert sorted([*train.image_ids, *val.image_ids]) == list(range(1, 11))
    assert train.source.endswith("annotations.json without 3")
    assert val.source.endswith("annotations.json held out 3")
    assert train.num_objects + val.num_objects == 10 + (4 in val.image_ids)  # as it stands in val
    for part in (train, val):
        for row, image_id in enumerate(part.image_ids.tolist()):
            assert part.ids[part.offsets[row]] == image_id
    with pytest.raises(ValueError, match="cannot hold out 10 of 10 images"):
        read_split(data.model_copy(update={"hold_out": 10}), "train")


def test_a_split_to_detect_in_must_be_configured(tmp_path):
    write_coco(tmp_path, [(50, 60)], [box(1)])
    data = coco_config(tmp_path).data
    with pytest.raises(NoSplitError, match=r"data\.test is not given, .* there is train, val$"):
        read_to_detect(data, "test", CLASSES)
    data = data.model_copy(update={"test": data.val, "test_images": data.val_images})
    test, val = read_to_detect(data, "test", CLASSES), read_split(data, "val")
    assert test.without_truth is None  # its annotations are known
    assert test.boxes.tolist() == val.boxes.tolist()


def test_ids_of_what_is_detected_in_must_be_those_of_one_file(tmp_path):
    with pytest.raises(ValueError, match="have the same image ids, and results of held-out"):
        read_to_detect(two_files(tmp_path), "train", CLASSES)


@pytest.mark.parametrize(
    ("learnt", "judged", "known"),
    [
        (["DET/train_*", "DET/val1"], ["DET/val2"], []),
        (["DET/train_*", "DET/val1"], ["DET/val"], ["DET/val"]),
        (["DET/train", "DET/val"], ["DET/val2", "DET/test"], ["DET/val2"]),
        (["DET/train_pos_*"], ["DET/train_pos_7", "DET/train_neg_7"], ["DET/train_pos_7"]),
        (["DET/train_pos_7"], ["DET/train_*", "DET/train"], ["DET/train_*", "DET/train"]),
        (["CLS-LOC/train_cls"], ["CLS-LOC/train_loc", "CLS-LOC/val"], ["CLS-LOC/train_loc"]),
        (["CLS-LOC/val"], ["DET/val"], []),
        (["DET/train_*"], ["DET/*_7", "DET/val*"], ["DET/*_7"]),
        (["DET/train_pos_*_a"], ["DET/train_*_b", "DET/train_p*a"], ["DET/train_p*a"]),
        (["DET/train_po?_1"], ["DET/train_n*", "DET/train_pos_*"], ["DET/train_pos_*"]),
    ],
)
def test_lists_of_ilsvrc_that_share_images_were_trained_on(learnt, judged, known):
    trained = check(DataConfig, {**ILSVRC, "train": learnt, "val": ["DET/none"]}, "config")
    data = check(DataConfig, {**ILSVRC, "train": ["DET/none"], "val": judged}, "config")
    assert trained_on(trained, data, "val") == known
    elsewhere = data.model_copy(update={"root": "/elsewhere"})
    assert trained_on(trained, elsewhere, "val") == []


@pytest.mark.parametrize(
    ("learnt", "judged", "known"),
    [
        ("2012/trainval", "2012/val", True),
        ("2012/train", "2012/trainval", True),
        ("2012/train", "2012/val", False),
        ("2012/trainval", "2007/trainval", False),
    ],
)
def test_a_part_of_a_trainval_was_trained_on_and_so_was_the_whole(learnt, judged, known):
    voc = {"format": "voc", "root": "/data"}
    trained = check(DataConfig, {**voc, "train": [learnt], "val": ["2010/val"]}, "config")
    data = check(DataConfig, {**voc, "train": ["2010/train"], "val": [judged]}, "config")
    assert trained_on(trained, data, "val") == ([judged] if known else [])

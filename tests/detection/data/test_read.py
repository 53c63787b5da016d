from __future__ import annotations

import pytest

from detres.detection.data.box_policy import AnnotationError
from detres.detection.data.read import read_split
from tests.detection.configs import box, coco_config
from tests.helpers import CLASSES, write_coco


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

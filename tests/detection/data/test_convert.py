from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from detres.detection.data.convert import write_coco
from detres.detection.data.read import read_all
from detres.detection.data.recognise import recognise
from detres.files import TakenFolderError
from tests.detection.data.exports import Picture, write_voc, write_yolo
from tests.detection.data.test_exports import few, require_equal

__all__ = ["few"]


def everything_below(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("link", [False, True])
def test_what_is_written_is_the_same_data(few, tmp_path: Path, link: bool) -> None:
    write_yolo(few, tmp_path / "yolo")
    before = everything_below(tmp_path / "yolo")
    splits = read_all(recognise(tmp_path / "yolo").data)
    assert list(splits) == ["train", "val"]
    write_coco(splits, tmp_path / "coco", link=link)
    assert everything_below(tmp_path / "yolo") == before
    found = recognise(tmp_path / "coco")
    assert found.data.train == ("annotations/instances_train.json",)
    assert found.data.val_images == ("images/val",)
    for split, again in read_all(found.data).items():
        require_equal(again, few[split])
    for path in (tmp_path / "coco" / "images").rglob("*.png"):
        assert path.is_symlink() == link
    referee = COCO(str(tmp_path / "coco" / "annotations" / "instances_train.json"))
    assert min(referee.getCatIds()) == 1
    assert len(referee.getAnnIds()) == splits["train"].num_objects


def test_a_split_that_is_drawn_is_written_out(few, tmp_path: Path) -> None:
    write_voc({"all": few["train"]}, tmp_path / "voc")
    splits = read_all(recognise(tmp_path / "voc").data)
    write_coco(splits, tmp_path / "coco")
    again = read_all(recognise(tmp_path / "coco").data)
    for split, part in splits.items():
        names = {Path(file).name for file in part.image_files.tolist()}
        assert {Path(file).name for file in again[split].image_files.tolist()} == names


def test_ids_crowds_and_difficult_objects_stay(tmp_path: Path, few) -> None:
    images = [{"id": 70, "file_name": few["train"][0].file.name, "height": 9, "width": 9}]
    boxes = [
        {"id": 5, "image_id": 70, "category_id": 90, "bbox": [1, 2, 3.25, 0.1], "area": 2.5},
        {"id": 6, "image_id": 70, "category_id": 3, "bbox": [0, 0, 0, 5], "iscrowd": 1},
    ]
    categories = [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}]
    source = tmp_path / "source"
    source.mkdir()
    os.symlink(few["train"][0].file, source / few["train"][0].file.name)
    content = {"images": images, "annotations": boxes, "categories": categories}
    (source / "train.json").write_text(json.dumps(content))
    (source / "val.json").write_text(json.dumps(content))
    write_coco(read_all(recognise(source).data), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "annotations" / "instances_val.json").read_text())
    assert written["categories"] == categories
    assert written["images"] == images
    assert [item["bbox"] for item in written["annotations"]] == [[1, 2, 3.25, 0.1], [0, 0, 0, 5]]
    assert [item["area"] for item in written["annotations"]] == [2.5, 0]
    assert [item["iscrowd"] for item in written["annotations"]] == [0, 1]

    write_voc({"train": few["train"], "val": few["val"]}, tmp_path / "voc")
    path = tmp_path / "voc" / "Annotations" / f"{few['val'][0].stem}.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1", 1))
    write_coco(read_all(recognise(tmp_path / "voc").data), tmp_path / "of_voc")
    text = (tmp_path / "of_voc" / "annotations" / "instances_val.json").read_text()
    flagged = [item for item in json.loads(text)["annotations"] if item["iscrowd"]]
    assert [item["difficult"] for item in flagged] == [1]


def test_nothing_is_left_of_what_fails_and_nothing_is_overwritten(few, tmp_path: Path) -> None:
    write_yolo(few, tmp_path / "yolo")
    splits = read_all(recognise(tmp_path / "yolo").data)
    gone = Picture(tmp_path / "gone.png", 5, 5, ())
    files = splits["val"].image_files.astype("<U400").copy()
    files[0] = str(gone.file)
    lost = {**splits, "val": type(splits["val"])(**{**vars(splits["val"]), "image_files": files})}
    with pytest.raises(OSError, match=r"gone\.png|coco"):
        write_coco(lost, tmp_path / "coco")
    assert not (tmp_path / "coco").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".coco")]
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "mine.txt").touch()
    with pytest.raises(TakenFolderError, match="already holds files"):
        write_coco(splits, tmp_path / "coco")
    assert np.array_equal(os.listdir(tmp_path / "coco"), ["mine.txt"])

"""The clean copy: what is left out and mended, that it is read back clean, and that the source
stays as it is.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from detres.detection.annotations import Annotations
from detres.detection.data.audit import audit
from detres.detection.data.clean_copy import write_clean_copy
from detres.detection.data.coco import read_coco
from detres.detection.data.findings import Part
from detres.files import TakenFolderError
from detres.images.decode import read_image
from tests.detection.data.planted import HEIGHT, MODEL, WIDTH, parts, picture, write_split
from tests.images.test_look_alikes import encoded

BOX = (10.0, 10.0, 60.0, 60.0)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read_back(folder: Path, split: str) -> Annotations:
    return read_coco(
        folder / "annotations" / f"instances_{split}.json",
        folder / "images" / split,
        box_policy="as_written",
    )


def faulty(tmp_path: Path) -> list[Part]:
    train = {
        "good.png": picture(0),
        "boxes.png": picture(1),
        "leaked.png": picture(2),
        "near.png": picture(3),
        "cut.png": b"\x89PNG\r\n",
        "other size.png": picture(5),
    }
    objects = [
        ("good.png", "cat", BOX),
        ("boxes.png", "dog", (60, 10, 10, 60)),
        ("boxes.png", "cat", (30, 10, 30, 60)),
        ("boxes.png", "cat", (float("nan"), 0, 9, 9)),
        ("boxes.png", "cat", (150, 10, 165, 40)),
        ("boxes.png", "cat", (170, 10, 190, 40)),
        ("boxes.png", "cat", (10, 90, 40, 150)),
        ("boxes.png", "cat", BOX),
        ("boxes.png", "cat", BOX),
        ("boxes.png", "dog", BOX),  # the corners in order of the first one, and of another class
        ("leaked.png", "cat", BOX),
        ("leaked.png", "cat", BOX),
    ]
    val = {"v.png": picture(2), "w.png": encoded(picture(3), 60)}
    return parts(
        train=write_split(tmp_path, "train", train, objects, sizes={"other size.png": (7, 7)}),
        val=write_split(tmp_path, "val", val, [("v.png", "dog", BOX)]),
    )


def test_what_is_wrong_is_out_and_the_source_is_as_it_was(tmp_path: Path) -> None:
    source = faulty(tmp_path / "source")
    before = contents(tmp_path / "source")
    said = write_clean_copy(source, tmp_path / "clean")
    assert said == [
        "train, images that cannot be read left out: 1",
        "train, images of another size than stated left out: 1",
        "train, images that a later split has too left out: 2",
        "train, boxes with their corners put in order: 1",
        "train, boxes clipped to their image: 1",
        "train, boxes that are not finite left out: 1",
        "train, boxes without area left out: 1",
        "train, boxes outside their image left out: 1",
        "train, boxes with x and y exchanged left out: 1",
        "train, boxes that are there twice left out: 2",
    ]
    assert contents(tmp_path / "source") == before
    train = read_back(tmp_path / "clean", "train")
    assert [Path(file).name for file in train.image_files] == ["good.png", "boxes.png"]
    assert train.boxes.tolist() == [
        list(BOX),
        [10, 10, 60, 60],
        [150, 10, 160, 40],
        list(BOX),
    ]
    assert [train.class_map.name_of(index) for index in train.class_indices] == [
        "cat",
        "dog",
        "cat",
        "cat",
    ]
    assert train.areas.tolist() == [2500, 2500, 300, 2500]
    assert train.image_sizes.tolist() == [[HEIGHT, WIDTH]] * 2
    for file in train.image_files:
        name = Path(file).name
        assert Path(file).read_bytes() == before[f"train/{name}"]

    again = audit(
        parts(**{split: read_back(tmp_path / "clean", split) for split in ("train", "val")}),
        MODEL,
    )
    assert again.count("error") == 0


def test_val_keeps_what_train_has_too(tmp_path: Path) -> None:
    write_clean_copy(faulty(tmp_path / "source"), tmp_path / "clean")
    assert [Path(file).name for file in read_back(tmp_path / "clean", "val").image_files] == [
        "v.png",
        "w.png",
    ]


@pytest.mark.parametrize("orientation", range(2, 9))
def test_labels_on_the_pixels_as_stored_are_turned_upright(
    tmp_path: Path, orientation: int
) -> None:
    """Boxes lie on the same pixels in the copy, read upright, as in the source, read as stored."""
    stored = picture(0)
    box = (100.0, 10.0, 150.0, 40.0)
    train = write_split(
        tmp_path / "source",
        "train",
        {"a.png": stored},
        [("a.png", "cat", box)],
        orientations={"a.png": orientation},
    )
    said = write_clean_copy(parts(train=train), tmp_path / "clean")
    copy = read_back(tmp_path / "clean", "train")
    image = read_image(copy.image_files[0], tuple(copy.image_sizes[0].tolist()))
    x1, y1, x2, y2 = copy.boxes[0].astype(int).tolist()
    if orientation < 5:  # nothing tells the convention, so it is taken upright and left
        assert said == []
        assert copy.boxes.tolist() == [list(box)]
        return
    assert said == ["train, images whose boxes are turned upright: 1"]
    assert copy.image_sizes.tolist() == [[WIDTH, HEIGHT]]
    seen = np.sort(image[y1:y2, x1:x2].reshape(-1, 3), axis=0)
    np.testing.assert_array_equal(seen, np.sort(stored[10:40, 100:150].reshape(-1, 3), axis=0))


def test_ids_classes_flags_and_folders_stay(tmp_path: Path) -> None:
    """A class that only val has keeps its id where that is free; of equal names in folders of
    their own each is copied.
    """
    source = tmp_path / "source"
    for name in ("one", "two"):
        (source / "train" / name).mkdir(parents=True)
    train = write_split(source, "flat", {"a.png": picture(0), "b.png": picture(1)})
    for file, place in zip(train.image_files, ("one", "two"), strict=True):
        Path(file).rename(source / "train" / place / "same.png")
    moved = replace(
        train,
        image_files=np.array(
            [str(source / "train" / each / "same.png") for each in ("one", "two")]
        ),
        image_ids=np.array([70, 9]),
    )
    val = write_split(
        source, "val", {"c.png": picture(4)}, [("c.png", "owl", BOX)], classes=["owl"]
    )
    difficult = replace(val, difficult=np.array([True]))
    assert write_clean_copy(parts(train=moved, val=difficult), tmp_path / "clean") == []
    copy = read_back(tmp_path / "clean", "train")
    assert copy.image_ids.tolist() == [70, 9]
    assert [file.rpartition("/images/train/")[2] for file in copy.image_files] == [
        "one/same.png",
        "two/same.png",
    ]
    assert copy.class_map.names == ("cat", "dog", "owl")
    assert copy.class_map.source_ids == (1, 2, 3)
    assert read_back(tmp_path / "clean", "val").crowd.tolist() == [True]


def test_a_folder_that_holds_files_is_left(tmp_path: Path) -> None:
    source = faulty(tmp_path / "source")
    (tmp_path / "clean").mkdir()
    (tmp_path / "clean" / "mine.txt").write_text("mine")
    with pytest.raises(TakenFolderError, match="already holds files"):
        write_clean_copy(source, tmp_path / "clean")
    assert contents(tmp_path / "clean") == {"mine.txt": b"mine"}


def test_text_ids_are_numbered(tmp_path: Path) -> None:
    (part,) = parts(train=write_split(tmp_path / "source", "train", {"a.png": picture(0)}))
    named = replace(part, annotations=replace(part.annotations, image_ids=np.array(["a"])))
    write_clean_copy([named], tmp_path / "clean")
    content = json.loads((tmp_path / "clean/annotations/instances_train.json").read_text())
    assert [image["id"] for image in content["images"]] == [1]

"""The same annotated images in every format that is read: equal annotations, an equal digest, each
from its folder alone.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from detres.detection.annotations import Annotations
from detres.detection.data.digest import training_digest
from detres.detection.data.read import read_split
from detres.detection.data.recognise import recognise
from tests.detection.data.exports import (
    WRITERS,
    Picture,
    Pictures,
    pictures_of_coco,
    pictures_of_voc,
    put,
    write_csv,
    write_plain_xml,
    xml_of,
)

FORMATS = {
    "VOC": "voc",
    "plain XML": "xml",
    "COCO": "coco",
    "Roboflow COCO": "coco",
    "YOLO": "yolo",
    "LabelMe": "labelme",
    "CSV": "csv",
}
TOLERANCE = 1e-3  # px


@pytest.fixture
def few(tmp_path: Path) -> Pictures:
    """Pictures of several sizes, with an object at an edge, two alike, and none."""
    drawn = np.random.default_rng(3)
    pictures: Pictures = {"train": [], "val": []}
    for number in range(12):
        width, height = (int(side) for side in drawn.integers(40, 400, 2))
        file = tmp_path / "pictures" / f"{'abcd'[number % 4]}{number}.png"
        file.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(file), np.full((height, width, 3), 90, np.uint8))
        objects = []
        for _ in range(int(drawn.integers(1, 5)) if number != 5 else 0):
            corner = drawn.integers(0, (width * 50, height * 50)) / 100
            side = 2 + drawn.random(2) * (np.array((width, height)) - corner - 2)
            x2, y2 = (round(float(v), 2) for v in corner + side)
            name = ("cat", "no", "0012", "a dog")[int(drawn.integers(4))]
            objects.append((name, (float(corner[0]), float(corner[1]), x2, y2)))
        if number == 1:
            objects = [("cat", (0.0, 0.0, float(width), float(height)))] * 2
        if number == 0:
            objects += [(name, (1.0, 2.0, 30.0, 31.5)) for name in ("cat", "no", "0012", "a dog")]
        picture = Picture(file, width, height, tuple(objects))
        pictures["val" if number > 8 else "train"].append(picture)
    return pictures


def require_equal(annotations: Annotations, part: list[Picture]) -> None:
    """Every picture with its objects, each within the tolerance, in whatever order."""
    expected = {picture.file.name: picture for picture in part}
    assert {Path(file).name for file in annotations.image_files.tolist()} == expected.keys()
    assert len(annotations) == len(part)
    for row, file in enumerate(annotations.image_files.tolist()):
        picture = expected[Path(file).name]
        assert annotations.image_sizes[row].tolist() == [picture.height, picture.width]
        found, wanted = defaultdict(list), defaultdict(list)
        objects = slice(*annotations.offsets[row : row + 2].tolist())
        for index, box in zip(
            annotations.class_indices[objects].tolist(),
            annotations.boxes[objects].tolist(),
            strict=True,
        ):
            found[annotations.class_map.names[index]].append(box)
        for name, box in picture.objects:
            wanted[name].append(box)
        assert found.keys() == wanted.keys()
        for name, boxes in wanted.items():
            assert len(found[name]) == len(boxes)
            left = [np.array(box) for box in found[name]]
            for box in boxes:
                distances = [np.abs(one - box).max() for one in left]
                nearest = int(np.argmin(distances))
                assert distances[nearest] <= TOLERANCE, (file, name, box)
                left.pop(nearest)


def digests_of(pictures: Pictures, out: Path) -> set[str]:
    """The training digests of all formats, whose annotations are as they should be."""
    digests = set()
    for name, write in WRITERS.items():
        write(pictures, out / name)
        found = recognise(out / name)
        assert found.data.format == FORMATS[name]
        assert found.data.val_share == 0
        train = read_split(found.data, "train")
        require_equal(train, pictures["train"])
        require_equal(read_split(found.data, "val"), pictures["val"])
        digests.add(training_digest(train))
    return digests


def test_pictures_are_the_same_in_every_format(few: Pictures, tmp_path: Path) -> None:
    assert len(digests_of(few, tmp_path / "out")) == 1


def test_blood_cells_are_the_same_in_every_format(shared_data, tmp_path: Path) -> None:
    root = shared_data("bccd/BCCD")
    pictures = pictures_of_voc(root, {"train": "train", "val": "val"})
    digests = digests_of(pictures, tmp_path)
    own = recognise(root).data
    assert (own.train, own.val, own.test) == (("train",), ("val",), ("test",))
    assert digests == {training_digest(read_split(own, "train"))}


def test_photographs_of_coco_are_the_same_in_every_format(shared_data, tmp_path: Path) -> None:
    root = shared_data("coco_mini")
    digests = digests_of(pictures_of_coco(root), tmp_path)
    assert digests == {training_digest(read_split(recognise(root).data, "train"))}


def test_a_split_is_the_same_in_every_format(few: Pictures, tmp_path: Path) -> None:
    """Of one part, which nothing divides: val is drawn, and by the names alone."""
    whole = {"all": [picture for part in few.values() for picture in part]}
    digests, held = set(), set()
    for name, write in WRITERS.items():
        write(whole, tmp_path / "whole" / name)
        found = recognise(tmp_path / "whole" / name)
        assert found.data.val_share == 0.2
        train, val = (read_split(found.data, split) for split in ("train", "val"))
        digests.add(training_digest(train))
        held.add(frozenset(Path(file).name for file in val.image_files.tolist()))
    assert len(digests) == len(held) == 1
    (names,) = held
    assert names == {"a0.png", "a4.png", "a8.png"}  # frames of one video, by their names


@pytest.mark.parametrize(
    ("labels", "images"), [(".", "."), ("xml", "photos"), ("a/labels", "a/pictures")]
)
def test_folders_may_have_any_name(few: Pictures, tmp_path: Path, labels: str, images: str) -> None:
    for picture in few["train"]:
        put(picture, tmp_path / "own" / images)
        path = tmp_path / "own" / labels / f"{picture.stem}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(xml_of(picture))
    data = recognise(tmp_path / "own").data
    assert data.train == (labels,)
    assert data.train_images == (() if labels == images else (images,))
    data = data.model_copy(
        update={"val_share": 0.0, "val": data.train, "val_images": data.train_images}
    )
    require_equal(read_split(data, "train"), few["train"])


def test_the_digest_tells_what_is_learned_from(few: Pictures, tmp_path: Path) -> None:
    def digest_with(change: dict, name: str) -> str:
        pictures = {split: list(part) for split, part in few.items()}
        first = pictures["train"][0]
        pictures["train"][0] = Picture(
            **{key: change.get(key, getattr(first, key)) for key in vars(first)}
        )
        write_plain_xml(pictures, tmp_path / name)
        return training_digest(read_split(recognise(tmp_path / name).data, "train"))

    first = few["train"][0]
    (name, (x1, y1, x2, y2)), *others = first.objects
    same = digest_with({}, "same")
    moved = ((name, (x1, y1, x2, y2 - 0.2)), *others)
    assert digest_with({"objects": moved}, "moved") != same
    assert digest_with({"objects": (("rat", (x1, y1, x2, y2)), *others)}, "named") != same
    assert digest_with({"objects": tuple(others)}, "fewer") != same
    assert digest_with({"width": first.width + 1}, "wider") != same
    assert digest_with({"objects": (*others, first.objects[0])}, "in another order") == same


def test_the_digest_is_of_rounded_boxes_whose_edge_files_do_not_hit(tmp_path: Path) -> None:
    """Hundredths and halves of a pixel are the same 0.004 px off; another tenth is not."""
    file = tmp_path / "a.png"
    cv2.imwrite(str(file), np.zeros((60, 60, 3), np.uint8))

    def digest_of(x1: float) -> str:
        objects = (("cat", (x1, 5.0, 50.0, 50.0)),)
        part = [Picture(file, 60, 60, objects)]
        folder = tmp_path / f"at {x1}"
        write_csv({"train": part, "val": part}, folder)
        return training_digest(read_split(recognise(folder).data, "train"))

    for x1 in (7.0, 7.05, 7.06, 7.5, 7.25, 7.99):
        assert digest_of(x1 - 0.004) == digest_of(x1) == digest_of(x1 + 0.004)
    assert digest_of(7.3) != digest_of(7.4)

"""What a whole look at a data set says, on photographs and with faults planted."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from detres.detection.config import DataConfig
from detres.detection.data.audit import Audit, audit, audit_briefly, look_at
from detres.detection.data.read import read_as_written, splits_of
from tests.detection.data.planted import MODEL, parts, picture, told, write_split

BOX = (10.0, 10.0, 60.0, 60.0)


def audited(data: DataConfig) -> Audit:
    splits = {split: read_as_written(data, split) for split in splits_of(data)}
    return audit(look_at(splits, 0), MODEL)


def test_a_clean_data_set_has_no_finding(tmp_path: Path) -> None:
    splits = {}
    for name, seed in (("train", 0), ("val", 50)):
        files = {f"{number}.png": picture(seed + number) for number in range(10)}
        objects = [(f"{number}.png", ("cat", "dog")[number % 2], BOX) for number in range(10)]
        splits[name] = write_split(tmp_path, name, files, objects)
    found = audit(parts(**splits), MODEL)
    assert told(found.findings) == {"seldom_seen": ["cat: 5 in train", "dog: 5 in train"]}
    assert found.verdict() == "0 errors, 0 warnings, 1 note"
    train = found.splits["train"]
    assert (train.images, train.without_objects, train.objects) == (10, 0, 10)
    assert train.class_counts == {"cat": 5, "dog": 5}
    np.testing.assert_allclose(train.sides, 50 * 600 / 96)


def planted(tmp_path: Path) -> Audit:
    """One fault of most kinds."""
    train = {f"{number}.png": picture(number) for number in range(4)} | {"cut.png": b"\x89PNG\r\n"}
    val = {"x.png": picture(2), "y.png": picture(9)}
    objects = [
        ("0.png", "cat", BOX),
        ("0.png", "cat", BOX),
        ("1.png", "cat", (float("inf"), 0, 9, 9)),
        ("2.png", "cat", (30, 10, 30, 60)),
    ]
    return audit(
        parts(
            train=write_split(tmp_path, "train", train, objects),
            val=write_split(tmp_path, "val", val, [("x.png", "dog", BOX)]),
        ),
        MODEL,
    )


def test_the_worst_comes_first_with_an_example_and_advice(tmp_path: Path) -> None:
    found = planted(tmp_path)
    kinds = [finding.kind for finding in found.findings]
    assert kinds == [
        "unreadable",
        "leak",
        "not_finite",
        "without_area",
        "duplicate_boxes",
        "never_learnt",
        "seldom_seen",
        "without_objects",
    ]
    text = found.describe().splitlines()
    assert text[0].startswith("train: 5 images (2 without objects), 4 boxes of 2 classes: ")
    assert text[2:5] == [
        f"files are named from {tmp_path}",
        "found: 5 errors, 1 warning, 2 notes",
        "error (1): images that cannot be read",
    ]
    assert text[5].startswith("  such as train train/cut.png: cannot be read: ")
    assert text[6] == f"  {found.findings[0].advice}"


def test_it_is_plain_json(tmp_path: Path) -> None:
    found = planted(tmp_path)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert plain["splits"]["train"]["class_counts"] == {"cat": 4, "dog": 0}
    assert (plain["short_side"], plain["max_side"], plain["base"]) == (600, 1000, str(tmp_path))
    of_kind = {finding["kind"]: finding for finding in plain["findings"]}
    leak = of_kind["leak"]["examples"][0]
    assert leak["where"] == "val val/x.png"
    assert leak["pictures"][1]["file"] == str(tmp_path / "train" / "2.png")
    (box,) = of_kind["not_finite"]["examples"][0]["pictures"][0]["boxes"]
    assert box[0] == "inf"
    assert [finding["count"] for finding in plain["findings"]] == [1, 1, 1, 1, 1, 1, 1, 3]


def test_briefly_it_says_what_reading_does_not(tmp_path: Path) -> None:
    files = {"a.png": picture(0)}
    objects = [("a.png", "cat", BOX), ("a.png", "cat", BOX), ("a.png", "cat", (30, 10, 30, 60))]
    train = write_split(tmp_path, "train", files, objects)
    val = write_split(tmp_path, "val", files, [("a.png", "dog", (10, 10, 60, 10.5))])
    (tmp_path / "train" / "a.png").unlink()  # no image is opened
    assert audit_briefly(train, val, (96, 160)) == [
        "warning (1): classes that val or test has objects of, and train has none, such as dog: 1 "
        "in val",
        "error (1): boxes that are there twice, with the same class, such as train train/a.png, "
        "annotation 101 (cat): box [10, 10, 60, 60]; [10, 10, 60, 60] is annotation 100 (cat)",
        "note (1): boxes with a side under 8 px at the training scale (short side 96 px), 25.0% of "
        "those to learn from, such as val val/a.png, annotation 100 (dog): 50x0.5 px, 50x0.5 at "
        "the training scale",
    ]
    clean = write_split(tmp_path, "clean", files, [("a.png", "cat", BOX)])
    assert audit_briefly(clean, clean, (600, 1000)) == []


# ---- photographs ----


def test_bccd_has_two_boxes_without_area(shared_data) -> None:
    root = shared_data("bccd/BCCD")
    found = audited(DataConfig(format="voc", root=str(root), train=["trainval"], val=["test"]))
    errors = [finding for finding in found.findings if finding.level == "error"]
    assert [finding.kind for finding in errors] == ["without_area"]
    where = [example.where for example in errors[0].examples]
    assert len(where) == 2
    assert "BloodImage_00338.jpg, object " in where[0] + where[1]
    assert "BloodImage_00343.jpg, object " in where[0] + where[1]


def test_photographs_give_no_false_alarm(shared_data) -> None:
    found = audited(
        DataConfig(
            format="coco",
            root=str(shared_data("coco_mini")),
            train=["annotations/instances_train2017.json"],
            train_images=["train2017"],
            val=["annotations/instances_val2017.json"],
            val_images=["val2017"],
        )
    )
    assert found.count("error") == 0
    assert {finding.kind for finding in found.findings} <= {
        "never_learnt",
        "seldom_seen",
        "never_seen",
        "tiny_boxes",
        "without_objects",
    }


@pytest.mark.parametrize("seed", range(10))
def test_what_is_planted_among_photographs_is_found(tmp_path: Path, shared_data, seed: int) -> None:
    """In a copy of the photographs' annotations: a leak, a re-encoded one, a duplicate, swapped
    corners and exchanged axes, each at a place of its own.
    """
    random = np.random.default_rng(seed)
    source = shared_data("coco_mini")
    train = json.loads((source / "annotations" / "instances_train2017.json").read_text())
    train["images"] = list(random.choice(train["images"], 25, replace=False))
    images = {image["id"]: image for image in train["images"]}
    train["annotations"] = [each for each in train["annotations"] if each["image_id"] in images]
    leaked, again = train["images"][:2]
    objects = [each for each in train["annotations"] if not each["iscrowd"]]
    leaving = [
        each for each in objects if _beyond_when_exchanged(each["bbox"], images[each["image_id"]])
    ]
    exchanged = random.choice(leaving)
    others = [each for each in objects if each is not exchanged]
    doubled, swapped = random.choice(others, 2, replace=False)
    train["annotations"].append({**doubled, "id": 10**9})
    x, y, width, height = swapped["bbox"]
    swapped["bbox"] = [x + width, y, -width, height]
    x, y, width, height = exchanged["bbox"]
    exchanged["bbox"] = [y, x, height, width]
    val = {
        "images": [{"id": 1, "file_name": "leaked.jpg"}, {"id": 2, "file_name": "again.jpg"}],
        "annotations": [],
        "categories": train["categories"],
    }
    folder = tmp_path / "images"
    folder.mkdir()
    from_train = source / "train2017"
    (folder / "leaked.jpg").write_bytes((from_train / leaked["file_name"]).read_bytes())
    _reencoded(from_train / again["file_name"], folder / "again.jpg")
    for name, content in {"train": train, "val": val}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    found = audited(
        DataConfig(
            format="coco",
            root=str(tmp_path),
            train=["train.json"],
            train_images=[str(from_train)],
            val=["val.json"],
            val_images=["images"],
        )
    )
    errors = told([finding for finding in found.findings if finding.level == "error"])
    assert set(errors) == {
        "leak",
        "near_leak",
        "duplicate_boxes",
        "swapped_corners",
        "exchanged_axes",
    }
    assert "leaked.jpg" in errors["leak"][0]
    assert leaked["file_name"] in errors["leak"][0]
    assert again["file_name"] in errors["near_leak"][0]
    assert f"annotation {swapped['id']} " in errors["swapped_corners"][0]
    assert f"annotation {exchanged['id']} " in errors["exchanged_axes"][0]
    assert "annotation 1000000000 " in errors["duplicate_boxes"][0]
    assert all(len(examples) == 1 for examples in errors.values())


def _beyond_when_exchanged(bbox: list[float], image: dict) -> bool:
    """Whether a box leaves its image by 3 % when x and y are exchanged."""
    x, y, width, height = bbox
    return y + height > 1.03 * image["width"] or x + width > 1.03 * image["height"]


def _reencoded(source: Path, target: Path) -> None:
    """Write an image at three quarters of its size and a lower quality."""
    image = cv2.imread(str(source))
    small = cv2.resize(image, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(target), small, [cv2.IMWRITE_JPEG_QUALITY, 60])

"""What the numbers of objects of each class say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from detres.detection.data.class_findings import class_findings
from detres.detection.data.findings import parts_of
from tests.detection.data.planted import picture, told, write_split

BOX = (10.0, 10.0, 60.0, 60.0)
ALL = ("cat", "dog", "owl", "pig")


def split(root: Path, name: str, counts: dict[str, int], classes: tuple[str, ...] = ALL):
    objects = [("a.png", of, BOX) for of, count in counts.items() for _ in range(count)]
    return write_split(root, name, {"a.png": picture(0)}, objects, classes=classes)


def test_seldom_never_learnt_and_never_seen(tmp_path: Path) -> None:
    found = class_findings(
        parts_of(
            {
                "train": split(tmp_path, "train", {"cat": 10, "dog": 9}),
                "val": split(tmp_path, "val", {"cat": 1, "owl": 2}),
            }
        )
    )
    assert told(found) == {
        "never_learnt": ["owl: 2 in val"],
        "seldom_seen": ["dog: 9 in train"],
        "never_seen": ["pig"],
    }
    assert [finding.level for finding in found] == ["warning", "note", "note"]


def test_crowd_objects_are_not_learnt(tmp_path: Path) -> None:
    train = split(tmp_path, "train", {"cat": 10, "dog": 10}, ("cat", "dog"))
    crowd = replace(train, crowd=train.class_indices == 1)
    val = split(tmp_path, "val", {"dog": 1}, ("cat", "dog"))
    found = class_findings(parts_of({"train": crowd, "val": val}))
    assert told(found) == {"never_learnt": ["dog: 1 in val"]}


def test_splits_of_other_classes(tmp_path: Path) -> None:
    """A class more without objects is none of them: training takes it."""
    found = class_findings(
        parts_of(
            {
                "train": split(tmp_path, "train", {"cat": 10, "dog": 10}, ("cat", "dog")),
                "val": split(tmp_path, "val", {"cat": 1, "Dog": 2}, ("cat", "Dog", "pig")),
            }
        )
    )
    assert told(found) == {
        "other_classes": [
            "Dog: val has 2 objects, train no such class",
            "dog: train has the class, val does not",
        ]
    }
    assert found[0].level == "error"


def test_a_test_set_without_truth_lacks_no_class(tmp_path: Path) -> None:
    train = split(tmp_path, "train", {"cat": 10}, ("cat",))
    test = split(tmp_path, "test", {}, ("dog",))
    unknown = replace(test, without_truth="no annotations")
    assert told(class_findings(parts_of({"train": train, "test": unknown}))) == {}
    assert np.diff(unknown.offsets).tolist() == [0]

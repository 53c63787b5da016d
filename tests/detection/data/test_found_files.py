from __future__ import annotations

import pytest

from detres.detection.data.found_files import (
    FoundFiles,
    best_folder,
    common_folder,
    folder_with,
    is_inside,
    split_of,
)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("instances_train2017.json", "train"),
        ("annotations/instances_minival2014.json", "val"),
        ("valid/labels/a.txt", "val"),
        ("Training Set/x.json", "train"),
        ("test/x.json", "test"),
        ("train/val.json", "val"),  # the last name that tells one
        ("train/train_and_val.json", None),
        ("trained/contest/interval.json", None),
        ("a.json", None),
    ],
)
def test_the_split_is_told_by_whole_words(path, split):
    assert split_of(path) == split


def test_folders_are_compared_by_count_then_split_then_place():
    assert best_folder({"a": 3, "b": 5}, "x") == "b"
    assert best_folder({"a/train": 5, "b/val": 5}, "l/val/x") == "b/val"
    assert best_folder({"a/images": 5, "b/images": 5}, "b/labels/x") == "b/images"
    assert best_folder({"b": 5, "a": 5}, "c/x") == "a"
    assert best_folder({}, "x") is None


@pytest.mark.parametrize(
    ("folders", "common"),
    [(["a/b", "a/c"], "a"), (["a/b"], "a/b"), (["a", "b"], "."), (["ab", "a"], "."), (["."], ".")],
)
def test_the_folder_in_common(folders, common):
    assert common_folder(folders) == common


def test_inside_is_by_whole_names():
    assert is_inside("a/b", "a")
    assert is_inside("a", "a")
    assert is_inside("a", ".")
    assert not is_inside("ab", "a")
    assert not is_inside("../a", ".")
    assert not is_inside("/a", ".")


def test_images_are_found_by_the_end_of_their_path(tmp_path):
    for name in ("x/train/1.jpg", "x/val/1.JPG", "x/val/deep/2.png", "y/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    files = FoundFiles.below(tmp_path)
    assert files.images == ["x/train/1.jpg", "x/val/1.JPG", "x/val/deep/2.png", "y/2.png"]
    assert files.image_folder(["1.jpg"], "val.json") == "x/val"
    assert files.image_folder(["val\\1.jpg"], "train.json") == "x"
    assert files.image_folder(["deep/2.png"], "a.json") == "x/val"
    assert files.image_folder(["eep/2.png", "3.png"], "a.json") is None
    assert files.image_folder([], "a.json") is None
    assert folder_with(tmp_path, ["1.jpg"]) == "x/train"
    assert folder_with(tmp_path / "x", ["deep\\2.png"]) == "val"
    assert folder_with(tmp_path, ["3.png"]) is None

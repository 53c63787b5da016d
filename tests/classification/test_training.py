"""What of a classifier's data counts as a change between two parts of a run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from detres.class_map import ClassMap
from detres.classification.training import fingerprint_of
from detres.images.source import ImageArrays, ImageFiles, ImageShards, LabelledImages

CLASSES = ClassMap.of_names(("a", "b"))
LABELS = np.array([0, 1, 1], np.int64)


def arrays() -> ImageArrays:
    pixels = np.arange(3 * 2 * 2 * 3, dtype=np.uint8).reshape(3, 2, 2, 3)
    return ImageArrays("arrays", CLASSES, pixels, LABELS)


def shards() -> ImageShards:
    urls = ("s3://bucket/one.tar", "s3://bucket/two.tar")
    place = {"offsets": np.array([512, 512, 4096]), "sizes": np.array([10, 20, 30])}
    numbers = np.array([0, 1, 1], np.int32)
    keys = np.array(["x.jpg", "x.jpg", "y.jpg"])
    return ImageShards("shards", CLASSES, urls, numbers, **place, keys=keys, labels=LABELS)


def changed(images: LabelledImages, **other: object) -> str | None:
    before = fingerprint_of(images).state()
    return fingerprint_of(replace(images, **other)).what_changed(before)


def with_one(values: np.ndarray, row: int, value: object) -> np.ndarray:
    other = values.copy()
    other[row] = value
    return other


@pytest.mark.parametrize("images", [arrays(), shards()], ids=["arrays", "shards"])
def test_labels_and_order_count_and_where_the_set_is_does_not(images):
    assert changed(images, source="elsewhere") is None
    assert changed(images, labels=with_one(LABELS, 2, 0)) == (
        f"1 of 3 records differ, the first is {images.name(2)}"
    )


def test_pixels_count():
    images = arrays()
    assert changed(images, pixels=with_one(images.pixels, 1, 7)).startswith("1 of 3 records differ")
    assert "another order" in changed(images, pixels=images.pixels[::-1], labels=LABELS[::-1])


def test_where_an_image_lies_in_its_shards_counts():
    images = shards()
    moved = ("file:///disk/one.tar", "file:///disk/two.tar")
    assert changed(images, urls=moved) is None
    assert changed(images, urls=moved[::-1]).startswith("3 of 3 records differ")
    for name, value in (("offsets", 8192), ("keys", "z.jpg")):
        assert changed(images, **{name: with_one(getattr(images, name), 2, value)}) == (
            f"1 of 3 records differ, the first is {images.name(2)}".replace(
                "y.jpg", "z.jpg" if name == "keys" else "y.jpg"
            )
        )
    assert changed(images, sizes=with_one(images.sizes, 0, 11)) == (
        f"the files of 1 of 3 records have another name or size, the first is {images.name(0)}"
    )


def test_names_and_sizes_of_files_count(tmp_path):
    paths = [tmp_path / "train" / name for name in ("a/1.jpg", "b/1.jpg", "b/2.jpg")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"xyz")
    images = ImageFiles("files", CLASSES, np.array([str(path) for path in paths]), LABELS)
    before = fingerprint_of(images).state()
    assert fingerprint_of(images).what_changed(before) is None
    paths[1].write_bytes(b"longer")
    assert fingerprint_of(images).what_changed(before) == (
        f"the files of 1 of 3 records have another name or size, the first is {paths[1]}"
    )
    assert "1 of 3 records differ" in changed(images, labels=with_one(LABELS, 0, 1))

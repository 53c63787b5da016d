from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detres.class_map import ClassMap
from detres.images.decode import ImageReadError
from detres.images.source import ImageArrays, ImageFiles, ImageShards, LabelledImages

CLASSES = ClassMap.of_names(("a", "b"))
LABELS = np.array([0, 1, 1])


def files_of(folder: Path) -> ImageFiles:
    """Three files that hold "one", "two" and "three"."""
    paths = [folder / f"{word}.png" for word in ("one", "two", "three")]
    for path in paths:
        path.write_text(path.stem)
    return ImageFiles("files", CLASSES, np.array(list(map(str, paths))), LABELS)


def shards_of(folder: Path) -> ImageShards:
    """The same three as byte ranges of two files."""
    (folder / "0.tar").write_bytes(b"....one....two")
    (folder / "1.tar").write_bytes(b"three")
    return ImageShards(
        "shards",
        CLASSES,
        (str(folder / "0.tar"), str(folder / "1.tar")),
        np.array([0, 0, 1], np.int32),
        np.array([4, 11, 0]),
        np.array([3, 3, 5]),
        np.array(["one.png", "two.png", "three.png"]),
        LABELS,
    )


def test_sets_have_the_length_of_their_images() -> None:
    classes = ClassMap(("a", "b"), (1, 2))
    labels = np.array([0, 1, 1])
    assert len(ImageFiles("files", classes, np.array(["1.png", "2.png", "3.png"]), labels)) == 3
    assert len(ImageArrays("arrays", classes, np.zeros((3, 4, 5, 3), np.uint8), labels)) == 3
    assert len(ImageFiles("none", classes, np.array([], dtype=str), labels[:0])) == 0
    assert len(ImageArrays("none", classes, np.zeros((0, 4, 5, 3), np.uint8), labels[:0])) == 0


def test_files_shards_and_arrays_say_the_same_of_themselves(tmp_path: Path) -> None:
    arrays = ImageArrays("arrays", CLASSES, np.zeros((3, 4, 5, 3), np.uint8), LABELS)
    expected: list[tuple[LabelledImages, tuple[int, int] | None, str]] = [
        (files_of(tmp_path), None, str(tmp_path / "three.png")),
        (shards_of(tmp_path), None, f"{tmp_path / '1.tar'}: three.png"),
        (arrays, (4, 5), "arrays, image 2"),
    ]
    for images, size, name in expected:
        assert len(images) == 3
        assert images.size == size
        assert images.damaged == ()
        assert images.name(2) == name
        assert images.class_map == CLASSES
        assert images.labels.tolist() == [0, 1, 1]
    assert [images.source for images, _, _ in expected] == ["files", "shards", "arrays"]


def test_arrays_keep_the_names_of_damaged_images_and_the_size_of_none() -> None:
    arrays = ImageArrays(
        "arrays", CLASSES, np.zeros((0, 4, 5, 3), np.uint8), LABELS[:0], ("x.png", "y.png")
    )
    assert arrays.damaged == ("x.png", "y.png")
    assert arrays.size == (4, 5)


def test_files_and_shards_give_the_bytes_of_each_image(tmp_path: Path) -> None:
    for images in (files_of(tmp_path), shards_of(tmp_path)):
        assert [images.read_bytes(n) for n in range(3)] == [b"one", b"two", b"three"]


def test_an_image_that_is_gone_is_named(tmp_path: Path) -> None:
    files, shards = files_of(tmp_path), shards_of(tmp_path)
    (tmp_path / "two.png").unlink()
    with pytest.raises(ImageReadError, match=r"two\.png does not exist"):
        files.read_bytes(1)
    (tmp_path / "0.tar").write_bytes(b"....one....t")
    with pytest.raises(ImageReadError, match=r"0\.tar: two\.png cannot be read: asked for 3 bytes"):
        shards.read_bytes(1)
    (tmp_path / "1.tar").unlink()
    with pytest.raises(ImageReadError, match=r"1\.tar: three\.png cannot be read"):
        shards.read_bytes(2)

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from detres.class_map import ClassMap
from detres.classification.data.image_folder import read_image_folder
from detres.classification.data.in_memory import decode_in_memory
from detres.images.decode import read_image
from tests.images.pixels import write_image


def test_folder_by_hand(tmp_path: Path) -> None:
    for name in (
        "owl/b.png",
        "owl/a.JPG",
        "cat/z.jpeg",
        "cat/deep/er/y.png",
        "cat/a.bmp",
        "Dog/1.webp",
    ):
        write_image(tmp_path / name)
    images = read_image_folder(tmp_path)
    assert images.class_map == ClassMap(("Dog", "cat", "owl"), (1, 2, 3))
    expected = [
        "Dog/1.webp",
        "cat/a.bmp",
        "cat/deep/er/y.png",
        "cat/z.jpeg",
        "owl/a.JPG",
        "owl/b.png",
    ]
    assert images.files.tolist() == [str(tmp_path / name) for name in expected]
    assert images.labels.tolist() == [0, 1, 1, 1, 2, 2]
    assert images.labels.dtype == np.int64
    assert len(images) == 6
    assert images.source == str(tmp_path)


def test_dot_names_and_other_files_are_passed_over_and_the_others_counted(tmp_path: Path) -> None:
    for name in (
        "cat/1.png",
        "cat/.2.png",
        "cat/.thumbnails/3.png",
        "cat/deep/.cache/more/4.png",
        ".git/5.png",
        "dog/6.png",
    ):
        write_image(tmp_path / name)
    for name in ("cat/readme.txt", "cat/deep/boxes.xml", "dog/png", ".hidden", "beside.png"):
        (tmp_path / name).write_text("no image")
    images = read_image_folder(tmp_path)
    assert images.class_map.names == ("cat", "dog")
    assert images.files.tolist() == [str(tmp_path / "cat/1.png"), str(tmp_path / "dog/6.png")]
    assert images.source == f"{tmp_path} (3 files that are no images passed over)"


def test_a_root_below_a_folder_with_a_dot_is_read(tmp_path: Path) -> None:
    file = write_image(tmp_path / ".cache" / "set" / "cat" / "1.png")
    assert read_image_folder(tmp_path / ".cache" / "set").files.tolist() == [str(file)]


def test_asked_for_classes_come_in_their_order_and_alone(tmp_path: Path) -> None:
    for name in ("ant/1.png", "bee/1.png", "cow/1.png", "cow/2.png"):
        write_image(tmp_path / name)
    (tmp_path / "empty").mkdir()  # not asked for, so no fault
    images = read_image_folder(tmp_path, classes=["cow", "ant"])
    assert images.class_map == ClassMap(("cow", "ant"), (1, 2))
    assert images.files.tolist() == [
        str(tmp_path / name) for name in ("cow/1.png", "cow/2.png", "ant/1.png")
    ]
    assert images.labels.tolist() == [0, 0, 1]


def test_a_linked_class_folder_counts(tmp_path: Path) -> None:
    write_image(tmp_path / "elsewhere" / "1.png")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "elsewhere")
    assert read_image_folder(tmp_path / "root").files.tolist() == [
        str(tmp_path / "root" / "cat" / "1.png")
    ]


def test_every_file_has_the_label_of_its_folder(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    written = {
        write_image(
            tmp_path / f"class{rng.integers(5)}" / f"sub{rng.integers(3)}" / f"{number}.png"
        )
        for number in range(60)
    }
    images = read_image_folder(tmp_path)
    assert {Path(file) for file in images.files} == written
    assert len(images.files) == len(written)
    assert images.class_map.names == tuple(
        sorted({file.relative_to(tmp_path).parts[0] for file in written})
    )
    for file, label in zip(images.files, images.labels, strict=True):
        assert images.class_map.names[label] == Path(file).relative_to(tmp_path).parts[0]
    assert [Path(file) for file in images.files] == sorted(written)


@pytest.mark.parametrize(
    "suffix", [".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".JPEG", ".Png"]
)
def test_every_ending_that_can_be_read_is_taken(tmp_path: Path, suffix: str) -> None:
    file = write_image(tmp_path / "cat" / f"a{suffix}")
    assert read_image_folder(tmp_path).files.tolist() == [str(file)]
    assert read_image(file).shape == (3, 4, 3)


@pytest.mark.parametrize("seed", range(3))
def test_random_trees_are_read_as_torchvision_reads_them(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = ["a", "B", "c d", "é", "10", "9"]
    files = [tmp_path / name / "first.bmp" for name in names]
    for _ in range(40):
        folders = rng.choice(names, rng.integers(1, 4)).tolist()
        files.append(
            tmp_path.joinpath(
                *folders, f"{rng.integers(1000)}{rng.choice(['.png', '.JPG', '.txt'])}"
            )
        )
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"not opened")
    images, witness = read_image_folder(tmp_path), ImageFolder(tmp_path)
    assert list(images.class_map.names) == witness.classes
    assert sorted(zip(images.files.tolist(), images.labels.tolist(), strict=True)) == sorted(
        witness.samples
    )


def test_tiny_imagenet_is_read_as_torchvision_reads_it(shared_data) -> None:
    root = shared_data("tiny_imagenet50")
    for split, number in (("train", 10_000), ("val", 1000)):
        images, witness = read_image_folder(root / split), ImageFolder(root / split)
        assert list(images.class_map.names) == witness.classes
        assert (
            list(zip(images.files.tolist(), images.labels.tolist(), strict=True)) == witness.samples
        )
        assert np.bincount(images.labels).tolist() == [number // 50] * 50
    held = decode_in_memory(images)
    assert held.pixels.shape == (1000, 64, 64, 3)
    for row in range(0, 1000, 97):
        np.testing.assert_array_equal(held.pixels[row], np.asarray(witness[row][0]))
        assert held.labels[row] == witness[row][1]


def test_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere does not exist or is not a folder"):
        read_image_folder(tmp_path / "nowhere")
    write_image(tmp_path / "flat" / "1.png")
    (tmp_path / "flat" / ".dots").mkdir()
    with pytest.raises(FileNotFoundError, match=r"1\.png does not exist or is not a folder"):
        read_image_folder(tmp_path / "flat" / "1.png")
    with pytest.raises(ValueError, match="flat has no class folders"):
        read_image_folder(tmp_path / "flat")
    write_image(tmp_path / "set" / "cat" / "1.png")
    write_image(tmp_path / "set" / "dog" / ".1.png")
    (tmp_path / "set" / "dog" / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"class folder \S*dog has no image"):
        read_image_folder(tmp_path / "set")
    with pytest.raises(ValueError, match="no folder for class cow, Cat; it has cat, dog"):
        read_image_folder(tmp_path / "set", classes=["cow", "cat", "Cat"])
    with pytest.raises(ValueError, match="name cat is given to more than one class"):
        read_image_folder(tmp_path / "set", classes=["cat", "cat"])


def test_a_missing_class_lists_eight_of_many(tmp_path: Path) -> None:
    for number in range(11):
        write_image(tmp_path / f"c{number:02}" / "1.png")
    with pytest.raises(
        ValueError, match="it has c00, c01, c02, c03, c04, c05, c06, c07 and 3 more"
    ):
        read_image_folder(tmp_path, classes=["x"])


# ---- what is there but cannot be read ----


def write(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def spoilt(root: Path) -> list[str]:
    """A class with one good image, a dangling link and a FIFO; the paths of the latter two."""
    write(root / "a" / "1.png")
    write(root / "b" / "1.png")
    (root / "a" / "2.png").symlink_to("gone.png")
    os.mkfifo(root / "a" / "3.png")
    return [str(root / "a" / "2.png"), str(root / "a" / "3.png")]


def test_a_dangling_link_is_an_error_by_name(tmp_path: Path) -> None:
    spoilt(tmp_path)
    with pytest.raises(
        FileNotFoundError,
        match=r"a/2\.png is a link to gone\.png, which is not there \(2 of 3 images cannot be used",
    ):
        read_image_folder(tmp_path)


def test_a_dangling_link_is_listed_where_damage_is_skipped(tmp_path: Path) -> None:
    bad = spoilt(tmp_path)
    images = read_image_folder(tmp_path, damaged="skip")
    assert list(images.damaged) == bad
    assert images.files.tolist() == [str(tmp_path / "a" / "1.png"), str(tmp_path / "b" / "1.png")]
    assert images.labels.tolist() == [0, 1]


def test_a_dangling_link_to_a_folder_of_images_is_one_too(tmp_path: Path) -> None:
    spoilt(tmp_path)
    for name in ("more", "README.txt"):
        (tmp_path / "b" / name).symlink_to("gone")
    images = read_image_folder(tmp_path, damaged="skip")
    assert images.damaged[-1] == str(tmp_path / "b" / "more")
    assert images.source.endswith("(1 files that are no images passed over)")
    with pytest.raises(FileNotFoundError, match=r"b/more is a link to gone, which is not there"):
        read_image_folder(tmp_path, classes=["b"])


def test_a_class_without_an_image_that_can_be_used_says_so(tmp_path: Path) -> None:
    spoilt(tmp_path)
    (tmp_path / "a" / "1.png").unlink()
    with pytest.raises(ValueError, match=r"a has no image that can be used, of 2 \(\.jpg"):
        read_image_folder(tmp_path, damaged="skip")


def test_a_class_folder_that_is_a_dangling_link_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a" / "1.png")
    (tmp_path / "b").symlink_to("gone")
    with pytest.raises(FileNotFoundError, match=r"class folder \S+/b is a link to gone, which"):
        read_image_folder(tmp_path)


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    write(tmp_path / "store" / "deep" / "1.png")
    write(tmp_path / "set" / "a" / "2.png")
    (tmp_path / "set" / "a" / "more").symlink_to(tmp_path / "store" / "deep")
    (tmp_path / "set" / "a" / "round").symlink_to("..")
    images = read_image_folder(tmp_path / "set")
    assert images.files.tolist() == [
        str(tmp_path / "set" / "a" / "2.png"),
        str(tmp_path / "set" / "a" / "more" / "1.png"),
    ]


def test_hidden_files_are_passed_over_and_other_files_counted(tmp_path: Path) -> None:
    for name in ("a/1.png", "a/._1.png", "a/.DS_Store", ".trash/1.png", "a/.cache/2.png"):
        write(tmp_path / name)
    write(tmp_path / "a" / "notes.txt")
    images = read_image_folder(tmp_path)
    assert images.files.tolist() == [str(tmp_path / "a" / "1.png")]
    assert images.source == f"{tmp_path} (1 files that are no images passed over)"

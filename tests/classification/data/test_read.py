from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backbones import InputSpec
from detres.class_map import ClassMap, ClassMismatchError
from detres.classification.config import ClassificationDataConfig
from detres.classification.data.image_folder import read_image_folder
from detres.classification.data.read import input_of, read_class_splits, read_held_out
from detres.config import check
from detres.images.decode import ImageReadError
from detres.images.source import ImageArrays, ImageFiles, ImageShards
from tests.classification.parts import NAMES, config_of, folder_data, noise, write_folder


def data_of(**fields: object) -> ClassificationDataConfig:
    return check(ClassificationDataConfig, {"format": "folder", **fields}, "test")


def write_shard(path: Path, labels: list[int]) -> None:
    """An image and its class number for each label."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for n, label in enumerate(labels):
            file = io.BytesIO()
            Image.fromarray(noise(8, 8, n)).save(file, "PNG")
            for name, content in ((f"{n}.png", file.getvalue()), (f"{n}.cls", b"%d" % label)):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_cifar(root: Path) -> Path:
    (root / "batches.meta.txt").write_text("\n".join(f"class{n}" for n in range(10)))
    for file, name in enumerate([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]):
        (root / f"{name}.bin").write_bytes(
            b"".join(bytes([row]) + bytes([10 * file + row]) * 3072 for row in range(2))
        )
    return root


# ---- the two splits ----


def test_an_image_folder_is_read_as_files_or_into_memory(tmp_path: Path) -> None:
    root = write_folder(tmp_path, size=(8, 10))
    train, val = read_class_splits(data_of(root=str(root)))
    assert isinstance(train, ImageFiles)
    assert isinstance(val, ImageFiles)
    assert train.files.tolist() == read_image_folder(root / "train").files.tolist()
    assert val.files.tolist() == read_image_folder(root / "val").files.tolist()
    train, val = read_class_splits(data_of(root=str(root), in_memory=True))
    assert isinstance(train, ImageArrays)
    assert train.size == val.size == (8, 10)
    assert np.array_equal(train.pixels[2], noise(8, 10, 10))
    assert np.array_equal(val.pixels[5], noise(8, 10, 1021))


def test_damaged_images_are_left_out_of_training_in_memory_alone(tmp_path: Path) -> None:
    root = write_folder(tmp_path, size=(8, 8))
    (root / "train" / "cat" / "0.png").write_bytes(b"")
    data = data_of(root=str(root), in_memory=True, damaged="skip")
    train, val = read_class_splits(data)
    assert train.damaged == (str(root / "train" / "cat" / "0.png"),)
    assert (len(train), len(val)) == (5, 6)
    (root / "val" / "owl" / "1.png").write_bytes(b"")
    with pytest.raises(ImageReadError, match=r"owl/1\.png"):
        read_class_splits(data)


def test_other_names_of_the_folders_and_asked_for_classes(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    (root / "train").rename(root / "first")
    data = data_of(root=str(root), train="first", classes=["owl", "cat"])
    train, val = read_class_splits(data)
    assert train.class_map == val.class_map == ClassMap.of_names(("owl", "cat"))
    assert train.labels.tolist() == [0, 0, 1, 1]


def test_cifar_has_a_test_set_or_images_held_out(tmp_path: Path) -> None:
    root = str(write_cifar(tmp_path))
    train, val = read_class_splits(data_of(format="cifar10", root=root))
    assert (len(train), len(val)) == (10, 2)
    assert val.pixels[:, 0, 0, 0].tolist() == [50, 51]
    train, val = read_class_splits(data_of(format="cifar10", root=root, hold_out=3))
    assert (len(train), len(val)) == (7, 3)
    values = np.concatenate((train.pixels, val.pixels))[:, 0, 0, 0].tolist()
    assert sorted(values) == [10 * file + row for file in range(5) for row in range(2)]
    assert np.array_equal(read_held_out(data_of(format="cifar10", root=root), None).labels, [0, 1])


def test_shards_say_that_they_are_indexed_and_held_out_ones_take_the_names_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETRES_CACHE", str(tmp_path / "cache"))
    write_shard(tmp_path / "train" / "0.tar", [0, 1, 2])
    write_shard(tmp_path / "val" / "0.tar", [0, 1])
    data = data_of(format="shards", root=str(tmp_path))
    shown: list[str] = []
    train, val = read_class_splits(data, shown.append)
    assert isinstance(train, ImageShards)
    assert train.class_map == val.class_map == ClassMap.of_names(("0", "1", "2"))
    assert [line.split(" of ")[0] for line in shown] == ["indexing 1"] * 2
    read_class_splits(data, shown.append)
    assert len(shown) == 2
    classes = ClassMap.of_names(NAMES)
    assert read_held_out(data, classes, shown.append).class_map == classes
    assert read_held_out(data, None).class_map.names == ("0", "1")


def test_splits_of_different_classes_or_sizes_are_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "a", size=(8, 8))
    (root / "val" / "owl").rename(root / "val" / "yak")
    with pytest.raises(ClassMismatchError, match="the class lists differ"):
        read_class_splits(data_of(root=str(root)))
    write_folder(tmp_path / "b", size=(8, 9))
    (root / "val").rename(root / "unused")
    (tmp_path / "b" / "val").rename(root / "val")
    data = data_of(root=str(root), in_memory=True)
    with pytest.raises(ValueError, match=r"images of 8x8 px, .* of 9x8: data\.in_memory wants"):
        read_class_splits(data)


def test_images_in_memory_are_not_cropped_to_another_size(tmp_path: Path) -> None:
    root = str(write_folder(tmp_path, size=(8, 12)))
    with pytest.raises(
        ValueError, match=r"takes images as they are, 12x8 px; leave out data\.crop_side 16"
    ):
        read_class_splits(data_of(root=root, in_memory=True, crop_side=16))
    train, _ = read_class_splits(data_of(root=root, in_memory=True, crop_side=8))
    assert train.size == (8, 12)


# ---- the held-out images alone ----


def test_held_out_images_need_no_training_images(tmp_path: Path) -> None:
    root = write_folder(tmp_path, size=(8, 8))
    (root / "train").rename(root / "unused")
    images = read_held_out(data_of(root=str(root)), None)
    assert isinstance(images, ImageFiles)
    assert images.class_map == ClassMap.of_names(NAMES)
    images = read_held_out(data_of(root=str(root), in_memory=True), ClassMap.of_names(("x",)))
    assert isinstance(images, ImageArrays)
    assert images.class_map == ClassMap.of_names(NAMES)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        read_held_out(data_of(root=str(root), val="nowhere"), None)


# ---- the input of a network ----

USUAL = InputSpec("bgr", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 256, 224)


def arrays(height: int, width: int) -> ImageArrays:
    pixels = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), dtype=np.uint8)
    return ImageArrays("four", ClassMap.of_names(NAMES), pixels, np.zeros(4, np.int64))


def test_a_networks_own_mean_stays_and_the_sizes_are_those_seen(tmp_path: Path) -> None:
    images = read_image_folder(write_folder(tmp_path) / "train")
    found = input_of(config_of(), images, USUAL)
    assert found == InputSpec("bgr", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 36, 32)
    in_memory = config_of(data={"format": "folder", "in_memory": True})
    found = input_of(in_memory, arrays(10, 8), USUAL)
    assert (found.short_side, found.crop_side, found.mean_image) == (8, 8, None)


@pytest.mark.parametrize("mean", ["channel", "pixel"])
def test_the_mean_of_arrays_by_channel_or_by_pixel(mean: str) -> None:
    images = arrays(8, 8)
    config = config_of(data={"format": "folder", "in_memory": True}, model={"mean": mean})
    found = input_of(config, images, USUAL)
    assert (found.channel_order, found.std) == ("rgb", (1.0, 1.0, 1.0))
    assert (found.short_side, found.crop_side) == (8, 8)
    assert found.mean == pytest.approx(images.pixels.mean(axis=(0, 1, 2)), rel=1e-5)
    if mean == "channel":
        assert found.mean_image is None
    else:
        expected = torch.from_numpy(images.pixels.mean(axis=0)).float().permute(2, 0, 1)
        torch.testing.assert_close(found.mean_image, expected)


def test_the_mean_of_files_is_that_of_their_centre_crops(tmp_path: Path) -> None:
    images = read_image_folder(write_folder(tmp_path, size=(36, 40)) / "train")
    found = input_of(config_of(model={"mean": "pixel"}), images, USUAL)
    crops = [np.asarray(Image.open(file))[2:34, 4:36] for file in images.files]
    expected = np.mean(crops, axis=0).transpose(2, 0, 1)
    np.testing.assert_allclose(found.mean_image.numpy(), expected, rtol=1e-5)
    assert (found.short_side, found.crop_side) == (36, 32)


def test_without_a_readable_file_there_is_no_mean(tmp_path: Path) -> None:
    images = read_image_folder(write_folder(tmp_path) / "train")
    for file in images.files:
        Path(file).write_bytes(b"")
    config = config_of(data=folder_data(damaged="skip"), model={"mean": "channel"})
    with pytest.raises(ImageReadError, match="no image for the mean can be read"):
        input_of(config, images, USUAL)

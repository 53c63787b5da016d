from __future__ import annotations

import hashlib
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import CIFAR10

from detres.class_map import ClassMap
from detres.classification.data.cifar10 import CIFAR10_FILES, hold_out, read_cifar10
from detres.images.source import ImageArrays

CIFAR_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def cifar_row(label: int, number: int) -> tuple[bytes, np.ndarray]:
    """The bytes of row `number` as CIFAR-10's page describes them (a label, the red plane row by
    row, green, blue), and the image.
    """
    image = np.zeros((32, 32, 3), np.uint8)
    row = [label]
    for channel in range(3):
        for y in range(32):
            for x in range(32):
                value = (7 * y + 3 * x + 80 * channel + 11 * number) % 256
                row.append(value)
                image[y, x, channel] = value
    return bytes(row), image


def write_cifar(root: Path, rows: int = 2) -> dict[str, list[tuple[int, np.ndarray]]]:
    """Write the six files with `rows` rows each and return split -> the labels and images in
    them.
    """
    root.mkdir(parents=True, exist_ok=True)
    (root / "batches.meta.txt").write_text("\n".join(CIFAR_NAMES) + "\n\n")
    written: dict[str, list[tuple[int, np.ndarray]]] = {"train": [], "test": []}
    names = [f"data_batch_{n}.bin" for n in (1, 2, 3, 4, 5)] + ["test_batch.bin"]
    for file, name in enumerate(names):
        content = b""
        for row in range(rows):
            label = (3 * file + 9 * row) % 10
            data, image = cifar_row(label, rows * file + row)
            content += data
            written["test" if name == "test_batch.bin" else "train"].append((label, image))
        (root / name).write_bytes(content)
    return written


def numbered(num: int) -> ImageArrays:
    """`num` images of 2x2 px that hold their own number, labelled by it modulo 3."""
    numbers = np.arange(num)
    pixels = np.repeat(numbers, 12).reshape(num, 2, 2, 3).astype(np.uint8)
    return ImageArrays(
        "numbers", ClassMap(("a", "b", "c"), (1, 2, 3)), pixels, (numbers % 3).astype(np.int64)
    )


# ---- reading ----


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("below", [True, False])
def test_cifar_is_read_as_it_was_written(tmp_path: Path, split: str, below: bool) -> None:
    written = write_cifar(tmp_path / "cifar-10-batches-bin")[split]
    images = read_cifar10(tmp_path if below else tmp_path / "cifar-10-batches-bin", split)
    assert images.class_map == ClassMap(CIFAR_NAMES, tuple(range(1, 11)))
    assert images.labels.tolist() == [label for label, _ in written]
    assert images.labels.dtype == np.int64
    assert images.pixels.dtype == np.uint8
    assert images.pixels.flags.c_contiguous
    np.testing.assert_array_equal(images.pixels, np.stack([image for _, image in written]))
    assert images.source == f"{tmp_path / 'cifar-10-batches-bin'} ({split})"


def test_cifar_red_comes_first(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    row = bytes([6]) + bytes([200]) * 1024 + bytes([100]) * 1024 + bytes([50]) * 1023 + bytes([51])
    (tmp_path / "test_batch.bin").write_bytes(row)
    images = read_cifar10(tmp_path, "test")
    assert images.labels.tolist() == [6]
    assert images.pixels[0, 0, 0].tolist() == [200, 100, 50]
    assert images.pixels[0, 31, 31].tolist() == [200, 100, 51]


@pytest.mark.parametrize("content", [b"", b"\0" * 3072, b"\0" * (2 * 3073 + 1)])
def test_a_cut_off_cifar_file_is_named(tmp_path: Path, content: bytes) -> None:
    write_cifar(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(content)
    with pytest.raises(
        ValueError,
        match=rf"data_batch_3\.bin has {len(content)} bytes, expected a multiple of 3073",
    ):
        read_cifar10(tmp_path, "train")
    assert len(read_cifar10(tmp_path, "test")) == 2


def test_a_cifar_label_out_of_range_is_named_with_its_row(tmp_path: Path) -> None:
    write_cifar(tmp_path, rows=3)
    content = bytearray((tmp_path / "data_batch_2.bin").read_bytes())
    content[2 * 3073] = 10
    (tmp_path / "data_batch_2.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"data_batch_2\.bin, row 2: label 10, expected 0\.\.9"):
        read_cifar10(tmp_path, "train")


def test_missing_cifar_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"batches\.meta\.txt is missing"):
        read_cifar10(tmp_path, "test")
    write_cifar(tmp_path)
    (tmp_path / "data_batch_5.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_5\.bin is missing"):
        read_cifar10(tmp_path, "train")
    (tmp_path / "batches.meta.txt").write_text("\n".join(CIFAR_NAMES[:9]))
    with pytest.raises(ValueError, match="names 9 classes, expected CIFAR-10's ten"):
        read_cifar10(tmp_path, "test")


def write_python_cifar(folder: Path, monkeypatch: pytest.MonkeyPatch, rows: int = 2) -> None:
    """Write what `write_cifar` does as the pickles of CIFAR-10's page, and make them the official
    ones.
    """
    folder.mkdir(parents=True)

    def write(name: str, content: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    sums = []
    for file, name in enumerate([*(f"data_batch_{n}" for n in (1, 2, 3, 4, 5)), "test_batch"]):
        labels = [(3 * file + 9 * row) % 10 for row in range(rows)]
        data = [
            np.frombuffer(cifar_row(label, rows * file + row)[0], np.uint8)[1:]
            for row, label in enumerate(labels)
        ]
        sums.append(
            [
                name,
                write(
                    name,
                    {
                        "batch_label": name,
                        "data": np.stack(data),
                        "labels": labels,
                        "filenames": ["x.png"] * rows,
                    },
                ),
            ]
        )
    meta = write("batches.meta", {"label_names": list(CIFAR_NAMES), "num_vis": 3072})
    monkeypatch.setattr(CIFAR10, "train_list", sums[:5])
    monkeypatch.setattr(CIFAR10, "test_list", sums[5:])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("below", [True, False])
def test_the_python_version_of_cifar_is_the_binary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, below: bool
) -> None:
    write_cifar(tmp_path / "binary" / "cifar-10-batches-bin", rows=3)
    folder = tmp_path / "python" / "cifar-10-batches-py"
    write_python_cifar(folder, monkeypatch, rows=3)
    images, expected = (
        read_cifar10(folder.parent if below else folder, split),
        read_cifar10(tmp_path / "binary", split),
    )
    np.testing.assert_array_equal(images.pixels, expected.pixels)
    np.testing.assert_array_equal(images.labels, expected.labels)
    assert (images.pixels.dtype, images.labels.dtype, images.pixels.flags.c_contiguous) == (
        np.uint8,
        np.int64,
        True,
    )
    assert images.class_map == expected.class_map
    assert images.source == f"{folder} ({split})"


def test_beside_the_binary_version_the_python_one_is_not_opened(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar-10-batches-bin")
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert read_cifar10(tmp_path, "test").source == f"{tmp_path / 'cifar-10-batches-bin'} (test)"


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("change", ["missing", "bytes"])
def test_a_changed_file_of_the_python_version_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, split: str, change: str
) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_python_cifar(folder, monkeypatch)
    if change == "missing":
        (folder / name).unlink()
    else:  # a pickle that would make a folder
        (folder / name).write_bytes(b"cos\nmkdir\n(V" + str(tmp_path / "harm").encode() + b"\ntR.")
    with pytest.raises(
        ValueError,
        match=rf"{re.escape(str(folder))}: a file is missing or is not the official one by its "
        r"checksum",
    ):
        read_cifar10(tmp_path, split)
    assert not (tmp_path / "harm").exists()


def test_made_up_pickles_are_not_the_official_ones(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        write_python_cifar(tmp_path / "cifar-10-batches-py", patch)
    with pytest.raises(ValueError, match="so it was not opened"):
        read_cifar10(tmp_path, "train")


def test_cifar_files_are_the_official_six() -> None:
    assert sum(CIFAR10_FILES.values(), ()) == (
        *(f"data_batch_{n}.bin" for n in (1, 2, 3, 4, 5)),
        "test_batch.bin",
    )


# ---- holding out ----


@pytest.mark.parametrize(("num", "number"), [(2, 1), (10, 3), (50, 49), (200, 20)])
def test_held_out_images_are_disjoint_complete_and_in_order(num: int, number: int) -> None:
    images = numbered(num)
    kept, held = hold_out(images, number)
    assert (len(kept), len(held)) == (num - number, number)
    of_kept, of_held = (part.pixels[:, 0, 0, 0].tolist() for part in (kept, held))
    assert sorted(of_kept + of_held) == list(range(num))
    assert of_kept == sorted(of_kept)
    assert of_held == sorted(of_held)
    for part in (kept, held):
        assert (part.pixels == part.pixels[:, :1, :1, :1]).all()
        assert (part.labels == part.pixels[:, 0, 0, 0] % 3).all()
        assert part.class_map == images.class_map


def test_holding_out_is_always_the_same_and_nested() -> None:
    images = numbered(100)
    first, second = hold_out(images, 10)[1], hold_out(images, 10)[1]
    np.testing.assert_array_equal(first.pixels, second.pixels)
    # pinned: results on these images are only comparable while the draw stays
    assert first.pixels[:, 0, 0, 0].tolist() == [5, 16, 20, 36, 52, 72, 82, 90, 93, 94]
    more = hold_out(images, 30)[1]
    assert set(first.pixels[:, 0, 0, 0]) < set(more.pixels[:, 0, 0, 0])
    assert (hold_out(images, 10)[0].source, first.source) == (
        "numbers without 10",
        "numbers held out 10",
    )


@pytest.mark.parametrize("number", [0, -1, 5, 6])
def test_holding_out_none_or_all_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match=f"numbers: cannot hold out {number} of 5 images"):
        hold_out(numbered(5), number)


def test_nothing_can_be_held_out_of_nothing() -> None:
    with pytest.raises(ValueError, match="cannot hold out 1 of 0 images"):
        hold_out(numbered(0), 1)

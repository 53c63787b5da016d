from __future__ import annotations

import hashlib
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10, ImageFolder

from detres.data.encoded import ImageFiles
from detres.data.images import (
    CIFAR10_FILES,
    decode_in_memory,
    hold_out,
    read_cifar10,
    read_image_folder,
)
from detres.image_io import ImageReadError, read_image
from detres.structures import ClassMap, ImageArrays

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


def write_image(
    path: Path, color: tuple[int, int, int] = (10, 20, 30), size: tuple[int, int] = (3, 4)
) -> Path:
    """Write an image of (h, w) in one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size[1], size[0]), color).save(path)
    return path


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


# ---- a folder a class ----


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


# ---- CIFAR-10 ----


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


# ---- files into memory ----


def files_of(paths: list[Path]) -> ImageFiles:
    return ImageFiles(
        "a set",
        ClassMap(("a", "b"), (1, 2)),
        np.array([str(path) for path in paths]),
        np.arange(len(paths)) % 2,
    )


def test_decoding_gives_the_pixels_written(tmp_path: Path) -> None:
    written = np.random.default_rng(0).integers(0, 256, (5, 6, 4, 3), dtype=np.uint8)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, pixels in zip(paths, written, strict=True):
        Image.fromarray(pixels).save(path)
    files = files_of(paths)
    images = decode_in_memory(files)
    np.testing.assert_array_equal(images.pixels, written)
    assert images.pixels.dtype == np.uint8
    assert images.labels.tolist() == [0, 1, 0, 1, 0]
    assert (images.source, images.class_map) == (files.source, files.class_map)


@pytest.mark.parametrize(
    ("size", "shown"), [((5, 9), "9x5"), ((4, 8), "8x4"), ((1, 8), "8x1")]
)  # numpy would spread the last
def test_one_side_that_differs_is_enough(tmp_path: Path, size: tuple[int, int], shown: str) -> None:
    paths = [write_image(tmp_path / f"{n}.png", size=one) for n, one in enumerate([(5, 8), size])]
    with pytest.raises(
        ValueError,
        match=rf"1\.png has {shown} px, the files before it 8x5: data\.in_memory wants one size",
    ):
        decode_in_memory(files_of(paths))


def test_decoding_errors(tmp_path: Path) -> None:
    paths = [
        write_image(tmp_path / f"{n}.png", size=size)
        for n, size in enumerate([(3, 4), (3, 4), (4, 3), (5, 5)])
    ]
    with pytest.raises(ValueError, match=r"2\.png has 3x4 px, the files before it 4x3"):
        decode_in_memory(files_of(paths))
    paths[1].write_bytes(b"\x89PNG no more")
    with pytest.raises(ImageReadError, match=r"1\.png"):
        decode_in_memory(files_of(paths))
    with pytest.raises(ImageReadError, match=r"gone\.png does not exist"):
        decode_in_memory(files_of([tmp_path / "gone.png"]))
    with pytest.raises(ValueError, match="a set has no images"):
        decode_in_memory(files_of([]))


def test_damaged_files_are_left_out_and_listed(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{n}.png", color=(n, 2 * n, 3 * n)) for n in range(7)]
    paths[0].write_bytes(b"no image")
    paths[3].write_bytes(paths[3].read_bytes()[:40])
    paths[4].write_bytes(b"")
    files = ImageFiles(
        "a set",
        ClassMap(tuple("abcdefg"), tuple(range(1, 8))),
        np.array([str(path) for path in paths]),
        np.arange(7),
    )
    images = decode_in_memory(files, damaged="skip")
    assert images.damaged == (str(paths[0]), str(paths[3]), str(paths[4]))
    assert images.labels.tolist() == [1, 2, 5, 6]
    assert images.pixels.shape == (4, 3, 4, 3)
    assert images.pixels[:, 0, 0].tolist() == [[n, 2 * n, 3 * n] for n in (1, 2, 5, 6)]
    assert len(images) == 4
    assert images.class_map == files.class_map
    with pytest.raises(ImageReadError, match=r"0\.png"):
        decode_in_memory(files, damaged="error")
    paths[4].unlink()
    with pytest.raises(ImageReadError, match=r"4\.png does not exist"):
        decode_in_memory(files, damaged="skip")


def test_without_damage_nothing_is_left_out(tmp_path: Path) -> None:
    files = files_of([write_image(tmp_path / f"{n}.png", color=(n, n, n)) for n in range(3)])
    images, same = decode_in_memory(files, damaged="skip"), decode_in_memory(files)
    np.testing.assert_array_equal(images.pixels, same.pixels)
    assert images.labels.tolist() == same.labels.tolist() == [0, 1, 0]
    assert images.damaged == same.damaged == ()


def test_damage_does_not_excuse_another_size(tmp_path: Path) -> None:
    paths = [
        write_image(tmp_path / f"{n}.png", size=size)
        for n, size in enumerate([(5, 5), (3, 4), (4, 3)])
    ]
    paths[0].write_bytes(b"")
    with pytest.raises(ValueError, match=r"2\.png has 3x4 px, the files before it 4x3"):
        decode_in_memory(files_of(paths), damaged="skip")


def test_all_files_damaged_is_an_error(tmp_path: Path) -> None:
    paths = [write_image(tmp_path / f"{n}.png") for n in range(3)]
    for path in paths:
        path.write_bytes(b"")
    with pytest.raises(
        ImageReadError, match=r"a set: none of the 3 images can be read, the first is \S*0\.png"
    ):
        decode_in_memory(files_of(paths), damaged="skip")
    with pytest.raises(ValueError, match="a set has no images"):
        decode_in_memory(files_of([]), damaged="skip")


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

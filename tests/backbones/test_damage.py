"""A damaged or hostile weights file is refused in a line that names it, and loads not."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backbones import WeightsError, load_weights, resnet_cifar, save_weights
from backbones.files import (
    DIGEST,
    DamagedFileError,
    check_archive,
    read_safetensors,
    read_safetensors_metadata,
    write_safetensors,
)
from tests.backbones.nets import randomise_norms

CASES = 60


def cut(content: bytearray, rng: random.Random) -> bytes:
    return bytes(content[: rng.randrange(len(content))])


def flip(content: bytearray, rng: random.Random) -> bytes:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(content)


def zero(content: bytearray, rng: random.Random) -> bytes:
    """Zero up to 512 bytes, of which some were not zero."""
    before = bytes(content)
    while bytes(content) == before:
        start = rng.randrange(len(content))
        length = min(rng.randrange(1, 512), len(content) - start)
        content[start : start + length] = bytes(length)
    return bytes(content)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function: suffix -> a weights file of a ResNet-8."""
    folder = tmp_path_factory.mktemp("whole")
    net = randomise_norms(resnet_cifar(8))
    save_weights(net, folder / "w.safetensors", {"classes": json.dumps(["cat", "dog", "owl"])})
    torch.save(net.state_dict(), folder / "w.pth")
    torch.save({"state_dict": net.state_dict(), "epoch": 3}, folder / "w.pt")
    return lambda suffix: folder / f"w{suffix}"


def assert_refused(path: Path) -> None:
    net = resnet_cifar(8)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights(net, path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("damage", [cut, flip, zero])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_no_damage_anywhere_in_a_file_loads(suffix, damage, whole, tmp_path):
    rng, content = random.Random(suffix + damage.__name__), whole(suffix).read_bytes()
    path = tmp_path / f"damaged{suffix}"
    for _ in range(CASES // 3):
        path.write_bytes(damage(bytearray(content), rng))
        assert_refused(path)
    path.write_bytes(content)
    assert load_weights(resnet_cifar(8), path).matched


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_no_bit_of_the_parts_that_say_what_is_where_may_change(suffix, whole, tmp_path):
    """The header of one, the list of contents and its end of the other: every byte of them."""
    content, path = whole(suffix).read_bytes(), tmp_path / f"damaged{suffix}"
    begin, end = 0, 8 + int.from_bytes(content[:8], "little")
    if suffix == ".pth":
        with zipfile.ZipFile(whole(suffix)) as archive:
            begin, end = archive.start_dir, len(content)
    some = range(begin, end, 7)
    for at in (*some, *range(end - 200, end)):  # of the end, all
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match="damaged"):
            check_archive(path) if suffix == ".pth" else read_checked(path)


def read_checked(path: Path) -> None:
    _, metadata = read_safetensors(path)
    if DIGEST not in metadata:
        raise DamagedFileError("damaged: its digest is not there")


def test_edited_metadata_and_exchanged_tensors_are_refused(whole, tmp_path):
    tensors, metadata = read_safetensors(whole(".safetensors"))
    path = tmp_path / "w.safetensors"
    for edited in (
        {**metadata, "classes": '["dog", "cat", "owl"]'},
        {**metadata, "more": ""},
        {name: value for name, value in metadata.items() if name != "classes"},
        {name: value for name, value in metadata.items() if name != DIGEST},
        {**metadata, DIGEST: metadata[DIGEST].upper()},
    ):
        save_file(tensors, path, edited)
        assert_refused(path)
    renamed = {
        {"bn1.bias": "bn1.weight", "bn1.weight": "bn1.bias"}.get(name, name): tensor
        for name, tensor in tensors.items()
    }
    save_file(renamed, path, metadata)
    assert_refused(path)


def test_the_digest_depends_on_names_types_shapes_values_and_metadata_alone(tmp_path):
    def digest(tensors: dict, metadata: dict) -> str:
        write_safetensors(tmp_path / "w", tensors, metadata)
        return read_safetensors_metadata(tmp_path / "w")[DIGEST]

    a, b = torch.arange(6.0), torch.ones(2)
    first = digest({"a": a, "b": b}, {"x": "1", "y": "2"})
    assert digest({"b": b, "a": a}, {"y": "2", "x": "1"}) == first
    assert digest({"a": a, "b": b}, {"y": "2", "x": "1", DIGEST: "0" * 64}) == first
    assert len(first) == 64
    others = [
        digest({"a": a.view(2, 3), "b": b}, {"x": "1", "y": "2"}),
        digest({"a": a, "c": b}, {"x": "1", "y": "2"}),
        digest({"a": a, "b": b.int()}, {"x": "1", "y": "2"}),
        digest({"a": a, "b": -b}, {"x": "1", "y": "2"}),
        digest({"a": a, "b": b}, {"x": "1", "y": "3"}),
        digest({"a": a, "b": b}, {"x": "1"}),
    ]
    assert len({first, *others}) == 7


def test_files_without_a_checksum_load_and_say_so(whole, tmp_path):
    tensors, metadata = read_safetensors(whole(".safetensors"))
    state = dict(tensors)
    save_file(state, tmp_path / "others.safetensors")
    del metadata[DIGEST]
    save_file(state, tmp_path / "earlier.safetensors", {**metadata, "format": "backbones-1"})
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("others.safetensors", "earlier.safetensors", "old.pth"):
        report = load_weights(resnet_cifar(8), tmp_path / name)
        assert str(report).count("it carries no checksum") == 1
    for suffix in (".safetensors", ".pth"):
        assert "checksum" not in str(load_weights(resnet_cifar(8), whole(suffix)))


def test_a_newer_format_is_refused_by_name(whole, tmp_path):
    tensors, metadata = read_safetensors(whole(".safetensors"))
    write_safetensors(tmp_path / "w.safetensors", tensors, {**metadata, "format": "backbones-9"})
    with pytest.raises(WeightsError, match="has the format backbones-9, written by a newer"):
        load_weights(resnet_cifar(8), tmp_path / "w.safetensors")


# ---- zip archives ----


def test_an_archive_that_is_no_plain_one_is_refused(whole, tmp_path):
    path = tmp_path / "w.pth"
    with zipfile.ZipFile(whole(".pth")) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:  # could be a bomb
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(DamagedFileError, match=r"w\.pth is damaged"):
        check_archive(path)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    check_archive(path)  # as another program packs it
    assert load_weights(resnet_cifar(8), path).matched
    for content in (b"", b"PK", path.read_bytes()[1:], b"x" + path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match=r"w\.pth is damaged"):
            check_archive(path)


@pytest.mark.skipif(os.name != "posix", reason="pipes")
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pkl"])
def test_a_pipe_a_device_and_a_folder_are_not_opened(suffix, tmp_path):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    os.symlink("/dev/zero", tmp_path / f"zero{suffix}")
    for name, what in (("pipe", "not a regular file but a pipe"), ("zero", "but a device")):
        with pytest.raises(WeightsError, match=what):
            load_weights(resnet_cifar(8), tmp_path / f"{name}{suffix}")
    with pytest.raises(WeightsError, match="is a folder; give the weights file in it"):
        load_weights(resnet_cifar(8), tmp_path / f"folder{suffix}")
    for read in (check_archive, read_safetensors, read_safetensors_metadata):
        with pytest.raises(OSError, match="is not a regular file but a pipe"):
            read(tmp_path / f"pipe{suffix}")


# ---- hostile headers and pickles ----


def header_file(
    path: Path, header: str | bytes, data: bytes = b"", size: int | None = None
) -> Path:
    text = header.encode() if isinstance(header, str) else header
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + data)
    return path


TENSOR = '"conv1.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


@pytest.mark.parametrize(
    "header",
    [
        '{"a":' + "[" * 200_000,
        "{" + TENSOR.replace("[2]", f"[{'9' * 400}]") + "}",
        "{" + TENSOR.replace("8]", f"{'9' * 400}]") + "}",
        "{" + TENSOR.replace("8]", f"{'9' * 5000}]") + "}",
        "{" + TENSOR.replace("[2]", "[1000000000000]") + "}",
        "{" + TENSOR.replace("[2]", "[-2]") + "}",
        "{" + TENSOR.replace("[0,8]", "[4,8]") + "}",
        "{" + TENSOR + "," + TENSOR.replace("conv1", "conv2") + "}",  # one over the other
        "{" + TENSOR + "," + TENSOR + "}",
        "{" + TENSOR.replace("F32", "F33") + "}",
        '{"__metadata__":{"format":1},' + TENSOR + "}",
        '{"__metadata__":[],' + TENSOR + "}",
        '{"conv1.weight":3}',
        "[]",
        "NaN",
        b"\xff\xfe{",
    ],
)
def test_hostile_headers(header, tmp_path):
    assert_refused(header_file(tmp_path / "w.safetensors", header, bytes(8)))


@pytest.mark.parametrize("size", [0, 1 << 31, (1 << 64) - 1])
def test_headers_of_another_size_than_they_say(size, tmp_path):
    assert_refused(header_file(tmp_path / "w.safetensors", "{" + TENSOR + "}", bytes(8), size))


def archive_of(path: Path, stream: bytes) -> Path:
    """A file of torch.save whose pickle is `stream`."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", stream)
        archive.writestr("w/data/0", bytes(64))
    return path


STORAGE = (
    b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x10tQ"
)


def view(size: bytes, stride: bytes, offset: bytes = b"K\x00") -> bytes:
    """A mapping of conv1.weight to a tensor over 16 numbers."""
    rebuilt = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + offset + size + stride + b"\x89}tR"
    )
    return b"\x80\x02}X\x0c\x00\x00\x00conv1.weight" + rebuilt + b"s."


@pytest.mark.parametrize(
    "stream",
    [
        view(b"K\x11\x85", b"K\x01\x85"),  # one more than there are
        view(b"K\x02\x85", b"K\x20\x85"),
        view(b"K\x01\x85", b"K\x01\x85", b"K\x10"),
        view(b"J\xff\xff\xff\xff\x85", b"K\x01\x85"),
        view(b"\x8a\x09" + b"\xff" * 8 + b"\x00\x85", b"K\x01\x85"),
        view(b"K\x02K\x02\x86", b"K\x01\x85"),
        view(b"N", b"N"),
        view(b"X\x01\x00\x00\x00a\x85", b"K\x01\x85"),
        b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",  # a mapping that holds itself
        b"\x80\x02]q\x00h\x00a.",
        b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",  # lists in lists
        b"\x80\x02c__builtin__\neval\nX\x03\x00\x00\x001+1\x85R.",
        b"\x80\x02ctorch.hub\nload_state_dict_from_url\nX\x01\x00\x00\x00a\x85R.",
        b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R.",  # 64 GB
        b"\x80\x05\x96\x00\x00\x00\x00\x10\x00\x00\x00.",
        b"\x80\x02ctorch\nload\n.",
        b"\x80\x02ctorch\nFloatStorage\n}b.",
        b"\x80\x02(X\x06\x00\x00\x00modulecos\nsystem\nNNtQ)R.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\x00\x00\x00f8K\x00K\x01\x87RX\x04\x00\x00\x00abcd\x86R.",
        b"",
        b".",
        b"\x80\x02(((((t.",
    ],
)
def test_hostile_pickles_in_an_archive(stream, tmp_path):
    assert_refused(archive_of(tmp_path / "w.pth", stream))


def test_a_pickle_cannot_grow_far_beyond_its_size(tmp_path):
    """A megabyte that is named ten thousand times over is ten gigabytes."""
    stream = io.BytesIO()
    stream.write(b"\x80\x02]q\x01X" + struct.pack("<I", 1 << 20) + b"a" * (1 << 20) + b"q\x000")
    for _ in range(10_000):
        stream.write(b"c_codecs\nencode\nh\x00X\x06\x00\x00\x00latin1\x86Ra")
    stream.write(b".")
    assert "far beyond its size" in load_weights_error(tmp_path, stream.getvalue())


def load_weights_error(folder: Path, stream: bytes) -> str:
    path = folder / "w.pkl"
    path.write_bytes(stream)
    with pytest.raises(WeightsError) as caught:
        load_weights(resnet_cifar(8), path)
    return str(caught.value)

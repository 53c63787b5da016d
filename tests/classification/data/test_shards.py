"""Tar shards: the witness takes every member out with tarfile and opens it with Pillow."""

from __future__ import annotations

import functools
import gzip
import http.server
import importlib.util
import io
import json
import os
import pickle
import re
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from fsspec.spec import AbstractBufferedFile
from PIL import Image

from detres.class_map import ClassMap
from detres.classification.data.crops import (
    CropDataset,
    WholeImage,
    crop_eval_loader,
    crop_train_loader,
)
from detres.classification.data.in_memory import decode_in_memory
from detres.classification.data.shards import ShardError, read_shards
from detres.images.decode import ImageReadError, decode_image
from detres.images.source import ImageShards

Member = tuple[str, bytes]

has_aiohttp = importlib.util.find_spec("aiohttp") is not None


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the indices, one a test."""
    monkeypatch.setenv("DETRES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "shards"


def encoded(seed: int, suffix: str = ".png") -> bytes:
    """Noise of 6x5 px."""
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, {".png": "PNG", ".bmp": "BMP"}.get(suffix.lower(), "JPEG"))
    return file.getvalue()


def sample(key: str, label: int, seed: int = 0, suffix: str = ".png") -> list[Member]:
    return [(f"{key}{suffix}", encoded(seed, suffix)), (f"{key}.cls", f"{label}".encode())]


def write_tar(path: Path, members: list[Member], mode: str = "w", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, **options) as tar:
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def write_set(root: Path, num: int = 3, each: int = 2) -> list[Path]:
    """`num` shards train-000.tar, ... of `each` samples, whose seeds count on and whose classes
    take turns: 0, 1, 2.
    """
    return [
        write_tar(
            root / f"train-{shard:03}.tar",
            [
                member
                for n in range(shard * each, (shard + 1) * each)
                for member in sample(f"s{n:04}", n % 3, n)
            ],
        )
        for shard in range(num)
    ]


def witness(paths: list[Path]) -> tuple[list[str], list[np.ndarray], list[int]]:
    """Names, pixels and labels of all images, in order of the paths and of the images in each."""
    names, pixels, labels = [], [], []
    for path in paths:
        with tarfile.open(path) as tar:
            content = {
                member.name: tar.extractfile(member).read()
                for member in tar.getmembers()
                if member.isfile()
            }
        for name, data in content.items():
            stem, ending = os.path.splitext(name)
            if ending.lower() in (".png", ".jpg", ".jpeg", ".bmp"):
                names.append(name)
                pixels.append(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
                labels.append(int(content[f"{stem}.cls"]))
    return names, pixels, labels


def assert_images_are(images: ImageShards, paths: list[Path]) -> None:
    names, pixels, labels = witness(paths)
    assert len(images) == len(names) == len({images.name(row) for row in range(len(images))})
    assert images.keys.tolist() == names
    assert images.labels.tolist() == labels
    assert images.labels.dtype == np.int64
    for row, image in enumerate(pixels):
        np.testing.assert_array_equal(decode_image(images.read_bytes(row), images.name(row)), image)


# ---- where shards are ----


@pytest.mark.parametrize(
    ("below", "pattern"),
    [
        ("", "set/train-{000..002}.tar"),
        ("/set", "train-{000..002}.tar"),
        ("/set/", "train-{000..002}.tar"),
        ("", "set"),
        ("/", "set/"),
        ("/set", "."),
        ("/set", ""),
        ("", "set/train-*.tar"),
        ("/set", "*"),
        ("/set", "train-{0..0}{00..02}.tar"),
        ("/set", "train-00{0..2}*"),
    ],
)
@pytest.mark.parametrize("protocol", ["", "file://", "simplecache::file://"])
def test_all_ways_to_name_three_shards(
    tmp_path: Path, below: str, pattern: str, protocol: str
) -> None:
    paths = write_set(tmp_path / "set")
    root = f"{protocol}{tmp_path}{below}"
    images = read_shards(root, pattern)
    assert_images_are(images, paths)
    assert images.shards.tolist() == [0, 0, 1, 1, 2, 2]
    assert [Path(url).name for url in images.urls] == [
        "train-000.tar",
        "train-001.tar",
        "train-002.tar",
    ]
    assert all(url.startswith(protocol) for url in images.urls)
    assert images.class_map == ClassMap(("0", "1", "2"), (1, 2, 3))
    assert images.source == f"{root}/{pattern} (3 shards)"
    assert images.name(3) == f"{images.urls[1]}: s0003.png"


def test_one_shard_and_a_part_of_a_range(tmp_path: Path) -> None:
    paths = write_set(tmp_path)
    assert_images_are(
        read_shards(str(tmp_path), "train-001.tar", classes=["a", "b", "c"]), paths[1:2]
    )
    assert_images_are(
        read_shards(str(tmp_path), "train-{001..002}.tar", classes=["a", "b", "c"]), paths[1:]
    )


def test_two_ranges_count_like_nested_loops(tmp_path: Path) -> None:
    paths = [
        write_tar(tmp_path / f"{a}" / f"x-{b:02}.tar", sample(f"{a}-{b}", 0, 10 * a + b))
        for a in (0, 1)
        for b in (8, 9, 10)
    ]
    assert_images_are(read_shards(str(tmp_path), "{0..1}/x-{08..10}.tar"), paths)
    assert_images_are(read_shards(str(tmp_path), "{0..1}"), paths)
    assert_images_are(read_shards(str(tmp_path), "{0..1}/*-{08..10}.tar"), paths)
    assert_images_are(read_shards(str(tmp_path), "/{0..1}/"), paths)


def test_a_hundred_shards_in_order(tmp_path: Path) -> None:
    paths = write_set(tmp_path, num=100, each=1)
    for pattern in ("train-{000..099}.tar", "."):
        assert_images_are(read_shards(str(tmp_path), pattern), paths)


def test_numbers_without_leading_zeros(tmp_path: Path) -> None:
    paths = write_set(tmp_path, num=12, each=1)
    named = [path.rename(tmp_path / f"t-{number}.tar") for number, path in enumerate(paths)]
    assert_images_are(read_shards(str(tmp_path), "t-{0..11}.tar"), named)
    assert_images_are(
        read_shards(str(tmp_path), "t-{8..11}.tar", classes=["a", "b", "c", "d"]), named[8:]
    )


def test_relative_roots_links_and_odd_folder_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = write_set(tmp_path / "old [1] *" / "a?")
    (tmp_path / "link").symlink_to(paths[0].parent)
    monkeypatch.chdir(tmp_path)
    for root, pattern in (
        ("old [1] *", "a?"),
        ("./old [1] */", "a?/train-{000..002}.tar"),
        (".", "link"),
        ("link", "train*"),
        (str(tmp_path / "old [1] *" / "a?"), "*.tar"),
    ):
        assert_images_are(read_shards(root, pattern), paths)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_class_numbers_in_every_encoding_that_tells_itself(tmp_path: Path, encoding: str) -> None:
    members = [
        (name, content.decode().encode(encoding) if name.endswith(".cls") else content)
        for label in (0, 1)
        for name, content in sample(f"s{label}", label)
    ]
    write_tar(tmp_path / "a.tar", members)
    assert read_shards(str(tmp_path), "a.tar").labels.tolist() == [0, 1]


def test_hidden_and_other_files_beside_shards_are_passed_over(tmp_path: Path) -> None:
    paths = write_set(tmp_path / "set")
    (tmp_path / "set" / "._train-000.tar").write_bytes(
        b"what macOS puts beside a file on a foreign disk"
    )
    (tmp_path / "set" / "train-000.idx").write_bytes(b"x")
    assert_images_are(read_shards(str(tmp_path), "set"), paths)
    assert_images_are(read_shards(str(tmp_path), "set/*.tar"), paths)


@pytest.mark.parametrize("root", ["memory://set", "memory://set/", "memory:///set"])
@pytest.mark.parametrize("pattern", ["train-{000..002}.tar", ".", "train*"])
def test_a_url(tmp_path: Path, root: str, pattern: str) -> None:
    paths = write_set(tmp_path)
    files = fsspec.filesystem("memory")
    for path in paths:
        files.pipe(f"/set/{path.name}", path.read_bytes())
    try:
        assert_images_are(read_shards(root, pattern), paths)
        assert_images_are(read_shards("memory://", f"set/{pattern}"), paths)
        with pytest.raises(
            FileNotFoundError, match=re.escape(f"{root.rstrip('/')}/no-1.tar is missing")
        ):
            read_shards(root, "no-{1..1}.tar")
    finally:
        files.rm("/set", recursive=True)


def test_a_missing_shard_is_named_and_the_others_counted(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "train-001.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-001\.tar is missing$"):
        read_shards(str(tmp_path), "train-{000..002}.tar")
    with pytest.raises(FileNotFoundError, match=r"train-001\.tar is missing, and 7 more$"):
        read_shards(str(tmp_path), "train-{000..009}.tar")
    with pytest.raises(FileNotFoundError, match=r"val\.tar is missing$"):
        read_shards(str(tmp_path), "val.tar")
    (tmp_path / "train-001.tar").symlink_to(tmp_path / "gone.tar")
    with pytest.raises(FileNotFoundError, match=r"train-001\.tar is missing$"):
        read_shards(str(tmp_path), "train-{000..002}.tar")


@pytest.mark.parametrize("pattern", ["val", "val/", "val-*.tar", "train-000"])
def test_a_folder_without_shards(tmp_path: Path, pattern: str) -> None:
    write_set(tmp_path)
    shown = pattern if "*" in pattern else f"{pattern.rstrip('/')}/*.tar"
    with pytest.raises(
        FileNotFoundError,
        match=re.escape(f"no shard {tmp_path}/{shown}; give a folder of *.tar, or names such as "),
    ):
        read_shards(str(tmp_path), pattern)


@pytest.mark.parametrize(
    "pattern", ["t-{5..2}.tar", "t-{00..100}.tar", "t-{00..9}.tar", "t-{0..1}-{3..2}.tar"]
)
def test_a_badly_written_range(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(
        ValueError,
        match=re.escape(
            f"{pattern}: expected a rising range, {{0..146}}, or with numbers of one width"
        ),
    ):
        read_shards(str(tmp_path), pattern)


def test_a_url_that_nothing_opens() -> None:
    with pytest.raises(
        ValueError, match=r"nonsense://bucket/a\.tar cannot be opened: Protocol not known"
    ):
        read_shards("nonsense://bucket", "a.tar")


# ---- over a network ----


class _Server(http.server.SimpleHTTPRequestHandler):
    """Python's server, and byte ranges, which it has not."""

    ranges = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        asked, path = (
            re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")),
            Path(self.translate_path(self.path)),
        )
        if not self.ranges or not asked or not path.is_file():
            return super().do_GET()
        data = path.read_bytes()[int(asked[1]) : int(asked[2]) + 1]
        self.send_response(206)
        self.send_header(
            "Content-Range",
            f"bytes {asked[1]}-{int(asked[1]) + len(data) - 1}/{path.stat().st_size}",
        )
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        return None


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server of tmp_path."""
    monkeypatch.setattr(_Server, "ranges", True)
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Server, directory=str(tmp_path))
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.skipif(has_aiohttp, reason="aiohttp is installed")
def test_a_package_that_is_wanted_is_named(address: str) -> None:
    for pattern, shown in (("a-{0..1}.tar", "a-0.tar"), ("a", "a/*.tar")):
        with pytest.raises(
            ValueError,
            match=rf"{re.escape(address)}/{re.escape(shown)} cannot be opened: .*aiohttp.* to be "
            r"installed",
        ):
            read_shards(address, pattern)


@pytest.mark.skipif(not has_aiohttp, reason="wants aiohttp")
def test_over_http(tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = write_set(tmp_path / "set")
    for pattern in ("set/train-{000..002}.tar", "set", "set/train*"):
        images = read_shards(address, pattern)
        assert_images_are(images, paths)
    assert_loaders_give(images, paths)
    with pytest.raises(
        FileNotFoundError, match=r"train-003\.tar is missing \(404.*\), and 1 more$"
    ):
        read_shards(address, "set/train-{000..004}.tar")
    os.utime(paths[1], (1, 1))
    shown: list[str] = []
    read_shards(address, "set/train-{000..002}.tar", show=shown.append)
    assert shown == [f"indexing 1 of 3 shards of {address}: once only"]
    monkeypatch.setattr(_Server, "ranges", False)
    size = int(images.sizes[4])
    with pytest.raises(
        ImageReadError,
        match=rf"s0004\.png cannot be read: asked for {size} bytes, got 10240; .* gives no byte "
        r"ranges",
    ):
        images.read_bytes(4)


@pytest.mark.skipif(not has_aiohttp, reason="wants aiohttp")
def test_a_server_that_is_not_there() -> None:
    with pytest.raises(
        FileNotFoundError, match=r"http://127\.0\.0\.1:1/a\.tar is missing \(Cannot connect to host"
    ):
        read_shards("http://127.0.0.1:1", "a.tar")
    with pytest.raises(
        ShardError,
        match=r"http://127\.0\.0\.1:1/a/\*\.tar cannot be listed: Cannot connect to host",
    ):
        read_shards("http://127.0.0.1:1", "a")


class _CountingFile(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        data = Path(self.path).read_bytes()[start:end]
        self.fs.fetched.append(len(data))
        return data


class _Counting(fsspec.AbstractFileSystem):
    """A remote file system of the plainest kind, as hf:// is, that notes the sizes of what it
    fetches.
    """

    protocol = "counting"

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self.fetched: list[int] = []

    def info(self, path: str, **_: object) -> dict:
        path = self._strip_protocol(path)
        return {"name": path, "size": Path(path).stat().st_size, "type": "file"}

    def _open(self, path: str, mode: str = "rb", **options: object) -> _CountingFile:
        return _CountingFile(self, path, mode, **options)


def test_no_more_than_the_image_is_fetched(tmp_path: Path) -> None:
    fsspec.register_implementation("counting", _Counting, clobber=True)
    paths = write_set(tmp_path)
    images = read_shards(f"counting://{tmp_path}", "train-{000..002}.tar")
    files, _ = fsspec.core.url_to_fs(images.urls[0])
    files.fetched.clear()
    for row in (5, 0, 3):
        images.read_bytes(row)
    assert files.fetched == images.sizes[[5, 0, 3]].tolist()
    assert_images_are(images, paths)


# ---- what is in a shard ----


def test_labels_images_and_their_places_by_hand(tmp_path: Path) -> None:
    first, second = encoded(1), encoded(2)
    members = [
        ("b.json", b"{}"),
        ("b.cls", b" 1\n"),
        ("b.png", second),
        ("a.png", first),
        ("a.cls", b"0"),
        ("README", b"hello"),
    ]
    images = read_shards(
        str(write_tar(tmp_path / "one.tar", members, format=tarfile.USTAR_FORMAT).parent), "one.tar"
    )
    assert images.keys.tolist() == ["b.png", "a.png"]
    assert images.labels.tolist() == [1, 0]
    assert (images.sizes.tolist(), images.sizes.dtype) == ([len(second), len(first)], np.int64)
    # b.json and b.cls take a block of header and one of content each, then the header of b.png, its
    # content in whole blocks ...
    assert images.offsets.tolist() == [5 * 512, 5 * 512 + -(-len(second) // 512) * 512 + 512]
    assert [images.read_bytes(0), images.read_bytes(1)] == [second, first]


def test_shards_as_imagenet_is_published_in(tmp_path: Path) -> None:
    paths = []
    for shard in range(2):
        members = []
        for number in range(3):
            key, label = f"n0144076{number}_{10026 + shard}", number
            members += sample(key, label, 3 * shard + number, ".jpg")
            members.append((f"{key}.json", json.dumps({"label": label, "width": 6}).encode()))
        paths.append(write_tar(tmp_path / f"imagenet1k-train-{shard:04}.tar", members))
    images = read_shards(
        str(tmp_path), "imagenet1k-train-{0000..0001}.tar", classes=["tench", "goldfish", "shark"]
    )
    assert_images_are(images, paths)
    assert images.class_map.names == ("tench", "goldfish", "shark")


def test_equal_names_in_different_folders_are_different_samples(tmp_path: Path) -> None:
    members = [
        m
        for n, key in enumerate(["cat/1", "dog/1", "./1", "v1.5/deep.er/1", "v1.5/1"])
        for m in sample(key, n, n)
    ]
    images = read_shards(str(write_tar(tmp_path / "a.tar", members).parent), "a.tar")
    assert_images_are(images, [tmp_path / "a.tar"])
    assert images.labels.tolist() == [0, 1, 2, 3, 4]


def test_endings_in_capitals_and_of_several_formats(tmp_path: Path) -> None:
    members = [
        m
        for n, suffix in enumerate([".JPEG", ".Png", ".jpg", ".BMP", ".jpeg"])
        for m in sample(f"i{n}", n, n, suffix)
    ]
    write_tar(tmp_path / "a.tar", members)
    assert_images_are(read_shards(str(tmp_path), "a.tar"), [tmp_path / "a.tar"])
    write_tar(tmp_path / "b.tar", [("a.PNG", encoded(0)), ("a.CLS", b"0")])
    assert read_shards(str(tmp_path), "b.tar").labels.tolist() == [0]


def test_an_image_field_with_a_name_of_its_own(tmp_path: Path) -> None:
    # webdataset's rule: the key ends at the first dot of the name
    write_tar(tmp_path / "a.tar", [("x.left.png", encoded(4)), ("x.cls", b"0")])
    images = read_shards(str(tmp_path), "a.tar")
    assert images.keys.tolist() == ["x.left.png"]
    assert images.read_bytes(0) == encoded(4)


@pytest.mark.parametrize("folder", ["", "./", "set/", "set/v1.5/"])
def test_what_macos_adds_is_passed_over(tmp_path: Path, folder: str) -> None:
    members = []
    for number in range(2):
        for name, content in sample(f"{folder}s{number}", number, number):
            head, _, tail = name.rpartition("/")
            members += [
                (f"{head}/._{tail}" if head else f"._{tail}", b"\0\5\x16\7"),
                (name, content),
            ]
    members += [(f"{folder}.DS_Store", b"x"), (f"{folder}.hidden.png", b"x")]
    write_tar(tmp_path / "a.tar", members)
    images = read_shards(str(tmp_path), "a.tar")
    assert images.keys.tolist() == [f"{folder}s0.png", f"{folder}s1.png"]
    assert images.labels.tolist() == [0, 1]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_in_every_form_of_tar(tmp_path: Path, form: int) -> None:
    keys = ["é/ü", "中文", "x" * 80 + "/" + "y" * 90, "line\nbreak/x", "space d"]
    members = [m for n, key in enumerate(keys) for m in sample(key, n, n)]
    options = {"pax_headers": {"comment": "a global header"}} if form == tarfile.PAX_FORMAT else {}
    write_tar(tmp_path / "a.tar", members, format=form, **options)
    assert_images_are(read_shards(str(tmp_path), "a.tar"), [tmp_path / "a.tar"])


def test_names_that_are_not_utf8_stay_apart_and_can_be_printed(tmp_path: Path) -> None:
    members = [m for n, key in enumerate(["\xe9", "\xe8"]) for m in sample(key, n, n)]
    write_tar(tmp_path / "a.tar", members, format=tarfile.GNU_FORMAT, encoding="latin-1")
    images = read_shards(str(tmp_path), "a.tar")
    assert images.keys.tolist() == ["\\xe9.png", "\\xe8.png"]
    assert images.labels.tolist() == [0, 1]
    assert images.name(1).encode("utf-8").endswith(b": \\xe8.png")
    assert images.read_bytes(1) == encoded(1)


def test_folders_are_no_images(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("set.png")
    folder.type = tarfile.DIRTYPE
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(folder)
    write_tar(tmp_path / "a.tar", sample("set.png/a", 0), mode="a")
    assert read_shards(str(tmp_path), "a.tar").keys.tolist() == ["set.png/a.png"]


@pytest.mark.parametrize("ending", [512, 1024, 512 * 2048])
def test_any_usual_end_of_an_archive_will_do(tmp_path: Path, ending: int) -> None:
    path = write_set(tmp_path, num=1)[0]
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
    path.write_bytes(path.read_bytes()[: last.offset_data + 512] + bytes(ending))
    assert len(read_shards(str(tmp_path), "train-000.tar")) == 2


@pytest.mark.parametrize("seed", range(6))
def test_random_sets_come_back_complete(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    num_classes = int(rng.integers(1, 6))
    paths, number = [], 0
    for shard in range(int(rng.integers(1, 6))):
        members = []
        for _ in range(int(rng.integers(1, 20))):
            key = "/".join(
                [
                    *rng.choice(["a", "b.c", "deep", "."], rng.integers(0, 3)).tolist(),
                    f"{number:05}",
                ]
            )
            members += sample(
                key,
                int(rng.integers(num_classes)),
                number,
                str(rng.choice([".png", ".jpg", ".JPEG", ".bmp"])),
            )
            members += [(f"{key}.json", b"{}")] * int(rng.integers(2))
            number += 1
        members = [members[place] for place in rng.permutation(len(members))]
        form = int(rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
        paths.append(write_tar(tmp_path / f"s-{shard}.tar", members, format=form))
    names = [f"class {n}" for n in range(num_classes)]
    for _ in range(2):  # indexing, and with the index kept
        images = read_shards(str(tmp_path), f"s-{{0..{len(paths) - 1}}}.tar", classes=names)
        assert len(images) == number
        assert_images_are(images, paths)
        assert list(images.class_map.names) == names


# ---- batches ----


def assert_loaders_give(images: ImageShards, paths: list[Path]) -> None:
    """Batches of three, by two workers, hold what the witness sees under their names."""
    _, pixels, labels = witness(paths)
    expected = {images.name(row): (pixels[row], labels[row]) for row in range(len(images))}
    dataset = CropDataset(images, WholeImage(short_side=None))
    seen = []
    for batch, targets in crop_train_loader(
        dataset, batch_size=3, steps=-(-len(images) // 3), seed=1, num_workers=2
    ):
        for name, image, label in zip(
            batch.ids, batch.pixels, targets.labels.tolist(), strict=True
        ):
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected[name][0])
            assert label == expected[name][1]
            seen.append(name)
    assert set(seen) == set(expected)
    batches = list(crop_eval_loader(dataset, batch_size=3, num_workers=1))
    assert [name for batch, _ in batches for name in batch.ids] == list(expected)
    assert torch.cat([targets.labels for _, targets in batches]).tolist() == labels


@pytest.mark.parametrize("protocol", ["", "file://", "memory://"])
def test_batches_by_workers_hold_the_images(tmp_path: Path, protocol: str) -> None:
    paths = write_set(tmp_path, num=3, each=4)
    if protocol == "memory://":
        for path in paths:
            fsspec.filesystem("memory").pipe(str(path), path.read_bytes())
    images = read_shards(f"{protocol}{tmp_path}", "train-{000..002}.tar")
    assert_loaders_give(images, paths)
    assert_images_are(pickle.loads(pickle.dumps(images)), paths)


def test_shards_into_memory(tmp_path: Path) -> None:
    paths = write_set(tmp_path)
    held = decode_in_memory(read_shards(str(tmp_path), "."))
    np.testing.assert_array_equal(held.pixels, np.stack(witness(paths)[1]))
    assert held.labels.tolist() == witness(paths)[2]


def test_a_damaged_image_in_a_shard_is_named_or_skipped(tmp_path: Path) -> None:
    paths = write_set(tmp_path)
    images = read_shards(str(tmp_path), ".")
    content = bytearray(paths[1].read_bytes())
    start = int(images.offsets[3])
    content[start : start + 20] = bytes(20)
    paths[1].write_bytes(content)
    with pytest.raises(ImageReadError, match=r"train-001\.tar: s0003\.png cannot be read"):
        list(crop_eval_loader(CropDataset(images, WholeImage(short_side=None)), batch_size=6))
    batch, targets = next(
        iter(
            crop_eval_loader(
                CropDataset(images, WholeImage(short_side=None), damaged="skip"), batch_size=6
            )
        )
    )
    assert batch.damaged == (f"{paths[1]}: s0003.png",)
    assert [name[-9:] for name in batch.ids] == [
        "s0000.png",
        "s0001.png",
        "s0002.png",
        "s0004.png",
        "s0005.png",
        "s0000.png",
    ]
    assert targets.labels.tolist() == [0, 1, 2, 1, 2, 0]
    assert decode_in_memory(images, damaged="skip").damaged == batch.damaged


def test_a_shard_that_changes_under_a_run_is_named(tmp_path: Path) -> None:
    path = write_set(tmp_path, num=1)[0]
    images = read_shards(str(tmp_path), "train-000.tar")
    size = int(images.sizes[1])
    os.truncate(path, int(images.offsets[1]) + 7)
    with pytest.raises(
        ImageReadError,
        match=rf"train-000\.tar: s0001\.png cannot be read: asked for {size} bytes, got 7; the "
        r"tar file",
    ):
        images.read_bytes(1)
    path.unlink()
    with pytest.raises(
        ImageReadError, match=r"train-000\.tar: s0001\.png cannot be read: .*No such file"
    ):
        images.read_bytes(1)


# ---- the index ----


def read_and_show(
    root: Path, pattern: str = "train-{000..002}.tar"
) -> tuple[ImageShards, list[str]]:
    shown: list[str] = []
    return read_shards(str(root), pattern, show=shown.append), shown


def test_shards_are_indexed_once(tmp_path: Path, cache: Path) -> None:
    paths = write_set(tmp_path / "set")
    images, shown = read_and_show(tmp_path / "set")
    assert shown == [f"indexing 3 of 3 shards of {tmp_path / 'set'}: once only"]
    assert len(list(cache.iterdir())) == 3
    times = [path.stat() for path in paths]
    for path, stat in zip(
        paths, times, strict=True
    ):  # without their content, which no one needs to look at again
        path.write_bytes(bytes(stat.st_size))
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    again, shown = read_and_show(tmp_path / "set")
    assert shown == []
    assert again.urls == images.urls
    for field in ("keys", "labels", "offsets", "sizes", "shards"):
        np.testing.assert_array_equal(getattr(again, field), getattr(images, field))
        assert getattr(again, field).dtype == getattr(images, field).dtype
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("change", ["content", "size"])
def test_the_index_of_a_changed_shard_is_made_anew(tmp_path: Path, change: str) -> None:
    paths = write_set(tmp_path)
    read_and_show(tmp_path)
    size = paths[1].stat().st_size
    write_tar(
        paths[1],
        [
            m
            for n in range(2 if change == "content" else 40)
            for m in sample(f"n{n}", 2 - n % 2, 50 + n)
        ],
    )
    assert (paths[1].stat().st_size == size) == (change == "content")
    os.utime(paths[1], (1, 1))
    images, shown = read_and_show(tmp_path)
    assert shown == [f"indexing 1 of 3 shards of {tmp_path}: once only"]
    assert_images_are(images, paths)


def test_indices_do_not_depend_on_the_pattern_or_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path / "set")
    read_and_show(tmp_path, "set")
    assert read_and_show(tmp_path / "set", "train-{001..002}.tar")[1] == []
    monkeypatch.chdir(tmp_path)
    shown: list[str] = []
    read_shards("set", "train-{000..002}.tar", show=shown.append)
    assert shown == []


@pytest.mark.parametrize(
    "damage", ["empty", "random", "cut off", "other bits", "another archive", "an array"]
)
def test_a_damaged_index_is_made_anew(tmp_path: Path, cache: Path, damage: str) -> None:
    paths = write_set(tmp_path / "set")
    read_and_show(tmp_path / "set")
    for file in cache.iterdir():
        content = file.read_bytes()
        if damage == "another archive":
            np.savez(file, keys=np.array(["a"]))
        elif damage == "an array":
            with file.open("wb") as opened:
                np.save(opened, np.arange(3))
        else:
            rng = np.random.default_rng(0)
            file.write_bytes(
                {
                    "empty": b"",
                    "random": rng.bytes(500),
                    "cut off": content[: len(content) // 2],
                    "other bits": content.replace(
                        "s0".encode("utf-32-le"), "t0".encode("utf-32-le")
                    ),
                }[damage]
            )
    images, shown = read_and_show(tmp_path / "set")
    assert shown == [f"indexing 3 of 3 shards of {tmp_path / 'set'}: once only"]
    assert_images_are(images, paths)
    assert read_and_show(tmp_path / "set")[1] == []


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DETRES_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        OSError,
        match=r"the index of \S*train-000\.tar cannot be kept: .*; give another folder in "
        r"DETRES_CACHE",
    ):
        read_shards(str(tmp_path), "train-000.tar")


def test_a_shard_with_a_fault_leaves_no_index(tmp_path: Path, cache: Path) -> None:
    paths = write_set(tmp_path)
    good = paths[1].read_bytes()
    paths[1].write_bytes(good[:700])
    for _ in range(2):
        with pytest.raises(ShardError, match=r"train-001\.tar is cut short"):
            read_and_show(tmp_path)
    paths[1].write_bytes(good)
    assert_images_are(read_and_show(tmp_path)[0], paths)
    assert len(list(cache.glob("*"))) == len(list(cache.glob("[0-9a-f]*.npz"))) == 3


# ---- shards with faults ----


@pytest.mark.parametrize("member", range(6))
@pytest.mark.parametrize("place", ["header", "body", "padding", "boundary"])
def test_a_shard_cut_short_anywhere_is_named(tmp_path: Path, member: int, place: str) -> None:
    path = write_tar(tmp_path / "a.tar", [m for n in range(3) for m in sample(f"s{n}", n, n)])
    with tarfile.open(path) as tar:
        info = tar.getmembers()[member]
    end = {
        "header": info.offset + 100,
        "body": info.offset_data + info.size // 2 + (info.size == 1),
        "padding": info.offset_data + -(-info.size // 512) * 512 - 1,
        "boundary": info.offset_data + -(-info.size // 512) * 512,
    }[place]
    os.truncate(path, end)
    with pytest.raises(ShardError, match=r"a\.tar is cut short or (damaged|no uncompressed tar): "):
        read_shards(str(tmp_path), "a.tar")


def test_zeros_or_rubbish_in_place_of_a_header(tmp_path: Path) -> None:
    content = write_tar(
        tmp_path / "a.tar", [m for n in range(3) for m in sample(f"s{n}", n, n)]
    ).read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        start = tar.getmembers()[2].offset
    (tmp_path / "a.tar").write_bytes(content[:start] + bytes(512) + content[start + 512 :])
    with pytest.raises(
        ShardError, match=rf"a\.tar goes on behind its end at byte {start}: "
    ):  # tarfile would stop there
        read_shards(str(tmp_path), "a.tar")
    (tmp_path / "a.tar").write_bytes(content[:start] + b"rubbish!" * 64 + content[start + 512 :])
    with pytest.raises(
        ShardError,
        match=r"a\.tar is cut short or damaged: no header and no end of the archive at byte "
        rf"{start}",
    ):
        read_shards(str(tmp_path), "a.tar")


def test_a_download_that_stopped_in_a_file_of_the_whole_size(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [m for n in range(3) for m in sample(f"s{n}", n, n)])
    with tarfile.open(path) as tar:
        start = tar.getmembers()[2].offset
    os.truncate(path, start)
    os.truncate(path, 100_000_000)  # a hole, read as zeros
    with pytest.raises(
        ShardError,
        match=rf"a\.tar goes on behind its end at byte {start}: damaged, half downloaded",
    ):
        read_shards(str(tmp_path), "a.tar")


def test_archives_joined_without_tar(tmp_path: Path) -> None:
    paths = write_set(tmp_path)
    (tmp_path / "all.tar").write_bytes(b"".join(path.read_bytes() for path in paths))
    with pytest.raises(
        ShardError, match=r"all\.tar goes on behind its end at byte \d+: .*joined without tar -A"
    ):
        read_shards(str(tmp_path), "all.tar")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "a.tgz"])
def test_a_compressed_shard(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(write_set(tmp_path)[0].read_bytes()))
    with pytest.raises(
        ShardError, match=rf"{re.escape(name)} is cut short or no uncompressed tar: "
    ):
        read_shards(str(tmp_path), name)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!DOCTYPE html>" * 99,
        b"version https://git-lfs.github.com/spec/v1\n",
        encoded(0),
        b"x" * 512,
        b"x" * 5000,
    ],
)
def test_no_tar_at_all(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ShardError, match=r"a\.tar is cut short or no uncompressed tar: "):
        read_shards(str(tmp_path), "a.tar")


def test_a_folder_in_place_of_a_shard(tmp_path: Path) -> None:
    (tmp_path / "a.tar").mkdir()
    with pytest.raises(ShardError, match=r"a\.tar cannot be read: .*Is a directory"):
        read_shards(str(tmp_path), "a.tar")
    (tmp_path / "b").write_text("")
    with pytest.raises(ShardError, match=r"b/a\.tar cannot be reached: .*Not a directory"):
        read_shards(str(tmp_path), "b/a.tar")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (
            [("a.png", b"x"), ("a.cls", b"0"), ("d/b.png", b"x")],
            r"a\.tar: d/b\.png has no class; expected d/b\.cls with a number in it",
        ),
        (
            [("a.png", b"x"), ("a.cls", b"0"), ("b.txt", b"0"), ("b.cls", b"0")],
            r"a\.tar: b\.cls has no image beside it",
        ),
        ([("a.png", b"x"), ("A.cls", b"0")], r"a\.tar: a\.png has no class"),
        (
            [("a.png", b"x"), ("a.cls", b"cat")],
            r"a\.tar, a\.cls holds b'cat', expected a class number, 0\.\.999999",
        ),
        ([("a.png", b"x"), ("a.cls", b"-1")], r"a\.tar, a\.cls holds b'-1', expected"),
        ([("a.png", b"x"), ("a.cls", b"")], r"a\.tar, a\.cls holds b'', expected"),
        ([("a.png", b"x"), ("a.cls", b"1.0")], r"a\.tar, a\.cls holds b'1\.0', expected"),
        ([("a.png", b"x"), ("a.cls", b"1 2")], r"a\.tar, a\.cls holds b'1 2', expected"),
        ([("a.png", b"x"), ("a.cls", b"1000000")], r"a\.tar, a\.cls holds b'1000000', expected"),
        (
            [("a.png", b"x"), ("a.cls", b"y" * 10**5)],
            r"a\.tar, a\.cls holds b'yyyyyyyyyyyyyyyyyyyy', expected",
        ),
        (
            [("a.png", b"x"), ("a.cls", "٣".encode())],
            r"a\.tar, a\.cls holds b'\\xd9\\xa3', expected",
        ),
        (
            [("a.png", b"x"), ("a.cls", b"0"), ("a.jpg", b"x")],
            r"a\.tar: a\.png and a\.jpg are two images of one sample",
        ),
        (
            [("a.png", b"x"), ("a.seg.png", b"x"), ("a.cls", b"0")],
            r"a\.tar: a\.png and a\.seg\.png are two images of one sample",
        ),
        (
            [("a.png", b"x"), ("a.cls", b"0"), ("a.png", b"x")],
            r"a\.tar: a\.png and a\.png are two images of one sample",
        ),
        ([("a.png", b"x"), ("a.cls", b"0"), ("a.cls", b"1")], r"a\.tar: a\.cls is there twice"),
        ([], r"a\.tar has no images; expected members KEY\.jpg and KEY\.cls"),
        ([("a.json", b"{}"), ("b.npy", b"x")], r"a\.tar has no images"),
    ],
)
def test_samples_with_faults(tmp_path: Path, members: list[Member], message: str) -> None:
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(ShardError, match=message):
        read_shards(str(tmp_path), "a.tar")


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
@pytest.mark.parametrize("name", ["b.png", "b.cls"])
def test_links_are_not_dropped(tmp_path: Path, kind: bytes, name: str) -> None:
    link = tarfile.TarInfo(name)
    link.type, link.linkname = kind, f"a{name[1:]}"
    write_tar(tmp_path / "a.tar", sample("a", 0))
    with tarfile.open(tmp_path / "a.tar", "a") as tar:
        tar.addfile(link)
    with pytest.raises(
        ShardError,
        match=rf"a\.tar: {re.escape(name)} is a link or sparse.*; pack with tar --dereference",
    ):
        read_shards(str(tmp_path), "a.tar")


def test_a_sparse_member_is_not_read_as_if_it_lay_there_whole(tmp_path: Path) -> None:
    sparse = tarfile.TarInfo("a.png")
    sparse.type = (
        tarfile.GNUTYPE_SPARSE
    )  # in GNU's header: places and sizes of the parts from byte 386, the real size at 483
    header = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"00000000000\0" + b"00000000000\0"
    header[483:495] = b"00000010000\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (tmp_path / "a.tar").write_bytes(bytes(header) + bytes(10240))
    with pytest.raises(ShardError, match=r"a\.tar: a\.png is a link or sparse"):
        read_shards(str(tmp_path), "a.tar")


def test_the_first_shard_with_a_fault_is_named(tmp_path: Path) -> None:
    write_set(tmp_path)
    for number in (1, 2):
        write_tar(tmp_path / f"train-{number:03}.tar", [("lone.png", encoded(0))])
    with pytest.raises(ShardError, match=r"train-001\.tar: lone\.png has no class"):
        read_shards(str(tmp_path), "train-{000..002}.tar")


# ---- classes ----


def test_a_class_beyond_the_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "a-0.tar", [*sample("x", 0), *sample("y", 1)])
    write_tar(tmp_path / "a-1.tar", [*sample("d/y", 2), *sample("d/x", 1), *sample("d/z", 3)])
    for names, shown in (
        (["cat", "dog"], r"d/y\.png: class 2, expected 0\.\.1 for 2"),
        (["a", "b", "c"], r"d/z\.png: class 3, expected 0\.\.2 for 3"),
    ):
        for pattern in ("a-{0..1}.tar", "a-1.tar"):
            with pytest.raises(ValueError, match=rf"a-1\.tar, {shown} classes"):
                read_shards(str(tmp_path), pattern, classes=names)
    images = read_shards(
        str(tmp_path), "a-{0..1}.tar", classes=["cat", "dog", "eel", "fly", "gnu"]
    )  # no gnu, which is meant so
    assert images.class_map == ClassMap(("cat", "dog", "eel", "fly", "gnu"), (1, 2, 3, 4, 5))
    assert images.labels.tolist() == [0, 1, 2, 1, 3]


@pytest.mark.parametrize(
    ("labels", "absent", "largest"),
    [((1, 2, 3), 0, 3), ((0, 1, 3), 2, 3), ((0, 1, 999999), 2, 999999)],
)
def test_numbers_with_a_gap_are_no_classes(
    tmp_path: Path, labels: tuple[int, ...], absent: int, largest: int
) -> None:
    write_tar(tmp_path / "a.tar", [m for label in labels for m in sample(f"s{label}", label)])
    with pytest.raises(
        ValueError,
        match=rf"a\.tar \(1 shards\): no image of class {absent}, though numbers reach {largest}; "
        r"classes",
    ):
        read_shards(str(tmp_path), "a.tar")


def test_a_name_for_two_classes(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", [*sample("x", 0), *sample("y", 1)])
    with pytest.raises(ValueError, match="name cat is given to more than one class"):
        read_shards(str(tmp_path), "a.tar", classes=["cat", "cat"])


@pytest.mark.parametrize(
    "pattern", ["{000000000..999999999}.tar", "{0..999}-{0..999}.tar", "a-{1..100001}.tar"]
)
def test_a_range_beyond_all_measure_is_refused_at_once(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(ValueError, match=r"its ranges name more than 100000 shards"):
        read_shards(str(tmp_path), pattern)

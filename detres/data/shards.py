"""Labelled images in tar shards of the webdataset layout, read where they lie: on a disk or behind a URL, never unpacked.

A shard is an uncompressed tar in which KEY.jpg (or another image) and KEY.cls, the class number as text counted from 0, make a
sample. An index of every shard, where each image begins and its class, is made once and kept in the cache folder; with it any image
is one read of a byte range, so shards are shuffled image by image and a run resumes exactly, as with files.
"""

from __future__ import annotations

import hashlib
import os
import re
import tarfile
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import fsspec
import numpy as np

from detres.data.encoded import ImageShards
from detres.image_io import IMAGE_SUFFIXES
from detres.structures import ClassMap

_INDEX_VERSION = 1
_THREADS = 8
_BLOCK = 512  # bytes of a tar header


class ShardError(ValueError):
    """A tar shard that is cut short, compressed, damaged, or not in the webdataset layout; the message names it and the member."""


def read_shards(
    root: str, pattern: str, *, classes: Sequence[str] | None = None, show: Callable[[str], None] = lambda _: None
) -> ImageShards:
    """Read which images the shards of `pattern` hold; the images themselves stay where they are.

    root: a folder or a URL that fsspec opens (https://, s3://, gs://, hf://, ...; some want a package of their own). pattern, below
    root: a folder of *.tar, a name with a range such as train-{000..146}.tar, or one with * in it. classes: the names of the
    classes 0..K-1; without them the numbers are the names. show: called with a line before shards are indexed, which passes once
    over all of them.

    Raises FileNotFoundError naming a shard that is not there; ShardError for one that ends early, is compressed or no tar, has an
    image without class or a class without image; ValueError for a class number beyond `classes`, and, without those, for a
    number below the largest of which there is no image: numbers that begin at 1 would give a class too many.
    """
    urls = _expand(root, pattern)
    missing = [url for url in urls if not _exists(url)]
    if missing:
        raise FileNotFoundError(f"{missing[0]} is missing" + (f", and {len(missing) - 1} shards more" if len(missing) > 1 else ""))
    known = [_cached_index(url) for url in urls]
    unknown = [url for url, path in zip(urls, known, strict=True) if not path.is_file()]
    if unknown:
        show(f"indexing {len(unknown)} of {len(urls)} shards of {root}: once only")
    with ThreadPoolExecutor(_THREADS) as threads:
        parts = list(threads.map(_load_or_make_index, urls, known))
    labels = np.concatenate([part.labels for part in parts])
    source = f"{root}/{pattern} ({len(urls)} shards)"
    names = tuple(classes) if classes is not None else tuple(map(str, range(int(labels.max()) + 1)))
    outside = np.flatnonzero(labels >= len(names))
    if len(outside):
        shard = int(np.searchsorted(np.cumsum([len(part.labels) for part in parts]), outside[0], side="right"))
        row = outside[0] - sum(len(part.labels) for part in parts[:shard])
        raise ValueError(
            f"{urls[shard]}, {parts[shard].keys[row]}: class {labels[outside[0]]}, expected 0..{len(names) - 1} for {len(names)} classes"
        )
    absent = np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)
    if classes is None and len(absent):
        raise ValueError(
            f"{source}: no image of class {absent[0]}, though numbers reach {labels.max()}; classes are counted from 0. "
            "Where a class is meant to be empty, name all of them in data.classes"
        )
    return ImageShards(
        source=source,
        class_map=ClassMap(names, tuple(range(1, len(names) + 1))),
        urls=tuple(urls),
        shards=np.repeat(np.arange(len(urls), dtype=np.int32), [len(part.labels) for part in parts]),
        offsets=np.concatenate([part.offsets for part in parts]),
        sizes=np.concatenate([part.sizes for part in parts]),
        keys=np.concatenate([part.keys for part in parts]),
        labels=labels,
    )


@dataclass(frozen=True)
class _Index:
    """The n images of one shard in their order: keys (n,) str, the members' names; offsets, sizes in bytes and labels (n,) int64."""

    keys: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray


def _expand(root: str, pattern: str) -> list[str]:
    """The URLs of all shards, in order."""
    whole = f"{root.rstrip('/')}/{pattern}"
    ranges = re.search(r"\{(\d+)\.\.(\d+)\}", whole)
    if ranges:
        first, last = ranges[1], ranges[2]
        if len(first) != len(last) or int(first) > int(last):
            raise ValueError(f"{pattern}: expected a rising range of numbers of one width, for example {{000..146}}")
        numbers = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
        return [whole[: ranges.start()] + number + whole[ranges.end() :] for number in numbers]
    if "*" not in whole and whole.endswith(".tar"):
        return [whole]
    whole = whole if "*" in whole else f"{whole}/*.tar"
    files, path = _filesystem(whole)
    found = sorted(files.glob(path))
    if not found:
        raise FileNotFoundError(
            f"no shard {whole}; give data.train and data.val a folder of *.tar, or names such as train-{{000..146}}.tar"
        )
    return [files.unstrip_protocol(file) if "://" in root else file for file in found]


def _filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ValueError(f"{url} cannot be opened: {error}") from None


def _exists(url: str) -> bool:
    files, path = _filesystem(url)
    return files.exists(path)


def _cached_index(url: str) -> Path:
    """Where the index of a shard is kept: by its address and by what tells a changed file from the old one."""
    files, path = _filesystem(url)
    info = files.info(path)
    facts = [_INDEX_VERSION, url if "://" in url else str(Path(url).absolute())]
    facts += [str(info.get(name)) for name in ("size", "mtime", "LastModified", "ETag", "updated")]
    cache = Path(os.environ.get("DETRES_CACHE") or Path.home() / ".cache" / "detres")
    return cache / "shards" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:24]}.npz"


def _load_or_make_index(url: str, path: Path) -> _Index:
    if path.is_file():
        with np.load(path) as saved:
            return _Index(**{name: saved[name] for name in ("keys", "offsets", "sizes", "labels")})
    files, where = _filesystem(url)
    with files.open(where, "rb") as file:
        index = _index(file, url)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.npz")
    np.savez(unfinished, keys=index.keys, offsets=index.offsets, sizes=index.sizes, labels=index.labels)
    unfinished.replace(path)
    return index


def _index(file: BinaryIO, url: str) -> _Index:
    """Pass over the headers of a shard."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                split = re.fullmatch(r"((?:.*/)?[^./][^.]*)\.([^/]+)", member.name)
                if not member.isfile() or split is None:
                    continue
                key, field = split[1], split[2].lower()
                if f".{field.rpartition('.')[2]}" in IMAGE_SUFFIXES:
                    if key in images:
                        raise ShardError(f"{url}: {member.name} and {images[key][0]} are two images of one sample")
                    images[key] = (member.name, member.offset_data, member.size)
                elif field == "cls":
                    labels[key] = _class_number(tar.extractfile(member).read(), f"{url}, {member.name}")
            end = tar.offset
    except tarfile.TarError as error:
        raise ShardError(f"{url} is cut short or no uncompressed tar: {error}") from None
    file.seek(end)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise ShardError(f"{url} is cut short or damaged: no header and no end of the archive at byte {end}")
    without_class, without_image = [key for key in images if key not in labels], [key for key in labels if key not in images]
    if without_class:
        raise ShardError(f"{url}: {images[without_class[0]][0]} has no class; expected {without_class[0]}.cls with a number in it")
    if without_image:
        raise ShardError(f"{url}: {without_image[0]}.cls has no image beside it")
    if not images:
        raise ShardError(f"{url} has no images; expected members KEY.jpg and KEY.cls")
    keys, offsets, sizes = zip(*images.values(), strict=True)
    return _Index(
        np.array(keys), np.array(offsets, np.int64), np.array(sizes, np.int64), np.array([labels[key] for key in images], np.int64)
    )


def _class_number(content: bytes, where: str) -> int:
    text = content.strip()
    if not re.fullmatch(rb"\d{1,6}", text):
        raise ShardError(f"{where} holds {text[:20]!r}, expected a class number, 0 or more")
    return int(text)

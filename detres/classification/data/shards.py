"""Labelled images in tar shards of the webdataset layout, read where they lie: on a disk or behind
a URL, never unpacked.

A shard is an uncompressed tar in which KEY.jpg (or another image) and KEY.cls, the class number as
text counted from 0, make a sample. An index of every shard, where each image begins and its class,
is made once and kept in the cache folder; with it any image is one read of a byte range, so shards
are shuffled image by image and a run resumes exactly, as with files.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import posixpath
import re
import tarfile
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from detres.class_map import ClassMap
from detres.files import cache_folder
from detres.images.decode import IMAGE_SUFFIXES
from detres.images.source import ImageShards
from detres.storage import filesystem_of
from detres.user_files import TextError, is_hidden, text_of

_INDEX_VERSION = 2
_THREADS = 8
_MOST_SHARDS = 100_000
_LONGEST_NUMBER = 64  # bytes of a class number and blanks around it
_BLOCK = 512  # bytes of a tar header
# bytes; tar fills its last record, of 10 KiB unless told otherwise, with zeros
_LONGEST_END = 1 << 20
# what file systems say of a file
_FACTS = ("size", "mtime", "LastModified", "Last-Modified", "ETag", "updated", "blob_id")


class ShardError(ValueError):
    """A tar shard that is cut short, compressed, damaged, or not in the webdataset layout; the
    message names it and the member.
    """


def read_shards(
    root: str,
    pattern: str,
    *,
    classes: Sequence[str] | None = None,
    show: Callable[[str], None] = lambda _: None,
) -> ImageShards:
    """Read which images the shards of `pattern` hold; the images themselves stay where they are.

    root: a folder or a URL that fsspec opens (https://, s3://, gs://, hf://, ...; some want a
    package of their own). pattern, below root: a folder of *.tar, a name with one or more ranges
    such as train-{000..146}.tar, or one with * in it; what * finds is in order of the names, those
    that start with a dot passed over. classes: the names of the classes 0..K-1; without them the
    numbers are the names. show: called with a line before shards are indexed, which passes once
    over all of them.

    Raises FileNotFoundError naming a shard that is not there; ShardError for one that cannot be
    read, ends early, is compressed or no tar, goes on behind its end, has an image without class or
    a class without image, or two of either, or has links in their place; ValueError for a class
    number beyond `classes`, and, without those, for a number below the largest of which there is no
    image: numbers that begin at 1 would give a class too many. OSError where the index cannot be
    kept.
    """
    urls = _expand(root, pattern)
    parts = _indices(root, urls, show)
    labels = np.concatenate([part.labels for part in parts])
    names = tuple(classes) if classes is not None else tuple(map(str, range(int(labels.max()) + 1)))
    _require_classes(urls, parts, len(names))
    source = f"{root}/{pattern} ({len(urls)} shards)"
    absent = np.flatnonzero(np.bincount(labels, minlength=len(names)) == 0)
    if classes is None and len(absent):
        raise ValueError(
            f"{source}: no image of class {absent[0]}, though numbers reach {labels.max()}; "
            "classes are counted from 0. Where a class is meant to be empty, name all of them "
            "(classes)"
        )
    numbers = np.arange(len(urls), dtype=np.int32)
    return ImageShards(
        source=source,
        class_map=ClassMap.of_names(names),
        urls=tuple(urls),
        shards=np.repeat(numbers, [len(part.labels) for part in parts]),
        offsets=np.concatenate([part.offsets for part in parts]),
        sizes=np.concatenate([part.sizes for part in parts]),
        keys=np.concatenate([part.keys for part in parts]),
        labels=labels,
    )


def _indices(root: str, urls: list[str], show: Callable[[str], None]) -> list[_Index]:
    """The index of every shard, kept or made now."""
    with ThreadPoolExecutor(_THREADS) as threads:
        infos = list(threads.map(_info, urls))
        _require_there(urls, infos)
        known = [_cached_index(url, info) for url, info in zip(urls, infos, strict=True)]
        loaded = list(threads.map(_load_index, known))
        unknown = [number for number, index in enumerate(loaded) if index is None]
        if unknown:
            show(f"indexing {len(unknown)} of {len(urls)} shards of {root}: once only")
        without = [urls[number] for number in unknown]
        made = threads.map(_make_index, without, [known[number] for number in unknown])
        for number, index in zip(unknown, made, strict=True):
            loaded[number] = index
    return loaded


def _require_there(urls: list[str], infos: list[dict | FileNotFoundError]) -> None:
    missing = [
        (url, info)
        for url, info in zip(urls, infos, strict=True)
        if isinstance(info, FileNotFoundError)
    ]
    if missing:
        url, error = missing[0]
        reason = f" ({error.__cause__})" if error.__cause__ else ""
        more = f", and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{url} is missing{reason}{more}")


def _require_classes(urls: list[str], parts: list[_Index], num_classes: int) -> None:
    for url, part in zip(urls, parts, strict=True):
        outside = np.flatnonzero(part.labels >= num_classes)
        if len(outside):
            row = outside[0]
            raise ValueError(
                f"{url}, {part.keys[row]}: class {part.labels[row]}, expected 0..{num_classes - 1} "
                f"for {num_classes} classes"
            )


@dataclass(frozen=True)
class _Index:
    """The n images of one shard in their order: keys (n,) str, the members' names; offsets, sizes
    in bytes and labels (n,) int64.
    """

    keys: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray


def _expand(root: str, pattern: str) -> list[str]:
    """The URLs of all shards, in order."""
    root = root if root.endswith("://") else root.rstrip("/") + "/"
    return [url for name in _expand_ranges(pattern) for url in _find(root, name)]


def _expand_ranges(pattern: str) -> list[str]:
    text, *others = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)
    choices, number = [[text]], 1
    for first, last, text in zip(others[::3], others[1::3], others[2::3], strict=True):
        padded = len(first) > 1 and first.startswith("0")
        if int(first) > int(last) or (padded and len(first) != len(last)):
            raise ValueError(
                f"{pattern}: expected a rising range, {{0..146}}, or with numbers of one width, "
                f"{{000..146}}"
            )
        number *= int(last) - int(first) + 1
        if number > _MOST_SHARDS:
            raise ValueError(
                f"{pattern}: its ranges name more than {_MOST_SHARDS} shards; give the numbers "
                "that are there"
            )
        choices.append(
            [f"{each:0{len(first)}d}{text}" for each in range(int(first), int(last) + 1)]
        )
    return ["".join(choice) for choice in itertools.product(*choices)]


def _find(root: str, name: str) -> list[str]:
    """The URLs of the shards of a name without ranges: of one shard, of a folder, or with * in it;
    root ends with a slash.
    """
    if "*" not in name:
        if re.search(
            r"\.(tar|tgz)[^/]*$", name
        ):  # also a compressed one, to say so, and one with a query behind
            return [root + name]
        name = f"{posixpath.normpath(name.strip('/'))}/*.tar".removeprefix("./")
    files, path = filesystem_of(glob.escape(root) + name)
    try:
        found = sorted(file for file in files.glob(path) if not is_hidden(file.rpartition("/")[2]))
    except FileNotFoundError:
        found = []
    except Exception as error:  # each file system of fsspec has errors of its own
        raise ShardError(f"{root}{name} cannot be listed: {error}") from None
    if not found:
        raise FileNotFoundError(
            f"no shard {root}{name}; give a folder of *.tar, or names such as "
            "train-{000..146}.tar"
        )
    # of a root such as simplecache::s3://bucket
    caches = root[: root.rfind("::") + 2] if "::" in root else ""
    return [caches + files.unstrip_protocol(file) if "://" in root else file for file in found]


def _info(url: str) -> dict | FileNotFoundError:
    """What its file system says of a shard, or why there is none."""
    files, path = filesystem_of(url)
    try:
        return files.info(path)
    except FileNotFoundError as error:
        return error
    except Exception as error:  # each file system of fsspec has errors of its own
        raise ShardError(f"{url} cannot be reached: {error}") from None


def _cached_index(url: str, info: dict) -> Path:
    """Where the index of a shard is kept: by its address and by what tells a changed file from the
    old one.
    """
    facts = [
        _INDEX_VERSION,
        url if "://" in url else str(Path(url).absolute()),
        *(str(info.get(name)) for name in _FACTS),
    ]
    return (
        cache_folder() / "shards" / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:24]}.npz"
    )


def _load_index(path: Path) -> _Index | None:
    """The index that is kept; None where there is none, or a damaged one."""
    try:
        with np.load(path) as saved:
            return _Index(**{name: saved[name] for name in ("keys", "offsets", "sizes", "labels")})
    except Exception:  # what numpy and zipfile raise depends on where the damage is
        return None


def _make_index(url: str, path: Path) -> _Index:
    files, where = filesystem_of(url)
    try:
        with files.open(where, "rb") as file:
            index = _index(file, url)
    except ShardError:
        raise
    except Exception as error:  # each file system of fsspec has errors of its own
        raise ShardError(f"{url} cannot be read: {error}") from None
    unfinished = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            unfinished,
            keys=index.keys,
            offsets=index.offsets,
            sizes=index.sizes,
            labels=index.labels,
        )
        unfinished.replace(path)
    except OSError as error:
        raise OSError(
            f"the index of {url} cannot be kept: {error}; give another folder in DETRES_CACHE"
        ) from None
    return index


def _index(file: BinaryIO, url: str) -> _Index:
    """Pass over the headers of a shard."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(
            fileobj=file, mode="r:", encoding="utf-8", errors="backslashreplace"
        ) as tar:
            for member in tar:
                _take_member(tar, member, url, images, labels)
            end = tar.offset
    except tarfile.TarError as error:
        raise ShardError(f"{url} is cut short or no uncompressed tar: {error}") from None
    _require_end(file, url, end)
    without_class = [key for key in images if key not in labels]
    without_image = [key for key in labels if key not in images]
    if without_class:
        raise ShardError(
            f"{url}: {images[without_class[0]][0]} has no class; expected {without_class[0]}.cls "
            "with a number in it"
        )
    if without_image:
        raise ShardError(f"{url}: {without_image[0]}.cls has no image beside it")
    if not images:
        raise ShardError(f"{url} has no images; expected members KEY.jpg and KEY.cls")
    keys, offsets, sizes = zip(*images.values(), strict=True)
    return _Index(
        np.array(keys),
        np.array(offsets, np.int64),
        np.array(sizes, np.int64),
        np.array([labels[key] for key in images], np.int64),
    )


def _take_member(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    url: str,
    images: dict[str, tuple[str, int, int]],
    labels: dict[str, int],
) -> None:
    """Enter a member into `images` (key -> name, offset, bytes) or `labels`, if it is of these."""
    split = re.fullmatch(r"((?:.*/)?[^./][^./]*)\.([^/]+)", member.name, re.DOTALL)
    if split is None or member.isdir():
        return
    key, field = split[1], split[2].lower()
    is_image = f".{field.rpartition('.')[2]}" in IMAGE_SUFFIXES
    if not is_image and field != "cls":
        return
    if not member.isreg() or member.issparse():
        raise ShardError(
            f"{url}: {member.name} is a link or sparse, not the bytes; pack with tar --dereference "
            "--hard-dereference"
        )
    if is_image and key in images:
        raise ShardError(f"{url}: {images[key][0]} and {member.name} are two images of one sample")
    if not is_image and key in labels:
        raise ShardError(f"{url}: {member.name} is there twice")
    if is_image:
        images[key] = (member.name, member.offset_data, member.size)
    else:
        content = tar.extractfile(member).read(_LONGEST_NUMBER)
        labels[key] = _class_number(content, f"{url}, {member.name}")


def _require_end(file: BinaryIO, url: str, end: int) -> None:
    file.seek(end)
    rest = file.read(_LONGEST_END + 1)
    if rest[:_BLOCK] != bytes(_BLOCK):
        raise ShardError(
            f"{url} is cut short or damaged: no header and no end of the archive at byte {end}"
        )
    if rest.strip(b"\0") or len(rest) > _LONGEST_END:
        raise ShardError(
            f"{url} goes on behind its end at byte {end}: damaged, half downloaded, or archives "
            "joined without tar -A"
        )


def _class_number(content: bytes, where: str) -> int:
    try:
        text = text_of(content, where).strip()
    except TextError:
        text = ""
    if not re.fullmatch(r"[0-9]{1,6}", text):
        raise ShardError(f"{where} holds {content[:20]!r}, expected a class number, 0..999999")
    return int(text)

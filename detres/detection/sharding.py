"""A part of many images, shard I of N, for machines that know nothing of each other: what N of them
write into one folder, none lost and none there twice.

    OUT/shard-00002-of-00008.jsonl            a line of JSON an image, see predictor.row_of
    OUT/_manifest/shard-00002-of-00008.json   its entry: what it is made of, and its sha256

An entry is written when a shard begins, which shows that OUT can be written, and again, with the
output's sha256, when that is there: then the shard is finished.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from backbones.download import digest_of
from detres import __version__
from detres.config import Notice
from detres.console import one_line, plural
from detres.detection.inference.video import is_video
from detres.detection.predictor import Predictor
from detres.files import TakenFolderError
from detres.images.decode import IMAGE_SUFFIXES
from detres.images.given import find_images
from detres.storage import Folder, Listed, listed, read_ahead
from detres.user_files import is_hidden, is_url
from detres.waiting import counted

MANIFEST = "_manifest"
"""The folder of the entries, which readers of data sets pass over for its first letter."""

_LISTED = 8


class OtherShardError(TakenFolderError):
    """A folder with shards that were made otherwise; the message names one, and what differs."""


class Shard(NamedTuple):
    """Shard `number`, 1..of, of `of`: of images in the order of their names every `of`-th, from
    image `number` on.
    """

    number: int
    of: int

    def __str__(self) -> str:
        return f"shard {self.number} of {self.of}"

    @property
    def output(self) -> str:
        """The name of its output."""
        return f"{self._name}.jsonl"

    @property
    def entry(self) -> str:
        """The name of its entry in the manifest."""
        return f"{MANIFEST}/{self._name}.json"

    @property
    def _name(self) -> str:
        return f"shard-{self.number:05d}-of-{self.of:05d}"


_ENTRY = re.compile(r"shard-(\d+)-of-(\d+)\.json")


@dataclass(frozen=True)
class Made:
    """What a shard is made of, and with.

    images: how many, of images_in_all. all_names_sha256: of the names of all, as given;
    images_sha256: of its own names and their bytes. weights_sha256: of their file. settings: of the
    Predictor.
    """

    images_in_all: int
    all_names_sha256: str
    images: int
    images_sha256: str
    weights_sha256: str
    settings: dict[str, Any]

    def difference(self, other: Made, *, same_shard: bool) -> str | None:
        """Return in which way `other`, which is there, was made otherwise than this, for another
        shard of the same images, or the same shard; None: it was not.
        """
        in_all = f"is of {plural(other.images_in_all, 'image')} in all"
        if other.images_in_all != self.images_in_all:
            return f"{in_all}, which are {self.images_in_all} now"
        if other.all_names_sha256 != self.all_names_sha256:
            return f"{in_all}, which have other names now"
        if other.weights_sha256 != self.weights_sha256:
            theirs, ours = other.weights_sha256[:8], self.weights_sha256[:8]
            return f"was made with other weights, sha256 {theirs}, not {ours}"
        for name, value in self.settings.items():
            if other.settings.get(name) != value:
                return f"was made with {name} {other.settings.get(name)}, not {value}"
        if same_shard and other.images_sha256 != self.images_sha256:
            return "was made of images that had other sizes in bytes"
        return None


def find_shard_images(items: Iterable[str]) -> list[Listed]:
    """Return the images in paths, as find_images does, and behind URLs, as `listed` does, in the
    order of their names, each once; sizes are not looked up on a disk.

    Raises ValueError for a video and where there is no image, and what both functions raise.
    """
    found: dict[str, Listed] = {}
    for item in items:
        if is_url(item):
            images = [each for each in listed(item) if _is_image(each.url)]
            if not images:
                raise ValueError(f"no image ({', '.join(IMAGE_SUFFIXES)}) at {item}")
        else:
            images = [Listed(path.as_posix(), None) for path in find_images([Path(item)])]
        found |= {each.url: each for each in images}
    if videos := [name for name in found if is_video(Path(name))]:
        raise ValueError(f"{videos[0]} is a video; a shard is of images")
    return sorted(found.values())


def _is_image(url: str) -> bool:
    name = url.rpartition("/")[2]
    return name.lower().endswith(IMAGE_SUFFIXES) and not is_hidden(name)


def predict_shard(
    predictor: Predictor, images: Sequence[Listed], shard: Shard, out: Folder, say: Notice
) -> None:
    """Write what is in a shard of all `images`, in the order of find_shard_images, into `out`; a
    shard that is there, whole and made of and with the same, is left as it is.

    An image that is damaged has its line, with what is wrong. say: called with lines on what is
    done. Raises OtherShardError for a folder with shards that were made otherwise, OSError naming
    it for an image that cannot be fetched, after which nothing is written, and for a folder that
    cannot be written.
    """
    own = images[shard.number - 1 :: shard.of]
    made = Made(
        images_in_all=len(images),
        all_names_sha256=_digest(image.url for image in images),
        images=len(own),
        images_sha256=_digest(f"{image.url} {_size_of(image)}" for image in own),
        weights_sha256=digest_of(Path(predictor.weights)),
        settings=_settings_of(predictor),
    )
    found = _Found.of(out, shard)
    found.require_same(made)
    if found.is_whole(say):
        say(f"{out.of(shard.output)}: passed over, it is there, whole and made of the same")
    else:
        _write(predictor, own, made, shard, out, say)
    say(_Found.of(out, shard).summary())


def _settings_of(predictor: Predictor) -> dict[str, Any]:
    settings = {
        "score": predictor.score,
        "precision": predictor.precision or "of the weights",
        "tile": predictor.tile,
    }
    if predictor.tile is not None:
        settings |= {"overlap": predictor.overlap, "whole": predictor.whole}
    return settings


def _size_of(image: Listed) -> int | None:
    return image.size if is_url(image.url) else Path(image.url).stat().st_size


def _digest(names: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(f"{name}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _write(
    predictor: Predictor,
    own: Sequence[Listed],
    made: Made,
    shard: Shard,
    out: Folder,
    say: Notice,
) -> None:
    entry = {**asdict(made), "detres": __version__, "unreadable": 0, "output": None}
    _write_entry(out, shard, entry)
    unreadable: list[str] = []
    with out.writing(shard.output) as temporary:
        content = read_ahead(image.url for image in counted(own, str(shard), "images"))
        with temporary.open("w", encoding="ascii") as file:
            for row in predictor.rows(content):
                file.write(f"{json.dumps(row)}\n")
                if row["error"]:
                    unreadable.append(row["error"])
        output = {"bytes": temporary.stat().st_size, "sha256": digest_of(temporary)}
    _write_entry(out, shard, {**entry, "unreadable": len(unreadable), "output": output})
    say(f"{out.of(shard.output)}: {plural(len(own), 'image')}")
    if unreadable:
        say(
            f"{len(unreadable)} of them cannot be read, which their lines say: "
            f"{one_line(unreadable[0])}"
        )


def _write_entry(out: Folder, shard: Shard, entry: dict[str, Any]) -> None:
    with out.writing(shard.entry) as temporary:
        temporary.write_text(f"{json.dumps(entry, indent=1)}\n", encoding="ascii")


class _Entry(NamedTuple):
    """What the manifest says of a finished shard."""

    made: Made
    unreadable: int
    bytes: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> _Entry | None:
        """Return what an entry says; None for one of a shard that is not finished, or is none."""
        try:
            read = json.loads(content)
            made = Made(**{field.name: read[field.name] for field in fields(Made)})
            output = read["output"]
            entry = cls(made, read["unreadable"], output["bytes"], output["sha256"])
        except (ValueError, KeyError, TypeError, RecursionError):
            return None
        numbers = (made.images_in_all, made.images, entry.unreadable, entry.bytes)
        digests = (made.all_names_sha256, made.images_sha256, made.weights_sha256, entry.sha256)
        is_one = (
            all(type(number) is int for number in numbers)
            and all(type(digest) is str for digest in digests)
            and type(made.settings) is dict
        )
        return entry if is_one else None


class _Found:
    """What is in a folder of shards, beside the shard that is asked for."""

    def __init__(
        self, out: Folder, shard: Shard, entries: dict[Shard, _Entry], sizes: dict[str, int | None]
    ) -> None:
        self.out, self.shard, self.entries, self.sizes = out, shard, entries, sizes

    @classmethod
    def of(cls, out: Folder, shard: Shard) -> _Found:
        """Return what is there: finished shards, whose entries are read, and outputs."""
        names = filter(_ENTRY.fullmatch, out.sizes(MANIFEST))
        contents = out.read_all(f"{MANIFEST}/{name}" for name in sorted(names))
        entries = {
            Shard(*map(int, _ENTRY.search(name).groups())): _Entry.of(content)
            for name, content in contents.items()
        }
        finished = {each: entry for each, entry in entries.items() if entry is not None}
        return cls(out, shard, finished, out.sizes())

    def require_same(self, made: Made) -> None:
        """Raise OtherShardError unless all that is finished goes with a shard made as this one."""
        for other, entry in sorted(self.entries.items(), key=lambda each: each[0]):
            if other.of != self.shard.of:
                raise OtherShardError(f"{self.out} holds {other}, and this is {self.shard}")
            difference = made.difference(entry.made, same_shard=other == self.shard)
            if difference is not None:
                raise OtherShardError(f"{self.out.of(other.output)} {difference}")

    def is_whole(self, say: Notice) -> bool:
        """Return whether the shard is there as its entry says; where it is there otherwise, that is
        said.
        """
        output = self.out.of(self.shard.output)
        entry = self.entries.get(self.shard)
        there = self.shard.output in self.sizes
        if entry is None:
            if there:
                say(f"{output}: made anew, its entry in {MANIFEST} is not there or not finished")
            return False
        if not there:
            say(f"{output}: made anew, it is not there though its entry is")
            return False
        content = self.out.read_all([self.shard.output]).get(self.shard.output, b"")
        if hashlib.sha256(content).hexdigest() != entry.sha256:
            say(f"{output}: made anew, it is damaged: its sha256 is not that of its entry")
            return False
        return True

    def summary(self) -> str:
        """Return how many of the shards are there, in the size that they were written in, and which
        are not.
        """
        of = self.shard.of
        numbers = {
            each.number
            for each, entry in self.entries.items()
            if self.sizes.get(each.output, -1) in (entry.bytes, None)
        }
        if len(numbers) < of:
            missing = [str(number) for number in range(1, of + 1) if number not in numbers]
            more = ", ..." if len(missing) > _LISTED else ""
            return (
                f"{len(numbers)} of {plural(of, 'shard')} in {self.out}; still missing: "
                f"{', '.join(missing[:_LISTED])}{more}"
            )
        images = sum(entry.made.images for entry in self.entries.values())
        unreadable = sum(entry.unreadable for entry in self.entries.values())
        return (
            f"all {plural(of, 'shard')} in {self.out}: {plural(images, 'image')}, {unreadable} "
            "of them unreadable"
        )

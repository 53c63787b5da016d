"""Which images of a data set without validation images are held out: drawn with a seed, frames of
one video and copies of one picture together, and kept in a file.

The draw depends on the names of the files alone, neither on their order nor on the format of the
annotations, and what is added to a set moves no other image but at the edge of the share.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detres.console import shown
from detres.files import write_text
from detres.user_files import read_json


class SplitError(ValueError):
    """A split that cannot be made, or a split file that is none or not of these images."""


_EXPORTED = re.compile(r"[_-](jpe?g|png|bmp|webp|tiff?)\.rf\.[0-9a-z]+$", re.IGNORECASE)
"""What Roboflow puts behind the name of a picture, which all augmented copies have in common."""

_COPY = re.compile(
    r"""[-_. ]*(
        (?<![a-z])(crop|cropped|patch|tile|slice|aug|augmented|augmentation|copy|flip|flipped
        |hflip|vflip|fliplr|flipud|mirror|mirrored|rot|rotate|rotated)
        ([-_. ]?\d+)*
        | \(\d+\)                # NAME (2)
        | ([-_]+\d+){3,}         # the corners of a tile
    )$""",
    re.IGNORECASE | re.VERBOSE,
)
"""What the names of pictures made of another end with."""

_FRAME = re.compile(r"(?P<video>.*[a-z].*?)(?P<number>\d+)", re.IGNORECASE | re.DOTALL)
"""NAME_0001: a frame, where others of the same NAME are there."""


def source_of(name: str) -> str:
    """Return what the name of an image file says of the picture that it was made of: the name
    without folder, suffix and what tools put behind it for crops and augmented copies.
    """
    stem = os.path.splitext(os.path.basename(name.replace("\\", "/")))[0]
    stem = _EXPORTED.sub("", stem)
    shorter = _COPY.sub("", stem)
    while shorter and shorter != stem:
        stem, shorter = shorter, _COPY.sub("", shorter)
    return stem


def groups_of(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of N image file names that stay together, by what they have in common: one
    source (source_of), or sources that differ in the number at their end; in the order of that
    number, then of the names. No names: no groups.
    """
    sources: dict[str, list[int]] = {}
    for row in sorted(range(len(names)), key=names.__getitem__):
        sources.setdefault(source_of(names[row]).casefold(), []).append(row)
    videos: dict[str, list[tuple[int, str]]] = {}
    for source in sources:
        frame = _FRAME.fullmatch(source)
        if frame is None:  # no name before the number, as in COCO: nothing in common
            videos[source] = [(0, source)]
        else:
            videos.setdefault(f"{frame['video']}*", []).append((int(frame["number"]), source))
    return {
        video: [row for _, source in sorted(of_video) for row in sources[source]]
        for video, of_video in videos.items()
    }


@dataclass(frozen=True)
class Split:
    """Rows of N images: `train` and `val`, (N - V,) and (V,) int64, both rising. note: what is to
    be said of how they were chosen.
    """

    train: np.ndarray
    val: np.ndarray
    note: str


def drawn_split(
    names: Sequence[str], share: float, seed: int, source: str, shown_classes: np.ndarray
) -> Split:
    """Return a split of N image files in which about `share` of them, one at least, are val.

    Groups (groups_of) are taken whole, in an order drawn with `seed`, as long as they fit. Where
    that gives less than half the share, the smallest one more, if val is then at most half of all;
    else a stretch of the largest, its place drawn too: nothing else can be done with a single
    video. shown_classes: (N, K) bool, which classes an image has objects of. A group that holds all
    images of a class stays in train; where too few others are left (files called CLASS_NUMBER), or
    these show no object, a part in a row of each such group is val. source: of the images, for
    messages. Raises SplitError for fewer than two images.
    """
    total = len(names)
    if total < 2:
        raise SplitError(f"{source}: {total} image cannot be divided into train and val")
    wanted = min(max(1, round(share * total)), total - 1)
    groups = groups_of(names)
    order = sorted(groups, key=lambda name: _drawn(seed, name))
    needed = _needed_in_train(groups, shown_classes)
    free = [name for name in order if name not in needed]
    held, left = _that_fit(free, groups, wanted)
    said = ""
    if needed and (2 * len(held) < wanted or not shown_classes[held].any()):
        held = []
        for name in needed:
            held += _stretch(groups[name], share, seed, name, names)
        held += _that_fit(free, groups, wanted - len(held))[0]
        said = (
            f"; of {len(needed)} sequences of names, such as {shown(needed[0])}, a part in a row "
            "is val, for each holds all images of some class"
        )
    elif 2 * len(held) < wanted:
        smallest = min(left, key=lambda name: len(groups[name]))
        largest = max(left, key=lambda name: len(groups[name]))
        if 2 * (len(held) + len(groups[smallest])) <= total:
            held += groups[smallest]
        else:
            rows, number = groups[largest], wanted - len(held)
            start = _drawn(seed, f"in {largest}") % (len(rows) - number + 1)
            held += rows[start : start + number]
            said = (
                f"; {len(rows)} images are by their names one sequence, {shown(largest)}, of which "
                f"{number} in a row are val"
            )
    together = sum(len(rows) for rows in groups.values() if len(rows) > 1)
    if together and not said:
        said = f"; {together} are by their names frames or copies of others, and stay with them"
    val = np.sort(np.array(held, np.int64))
    return Split(
        train=np.setdiff1d(np.arange(total), val),
        val=val,
        note=f"{len(val)} of {total} images are val, drawn with seed {seed}{said}",
    )


def _that_fit(
    order: Sequence[str], groups: dict[str, list[int]], wanted: int
) -> tuple[list[int], list[str]]:
    """The rows of groups, taken whole in this order as long as they are `wanted` at most, and the
    groups that did not fit.
    """
    held: list[int] = []
    left = []
    for name in order:
        fits = len(held) + len(groups[name]) <= wanted
        held += groups[name] if fits else []
        left += [] if fits else [name]
    return held, left


def _needed_in_train(groups: dict[str, list[int]], shown_classes: np.ndarray) -> list[str]:
    """The groups of several images without which nothing shows some class; none where there is one
    group alone.
    """
    counts = shown_classes.sum(axis=0)
    if len(groups) == 1 or not counts.any():
        return []
    return [
        name
        for name, rows in groups.items()
        if len(rows) > 1 and ((shown_classes[rows].sum(axis=0) == counts) & (counts > 0)).any()
    ]


def _stretch(
    rows: Sequence[int], share: float, seed: int, name: str, names: Sequence[str]
) -> list[int]:
    """A part in a row of a group, about `share` of it, its place drawn, without copies of pictures
    outside.
    """
    number = min(max(1, round(share * len(rows))), len(rows) - 1)
    start = _drawn(seed, f"in {name}") % (len(rows) - number + 1)
    return _with_whole_sources(rows, start, number, names)


def _with_whole_sources(
    rows: Sequence[int], start: int, number: int, names: Sequence[str]
) -> list[int]:
    """`number` rows from `start` on, less those at either end that are made of a picture which
    others outside are made of too; all of them where nothing else is left.
    """
    sources = [source_of(names[row]) for row in rows]
    first, last = start, start + number
    while first < last and first > 0 and sources[first] == sources[first - 1]:
        first += 1
    while last > first and last < len(rows) and sources[last] == sources[last - 1]:
        last -= 1
    return list(rows[first:last] or rows[start : start + number])


def _drawn(seed: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed} {name}".encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def file_names(files: Sequence[str]) -> list[str]:
    """Return what split files call N image files, full paths: their last names; where those are not
    all different, their paths below the folder they have in common. No files: no names.
    """
    paths = [Path(file) for file in files]
    names = [path.name for path in paths]
    if len(set(names)) < len(names):
        common = os.path.commonpath([path.parent for path in paths])
        names = [path.relative_to(common).as_posix() for path in paths]
    return names


def write_split(path: Path, train: Sequence[str], val: Sequence[str]) -> None:
    """Write which image files, full paths, are train and which are val, as JSON that
    `read_split_file` reads.
    """
    names = file_names([*train, *val])
    content = {"train": names[: len(train)], "val": names[len(train) :]}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_split_file(path: Path, files: Sequence[str], source: str) -> Split:
    """Return the split of N image files, full paths, that a file holds.

    source: of the images, for messages. Raises SplitError naming the file for one that is none, an
    image in both parts, an image of the file that is not there and one that it lacks; what
    `read_json` raises.
    """
    content = read_json(path, "split file")
    parts = content if isinstance(content, dict) else {}
    listed = {name: parts.get(name) for name in ("train", "val")}
    for part, names in listed.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise SplitError(
                f"{path} is no split file: expected an object with the lists train and val of "
                f"image names, and {part} is {shown(names)}"
            )
    part_of = {name: part for part, names in listed.items() for name in names}
    if len(part_of) < sum(map(len, listed.values())):
        both = sorted(set(listed["train"]) & set(listed["val"])) or ["a name"]
        raise SplitError(f"{path}: {both[0]} is listed twice")
    names = file_names(files)
    row_of = {name: row for row, name in enumerate(names)}
    for what, odd in (
        (f"of its images are not in {source}", [name for name in part_of if name not in row_of]),
        (f"images of {source} are not in it", [name for name in names if name not in part_of]),
    ):
        if odd:
            raise SplitError(
                f"{path} is of other images: {len(odd)} {what}, such as {odd[0]}; make a new split "
                "(val_share), or add them to it"
            )
    rows = {
        part: np.sort(np.array([row_of[name] for name in listed[part]], np.int64))
        for part in listed
    }
    if not len(rows["train"]) or not len(rows["val"]):
        raise SplitError(f"{path} has no image of {'train' if len(rows['val']) else 'val'}")
    return Split(**rows, note=f"{len(rows['val'])} of {len(names)} images are val by {path}")

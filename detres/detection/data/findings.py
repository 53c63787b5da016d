"""What a look at annotated data finds, and the splits that it looks at."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Literal

import numpy as np

from detres.detection.annotations import Annotations
from detres.detection.data.box_checks import BoxFaults, find_faults
from detres.detection.data.box_policy import RENUMBERED
from detres.detection.data.doubts import doubts
from detres.images.survey import Survey

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
"""Worst first: an error spoils training or its numbers, a warning may, a note is for knowing."""

LISTED = 500
"""Of the things of one kind that were found, so many are listed one by one."""


@dataclass(frozen=True)
class Shown:
    """A picture to look at, with boxes (B, 4) float64 xyxy px as written and the names of their
    classes; B may be 0.

    split: the one that it is in. file: its full path. size: (h, w) px that the annotations state, 0
    where they do not.
    """

    split: str
    file: str
    size: tuple[int, int]
    boxes: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """One thing found: the file and record it is in, what is said of it, and pictures of it."""

    where: str
    what: str
    pictures: tuple[Shown, ...] = ()

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" if self.what else self.where


@dataclass(frozen=True)
class Finding:
    """Things of one kind: how many, what they are, what to do about them, and the first of them, at
    most LISTED.
    """

    kind: str
    level: Level
    count: int
    title: str
    advice: str
    examples: tuple[Example, ...] = ()

    def __str__(self) -> str:
        return f"{self.level} ({self.count}): {self.title}"


@dataclass(frozen=True)
class Part:
    """One split of a data set: N images, M boxes as they are written.

    base: the folder that its files are named from. survey: what its files are; None: they were not
    looked at.
    """

    name: str
    annotations: Annotations
    base: str
    survey: Survey | None = None

    @cached_property
    def images(self) -> np.ndarray:
        """The image of every box, (M,) int64."""
        return np.repeat(np.arange(len(self.annotations)), np.diff(self.annotations.offsets))

    @cached_property
    def sizes(self) -> np.ndarray:
        """The (h, w) px of the images that the boxes lie in, (N, 2) int64: what the annotations
        state, else what the file upright has; 0 where neither is known.
        """
        stated = self.annotations.image_sizes.astype(np.int64)
        known = (stated > 0).all(axis=1, keepdims=True)
        return np.where(known, stated, 0 if self.survey is None else self.survey.upright_sizes)

    @cached_property
    def faults(self) -> BoxFaults:
        """What is wrong with the numbers of every box."""
        return find_faults(self.annotations.boxes, self.sizes[self.images])

    @cached_property
    def doubts(self) -> list[str]:
        """What all boxes together seem to mean instead, a line each."""
        annotations = self.annotations
        sizes, as_sides = self.sizes[self.images], annotations.sides is not None
        return doubts(annotations.boxes, sizes, written_as_sides=as_sides)

    @cached_property
    def learnt(self) -> np.ndarray:
        """Which boxes are of objects to learn from, (M,) bool."""
        return ~(self.annotations.crowd | self.annotations.difficult)

    def class_counts(self) -> dict[str, int]:
        """Return name -> number of objects to learn from, of all classes."""
        names = self.annotations.class_map.names
        indices = self.annotations.class_indices[self.learnt]
        return dict(zip(names, np.bincount(indices, minlength=len(names)).tolist(), strict=True))

    def class_of(self, row: int) -> str:
        """Return the name of the class of a box."""
        return self.annotations.class_map.name_of(int(self.annotations.class_indices[row]))

    def file(self, image: int) -> str:
        """Return how an image file is named: its split, and its path from `base`."""
        path = os.path.relpath(str(self.annotations.image_files[image]), self.base)
        return f"{self.name} {path}"

    def record(self, row: int) -> str:
        """Return how a box is named with its file."""
        return f"{self.file(int(self.images[row]))}, {self.name_of(row)}"

    def name_of(self, row: int) -> str:
        """Return how a box is named in its file: its id where the annotations give one, else its
        number in the image from 1, and its class.
        """
        annotations = self.annotations
        given = annotations.image_ids.dtype.kind == "i" and RENUMBERED not in annotations.dropped
        number = row - int(annotations.offsets[self.images[row]]) + 1
        name = f"annotation {annotations.ids[row]}" if given else f"object {number}"
        return f"{name} ({self.class_of(row)})"

    def shown(self, image: int, rows: Sequence[int] = ()) -> Shown:
        """Return an image with some of its boxes."""
        height, width = self.annotations.image_sizes[image].tolist()
        return Shown(
            split=self.name,
            file=str(self.annotations.image_files[image]),
            size=(height, width),
            boxes=self.annotations.boxes[list(rows)].reshape(-1, 4),
            names=tuple(map(self.class_of, rows)),
        )


def parts_of(
    splits: dict[str, Annotations], surveys: dict[str, Survey] | None = None
) -> list[Part]:
    """Return the splits of a data set, their files named from the folder that all are in."""
    folders = {
        os.path.dirname(file)
        for annotations in splits.values()
        for file in annotations.image_files.tolist()
    }
    base = os.path.commonpath(folders) if folders else "."
    return [
        Part(name, annotations, base, surveys[name] if surveys else None)
        for name, annotations in splits.items()
    ]


@dataclass(frozen=True)
class Kind:
    """A kind of finding: what it is called, how bad it is, in words, and what to do about it."""

    name: str
    level: Level
    title: str
    advice: str

    def of(self, count: int, examples: Iterable[Example], title: str = "") -> list[Finding]:
        """Return the finding of `count` things, of which `examples` are the first or all; none
        where there are none.

        title: in place of the kind's own.
        """
        if count == 0:
            return []
        listed = tuple(islice(examples, LISTED))
        return [Finding(self.name, self.level, count, title or self.title, self.advice, listed)]

    def in_parts(
        self,
        parts: Sequence[Part],
        rows: Sequence[np.ndarray],
        example: Callable[[Part, np.ndarray], Example],
        title: str = "",
    ) -> list[Finding]:
        """Return the finding of `rows`, the (R,) or (R, 2) rows of each of `parts`.

        example: (part, row) -> the Example of it. title: as `of` takes it.
        """
        each = ((part, row) for part, of_part in zip(parts, rows, strict=True) for row in of_part)
        return self.of(sum(map(len, rows)), (example(part, row) for part, row in each), title)


def numbers(values: np.ndarray) -> str:
    """Return the numbers of a box as they are shown."""
    return f"[{', '.join(f'{value:.6g}' for value in values.tolist())}]"

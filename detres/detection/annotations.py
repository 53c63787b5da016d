"""A whole annotated data set in flat arrays."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from detres.class_map import ClassMap
from detres.console import plural
from detres.detection.structures import (
    Predictions,
    Target,
    index_of,
    label_of,
    require_sides,
    xywh_of,
)

_OF_IMAGES = ("image_ids", "image_files", "image_sizes")
_OF_OBJECTS = ("boxes", "labels", "areas", "crowd", "difficult")


class NoTruthError(ValueError):
    """A test set whose objects are not known was to be evaluated; the message names it and says
    why.
    """


def offsets_of(image_rows: np.ndarray, num_images: int) -> np.ndarray:
    """Return `Annotations.offsets` (N + 1,) int64 for the image of every object, (M,) int64 in
    rising order.
    """
    counts = np.bincount(image_rows, minlength=num_images)
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


@dataclass(frozen=True)
class Annotations:
    """A whole annotated data set in flat arrays: the objects of image n are rows
    offsets[n]:offsets[n + 1].

    Flat arrays, not a dict per box, so that forked loader workers share them instead of copying
    them.

    source: where it was read from, for messages.
    image_ids: (N,) int64 (COCO) or str (VOC: the file stem). image_files: (N,) str, full paths.
    image_sizes: (N, 2) int32 (H, W) as the annotation states them (0 where it does not).
    offsets: (N + 1,) int64. boxes: (M, 4) float64 xyxy px, for the protocols' numbers; the model's
    float32 are made with a Target. labels: (M,) int64 1..K. areas: (M,) float64 px^2, COCO's `area`
    field where given, else the box area. ids: (M,) int64 annotation ids, unique. crowd, difficult:
    (M,) bool. Such objects are never trained on; each evaluation protocol ignores them by its own
    rule. dropped: reason -> how many records the box policy left out. sides: (M, 2) float64, widths
    and heights as the file gives them, None where it gives corners. notes: what else is to be said
    about the data, a line each. told_apart: whether the image ids were made, because several files
    or folders have some of the same; results, which refer to those of one, have none of them.
    """

    source: str
    class_map: ClassMap
    image_ids: np.ndarray
    image_files: np.ndarray
    image_sizes: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    ids: np.ndarray
    dropped: dict[str, int]
    sides: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    told_apart: bool = False
    without_truth: str | None = None

    def __post_init__(self) -> None:
        num_images, num_objects = len(self.image_ids), len(self.boxes)
        for name, want in (
            ("image_files", num_images),
            ("image_sizes", num_images),
            ("offsets", num_images + 1),
        ):
            if len(getattr(self, name)) != want:
                raise ValueError(
                    f"Annotations.{name} has {len(getattr(self, name))} rows, expected {want}"
                )
        for name in ("labels", "areas", "crowd", "difficult", "ids"):
            if len(getattr(self, name)) != num_objects:
                raise ValueError(
                    f"Annotations.{name} has {len(getattr(self, name))} rows, expected "
                    f"{num_objects}"
                )
        if self.boxes.shape != (num_objects, 4):
            raise ValueError(f"Annotations.boxes is {self.boxes.shape}, expected (M, 4)")
        for name in ("boxes", "areas"):
            if getattr(self, name).dtype != np.float64:
                raise ValueError(
                    f"Annotations.{name} is {getattr(self, name).dtype}, expected float64"
                )
        require_sides(self.boxes, self.sides, f"Annotations of {self.source}")
        if self.without_truth is not None and num_objects:
            raise ValueError(
                f"Annotations of {self.source}: {num_objects} objects, though they are not known"
            )

    def __len__(self) -> int:
        return len(self.image_ids)

    def __repr__(self) -> str:
        return (
            f"Annotations({self.source}: {len(self)} images, {self.num_objects} objects, "
            f"{self.class_map!r})"
        )

    @property
    def num_objects(self) -> int:
        """How many objects all images have together, crowds included: M."""
        return len(self.boxes)

    @property
    def class_indices(self) -> np.ndarray:
        """The class of every object, (M,) int64, as its index in `class_map`, 0..K-1."""
        return index_of(self.labels)

    def xywh(self) -> np.ndarray:
        """Return the boxes as COCO writes them, (M, 4) float64 x, y, width, height px, bit for bit
        as they were read.
        """
        return xywh_of(self.boxes, self.sides)

    def classes_shown(self) -> np.ndarray:
        """Return (N, K) bool: whether an image has an object of a class; K may be 0."""
        found = np.zeros((len(self), len(self.class_map)), bool)
        rows = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        found[rows, self.class_indices] = True
        return found

    def file_of(self, image_id: int | str) -> str:
        """Return the file of an image; of an id that no image has, the id."""
        (rows,) = np.nonzero(self.image_ids == image_id)
        return str(self.image_files[rows[0]] if len(rows) else image_id)

    def describe(self, said: Sequence[str] = ()) -> str:
        """Return one paragraph: where from, how many images, objects and classes, and what the box
        policy left out; then the notes but those that are `said` already, a line each.
        """
        counts = np.bincount(self.class_indices, minlength=len(self.class_map))
        shown = [
            f"{name} {count}"
            for name, count in zip(self.class_map.names, counts.tolist(), strict=True)
        ]
        empty = int((np.diff(self.offsets) == 0).sum())
        if self.without_truth is not None:
            unknown = f"their objects are not known: {self.without_truth}"
            parts = [f"{self.source}: {plural(len(self), 'image')}; {unknown}"]
        else:
            parts = [
                f"{self.source}: {plural(len(self), 'image')} ({empty} without objects), "
                f"{plural(self.num_objects, 'object')} of "
                f"{plural(len(self.class_map), 'class', 'classes')}: "
                + ", ".join(shown[:20] + (["..."] if len(shown) > 20 else []))
            ]
        flags = {"crowd": int(self.crowd.sum()), "difficult": int(self.difficult.sum())}
        parts += [f"{count} {flag}" for flag, count in flags.items() if count]
        parts += [f"{count} {reason}" for reason, count in self.dropped.items()]
        notes = [f"note: {note}" for note in self.notes if note not in said]
        return "\n".join(["; ".join(parts), *notes])

    def matched_to(self, class_map: ClassMap, theirs: str) -> Annotations:
        """Return the same data with the classes of `class_map`, told by their names, in its order;
        source ids stay those of these files. Classes that it lacks must have no object here and are
        left out; its gaps need not be here, and are then classes without objects, of free ids.

        theirs: where `class_map` is from, for messages. Raises ClassMismatchError where the names
        are otherwise not the same.
        """
        own = self.class_map
        if own == class_map:
            return self
        index_there = {name: index for index, name in enumerate(class_map.names)}
        new_index = np.array([index_there.get(name, -1) for name in own.names], np.int64)
        indices = new_index[self.class_indices]
        wanted = set(range(len(class_map))) - set(class_map.gaps)
        if not wanted <= set(new_index.tolist()) or (indices < 0).any():
            class_map.require_same(own, theirs, self.source)
        id_of = dict(zip(own.names, own.source_ids, strict=True))
        free = itertools.count(1 + max(own.source_ids, default=0))
        for gap in class_map.gaps:
            id_of.setdefault(class_map.names[gap], next(free))
        matched = ClassMap(class_map.names, tuple(id_of[name] for name in class_map.names))
        other = [
            f"{name} is {there} there and {here} here"
            for name, there, here in zip(
                matched.names, class_map.source_ids, matched.source_ids, strict=True
            )
            if there != here and name in own.names
        ]
        note = (
            f"{self.source} has the classes of {theirs} under other ids ({other[0]}): told by name"
            if other
            else None
        )
        notes = (*self.notes, note) if note else self.notes
        return replace(self, class_map=matched, labels=label_of(indices), notes=notes)

    def subset(self, images: np.ndarray, source: str) -> Annotations:
        """Return the same data of some images only, in the order given; notes and what was dropped
        stay those of the whole.

        images: (N',) int64, their rows here, each once; N' may be 0. source: what it is called.
        """
        counts = np.diff(self.offsets)[images]
        starts = np.repeat(self.offsets[images] - np.cumsum(counts) + counts, counts)
        objects = starts + np.arange(counts.sum())
        of_images = {name: getattr(self, name)[images] for name in _OF_IMAGES}
        of_objects = {name: getattr(self, name)[objects] for name in (*_OF_OBJECTS, "ids")}
        return replace(
            self,
            source=source,
            offsets=offsets_of(np.repeat(np.arange(len(images)), counts), len(images)),
            sides=None if self.sides is None else self.sides[objects],
            **of_images,
            **of_objects,
        )

    def with_objects(self, keep: np.ndarray) -> Annotations:
        """Return the same images with those of their objects only that `keep` (M,) bool says."""
        images = np.repeat(np.arange(len(self)), np.diff(self.offsets))[keep]
        return replace(
            self,
            offsets=offsets_of(images, len(self)),
            sides=None if self.sides is None else self.sides[keep],
            **{name: getattr(self, name)[keep] for name in (*_OF_OBJECTS, "ids")},
        )

    @classmethod
    def concatenate(cls, parts: list[Annotations]) -> Annotations:
        """Return several data sets with the same classes, told by name, as one with the ids of the
        first; one part is returned as it is. Where the objects of one are not known, those of the
        others are left out.

        Image ids that are in two of them become text, "SOURCE: ID"; annotation ids that collide are
        numbered anew. Raises ClassMismatchError when their classes differ, ValueError when an image
        file is in two of them.
        """
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        parts = [first, *(part.matched_to(first.class_map, first.source) for part in parts[1:])]
        files = np.concatenate([part.image_files for part in parts])
        unique, counts = np.unique(files, return_counts=True)
        if len(unique) < len(files):
            raise ValueError(
                f"image file {unique[counts > 1][0]} is in more than one of "
                f"{', '.join(part.source for part in parts)} ({int((counts > 1).sum())} such)"
            )
        image_ids, told_apart = _told_apart(parts)
        notes = [note for part in parts for note in part.notes]
        if told_apart:
            notes.append(
                f"image ids are told apart by their file: {len(parts)} files give some of the same"
            )
        without_truth = [part.without_truth for part in parts if part.without_truth is not None]
        if without_truth:
            parts = [part._without_objects(without_truth[0]) for part in parts]
        starts = np.cumsum([0] + [part.num_objects for part in parts])
        offsets = [part.offsets[1:] + start for part, start in zip(parts, starts[:-1], strict=True)]
        ids = np.concatenate([part.ids for part in parts])
        if len(np.unique(ids)) < len(ids):
            ids = np.arange(1, len(ids) + 1)
        dropped: dict[str, int] = {}
        for part in parts:
            for reason, count in part.dropped.items():
                dropped[reason] = dropped.get(reason, 0) + count
        rows = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("image_files", "image_sizes", *_OF_OBJECTS)
        }
        return cls(
            source=" + ".join(part.source for part in parts),
            class_map=parts[0].class_map,
            image_ids=image_ids,
            offsets=np.concatenate([np.zeros(1, np.int64), *offsets]),
            ids=ids,
            dropped=dropped,
            sides=np.concatenate([part.xywh()[:, 2:] for part in parts]),
            notes=tuple(notes),
            told_apart=told_apart,
            without_truth=without_truth[0] if without_truth else None,
            **rows,
        )

    def _without_objects(self, without_truth: str) -> Annotations:
        none = {name: getattr(self, name)[:0] for name in (*_OF_OBJECTS, "ids")}
        return replace(
            self,
            offsets=np.zeros_like(self.offsets),
            sides=None,
            dropped={},
            without_truth=without_truth,
            **none,
        )

    def num_shared_files(self, other: Annotations) -> int:
        """Return how many images of `other` are files that these are read from too, their folders
        by whatever links.
        """
        return len(self._real_files() & other._real_files())

    def _real_files(self) -> set[tuple[str, str]]:
        """(folder, name) of every image, links to folders followed."""
        parts = [os.path.split(file) for file in self.image_files.tolist()]
        real = {folder: os.path.realpath(folder) for folder in {folder for folder, _ in parts}}
        return {(real[folder], name) for folder, name in parts}

    def require_truth(self) -> None:
        """Raise NoTruthError where the objects are not known, so that nothing can be evaluated."""
        if self.without_truth is not None:
            raise NoTruthError(
                f"{self.source} cannot be evaluated, the objects in its images are not known: "
                f"{self.without_truth}"
            )

    def rows_of(self, predictions: Predictions) -> np.ndarray:
        """Return (D,) int64, the row here of each prediction's image; (0,) without predictions.

        Raises ClassMismatchError when the names of the classes differ, whose source ids may,
        ValueError when an image is not in this set or a box or score is not finite.
        """
        if self.class_map.names != predictions.class_map.names:
            self.class_map.require_same(predictions.class_map, self.source, "predictions")
        finite = np.isfinite(predictions.boxes).all(axis=1) & np.isfinite(predictions.scores)
        if not finite.all():
            row = int(np.flatnonzero(~finite)[0])
            raise ValueError(
                f"prediction {row}, image {predictions.image_ids[row]}: box "
                f"{predictions.boxes[row].tolist()} and score {predictions.scores[row]} must be "
                f"finite ({int((~finite).sum())} such)"
            )
        row_of = {image_id: row for row, image_id in enumerate(self.image_ids.tolist())}
        rows = np.array(
            [row_of.get(image_id, -1) for image_id in predictions.image_ids.tolist()], np.int64
        )
        if (rows < 0).any():
            raise ValueError(
                f"predictions for image {predictions.image_ids[rows < 0][0]}, which {self.source} "
                "does not have"
            )
        return rows

    def target(self, index: int) -> Target:
        """Return the Target of image `index`, boxes in the pixels of the image as read; (0, 4)
        boxes when it has none.
        """
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        image_id = self.image_ids[index]
        return Target(
            image_id=int(image_id) if isinstance(image_id, np.integer) else str(image_id),
            boxes=torch.from_numpy(self.boxes[rows].astype(np.float32)),
            labels=torch.from_numpy(self.labels[rows].astype(np.int64)),
            crowd=torch.from_numpy(self.crowd[rows].copy()),
            difficult=torch.from_numpy(self.difficult[rows].copy()),
        )


def _told_apart(parts: list[Annotations]) -> tuple[np.ndarray, bool]:
    """The image ids (N,) of several data sets as one, and whether they had to be told apart."""
    image_ids = np.concatenate([part.image_ids for part in parts])
    kinds = {part.image_ids.dtype.kind for part in parts}
    if len(kinds) == 1 and len(np.unique(image_ids)) == len(image_ids):
        return image_ids, False
    named = [f"{part.source}: {image_id}" for part in parts for image_id in part.image_ids.tolist()]
    return np.array(named, dtype=str), True

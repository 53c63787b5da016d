"""Image files that are wrong or doubtful: a Finding a kind. All but `without_objects` want parts
whose files were looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from detres.detection.data.box_policy import CLIP_TOLERANCE
from detres.detection.data.findings import Example, Finding, Kind, Part
from detres.images.look_alikes import same_pictures, similar_pictures

UNREADABLE = Kind(
    "unreadable",
    "error",
    "images that cannot be read",
    "Fetch or export them again, or leave them out: training ends at the first of them.",
)
WRONG_SIZE = Kind(
    "wrong_size",
    "error",
    "images of another size than the annotations say",
    "Correct the sizes, or give the pictures that the boxes were drawn on: boxes would be "
    "misplaced, so training refuses them.",
)
TURNED_BOXES = Kind(
    "exif_boxes",
    "error",
    "images whose boxes fit the pixels as stored, not the picture as EXIF turns it",
    "State the width and height of the pixels as stored in the annotations: without them the "
    "picture is taken upright.",
)
AS_STORED = Kind(
    "exif_stored",
    "warning",
    "images with an EXIF orientation whose labels follow the pixels as stored",
    "Training reads these unturned. New pictures are looked at upright: a copy with the boxes "
    "turned upright is safer.",
)
UNDECIDED = Kind(
    "exif_undecided",
    "warning",
    "images with an EXIF orientation where neither sizes nor boxes tell which way the labels are",
    "They are taken upright, as a viewer shows them: look whether their boxes lie right.",
)
UPRIGHT = Kind(
    "exif_upright",
    "note",
    "images with an EXIF orientation whose labels follow the picture upright",
    "Nothing: so they are read. Other tools may show them lying.",
)
WITHOUT_OBJECTS = Kind(
    "without_objects",
    "note",
    "images without objects",
    "Nothing, if they are meant as background; else label them.",
)
LEAK = Kind(
    "leak",
    "error",
    "pictures that an earlier split has too, pixel for pixel",
    "Take them out of one of the two: numbers on pictures that were learnt say nothing.",
)
NEAR_LEAK = Kind(
    "near_leak",
    "error",
    "pictures that an earlier split has a copy of (re-encoded, resized)",
    "Look at them; take copies out of one of the two: numbers on what was learnt say nothing.",
)
SAME = Kind(
    "same_picture",
    "warning",
    "pictures that are there twice in one split, pixel for pixel",
    "Keep one of each, with the labels of both looked at.",
)
NEARLY_SAME = Kind(
    "near_picture",
    "warning",
    "pictures that are copies of another of the split (re-encoded, resized)",
    "Look at them; keep one of each.",
)
ALIKE_ACROSS = Kind(
    "alike_across",
    "warning",
    "pictures that look much like one of an earlier split",
    "Frames of one scene? Keep those in one split: numbers on them say little of new scenes.",
)
ALIKE_WITHIN = Kind(
    "alike_within",
    "note",
    "pictures that look much like another of the split",
    "Frames of one scene teach little more than one of them.",
)


def unreadable(parts: Sequence[Part]) -> list[Finding]:
    """Return the files that no image can be read from."""
    rows = [np.flatnonzero(~part.survey.readable) for part in parts]

    def example(part: Part, image: int) -> Example:
        prefix = f"image file {part.annotations.image_files[image]} "
        return Example(part.file(image), part.survey.faults[image].removeprefix(prefix))

    return UNREADABLE.in_parts(parts, rows, example)


def misfitting(parts: Sequence[Part]) -> list[Finding]:
    """Return what sizes and EXIF orientations say against each other and the boxes."""
    sorted_out = [conventions(part) for part in parts]

    def size_example(part: Part, image: int) -> Example:
        height, width = part.annotations.image_sizes[image].tolist()
        real_height, real_width = part.survey.upright_sizes[image].tolist()
        exchanged = (height, width) == (real_width, real_height)
        hint = ": width and height are exchanged" if exchanged else ""
        what = f"the annotations say {width}x{height} px, the file is {real_width}x{real_height}"
        return Example(part.file(image), what + hint, (part.shown(image, _rows(part, image)),))

    found = []
    for kind in (WRONG_SIZE, TURNED_BOXES, AS_STORED, UNDECIDED, UPRIGHT):
        example = size_example if kind is WRONG_SIZE else _orientation_example
        found += kind.in_parts(parts, [rows[kind] for rows in sorted_out], example)
    return found


def conventions(part: Part) -> dict[Kind, np.ndarray]:
    """Return the rows of the images in each of the kinds that `misfitting` tells, (R,) int64; one
    without an orientation, and of the size that is stated, is in none.
    """
    survey, stated = part.survey, part.annotations.image_sizes
    known = (stated > 0).all(axis=1)
    fits_upright = (stated == survey.upright_sizes).all(axis=1)
    fits_stored = (stated == survey.sizes).all(axis=1)
    wrong = survey.readable & known & ~fits_upright & ~fits_stored
    turned = survey.readable & (survey.orientations != 1) & ~wrong
    told = known & (fits_upright != fits_stored)
    within_upright, within_stored = (
        _all_within(part, sizes) for sizes in (survey.upright_sizes, survey.sizes)
    )
    by_boxes = turned & ~told & (within_upright != within_stored)
    return {
        WRONG_SIZE: np.flatnonzero(wrong),
        TURNED_BOXES: np.flatnonzero(by_boxes & within_stored),
        AS_STORED: np.flatnonzero(turned & told & fits_stored),
        UNDECIDED: np.flatnonzero(turned & ~told & ~by_boxes),
        UPRIGHT: np.flatnonzero(turned & (told & fits_upright | by_boxes & within_upright)),
    }


def _all_within(part: Part, sizes: np.ndarray) -> np.ndarray:
    """Which images, were they of `sizes` (N, 2) (h, w) px, hold all their boxes, (N,) bool."""
    beyond = part.annotations.boxes[:, 2:] > sizes[part.images][:, ::-1] + CLIP_TOLERANCE
    within = np.ones(len(sizes), bool)
    within[part.images[beyond.any(axis=1)]] = False
    return within


def _orientation_example(part: Part, image: int) -> Example:
    what = f"EXIF orientation {part.survey.orientations[image]}"
    return Example(part.file(image), what, (part.shown(image, _rows(part, image)),))


def without_objects(parts: Sequence[Part]) -> list[Finding]:
    """Return the images without a box; none where the objects are not known."""
    rows = [
        np.flatnonzero(np.diff(part.annotations.offsets) == 0)
        if part.annotations.without_truth is None
        else np.zeros(0, np.int64)
        for part in parts
    ]
    return WITHOUT_OBJECTS.in_parts(
        parts, rows, lambda part, image: Example(part.file(image), "", (part.shown(image),))
    )


def seen_twice(parts: Sequence[Part]) -> list[Finding]:
    """Return the pictures that are there more than once, across splits and within one."""
    places = _places(parts)
    exact, copies, alike = _alike(places)
    kinds = ((exact, LEAK, SAME), (copies, NEAR_LEAK, NEARLY_SAME))
    kinds = (*kinds, (alike, ALIKE_ACROSS, ALIKE_WITHIN))
    found, told = [], {True: set(), False: set()}
    for pairs, across, within in kinds:
        for kind, other_split in ((across, True), (within, False)):
            of_kind = pairs[_other_split(pairs, places) == other_split]
            # the first of the pairs of each picture, which are sorted
            seconds, rows = np.unique(of_kind[:, 1], return_index=True)
            first_like = dict(zip(seconds.tolist(), of_kind[rows, 0].tolist(), strict=True))
            first_like = {
                row: first for row, first in first_like.items() if row not in told[other_split]
            }
            told[other_split] |= first_like.keys()
            found += kind.of(len(first_like), _pairs(first_like, places))
    return found


def copies_of_later(parts: Sequence[Part]) -> list[np.ndarray]:
    """Return which images of each part, (N,) bool, a later one has too, pixel for pixel or as a
    copy.
    """
    places = _places(parts)
    marks = {part.name: np.zeros(len(part.annotations), bool) for part in parts}
    exact, copies, _ = _alike(places)
    for pairs in (exact, copies):
        for row in np.unique(pairs[_other_split(pairs, places), 0]).tolist():
            part, image = places[row]
            marks[part.name][image] = True
    return list(marks.values())


_Place = tuple[Part, int]
"""A readable image: its part, and its row there."""


def _places(parts: Sequence[Part]) -> list[_Place]:
    return [
        (part, image) for part in parts for image in np.flatnonzero(part.survey.readable).tolist()
    ]


def _other_split(pairs: np.ndarray, places: Sequence[_Place]) -> np.ndarray:
    """Which pairs (P, 2) of places are of two parts, (P,) bool."""
    names = np.array([part.name for part, _ in places])
    return names[pairs[:, 0]] != names[pairs[:, 1]]


def _alike(places: Sequence[_Place]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The rows a < b of places with the same picture pixel for pixel, with copies of one, and with
    pictures that look alike, (P, 2) int64 each, sorted by b and then a.

    Of many equal pictures, each is in a pair with the first and with the last of them.
    """
    prints = [part.survey.prints[image] for part, image in places]
    if not prints:
        return (np.zeros((0, 2), np.int64),) * 3
    rows = np.arange(len(prints))
    first = same_pictures([each.digest for each in prints])
    last = first.copy()
    last[first] = rows  # of the rows with the same first one, the last is kept
    exact = np.concatenate((np.stack((first, rows), 1), np.stack((rows, last[first]), 1)))
    exact = exact[exact[:, 0] < exact[:, 1]]
    similar, are_copies = similar_pictures(
        np.stack([each.hash for each in prints]), np.stack([each.small for each in prints])
    )
    others = first[similar[:, 0]] != first[similar[:, 1]]
    copies, alike = similar[others & are_copies], similar[others & ~are_copies]
    return _sorted(exact), _sorted(copies), _sorted(alike)


def _sorted(pairs: np.ndarray) -> np.ndarray:
    return pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]


def _pairs(first_like: dict[int, int], places: Sequence[_Place]) -> Iterator[Example]:
    """An example for the row of each picture -> that of the first like it."""
    for row, first in first_like.items():
        (part, image), (other, original) = places[row], places[first]
        pictures = part.shown(image), other.shown(original)
        yield Example(part.file(image), f"beside {other.file(original)}", pictures)


def _rows(part: Part, image: int) -> list[int]:
    start, end = part.annotations.offsets[image : image + 2].tolist()
    return list(range(start, end))

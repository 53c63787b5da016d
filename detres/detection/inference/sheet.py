"""A sheet of held-out pictures: what is in them beside what was found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw

from detres.console import one_line, printable
from detres.detection.annotations import Annotations
from detres.detection.evaluation.curves import Outcome
from detres.detection.evaluation.matches import owners_of
from detres.detection.inference.pictures import captions_of, write_jpeg
from detres.detection.structures import Predictions, names_of
from detres.images.decode import read_image
from detres.images.draw import Color, Line, Mark, draw_marks, font_of

WORST, DRAWN = 6, 6
"""Pictures with the most mistakes on a sheet, and pictures drawn by seed beside them."""

CAPTIONED = 24
"""Boxes of a picture of which all have captions; of more the mistakes alone."""

PANEL = 440
"""Px that a picture's longer side gets; every picture stands on the sheet twice."""

_LEAST_HEIGHT = 120
_PAIRS = 2  # in a row
_GAP, _BETWEEN = 20, 6
_LETTERS, _TITLE_LETTERS = 13, 19
_WIDTH = 2  # of lines
_WHITE, _GREY, _BLACK = (255, 255, 255), (225, 225, 225), (0, 0, 0)

_Look = tuple[Color, Line]
_RIGHT: _Look = ((86, 190, 240), "solid")
_WRONG: _Look = ((240, 80, 20), "dashed")
_MISSED: _Look = ((250, 225, 40), "dash-dotted")
_IGNORED: _Look = ((190, 190, 190), "dotted")
_LEGEND = (
    (_RIGHT, "found, and right"),
    (_WRONG, "found, and wrong"),
    (_MISSED, "missed"),
    (_IGNORED, "ignored: neither right nor wrong"),
)


def write_sheet(
    path: Path,
    truth: Annotations,
    predictions: Predictions,
    outcome: Outcome,
    *,
    seed: int = 0,
) -> None:
    """Draw held-out images into one JPEG file, each twice: its objects on the left, and what was
    found on the right, from the scores on that `outcome` goes by.

    First the WORST images, by the number of their mistakes (wrong detections and missed objects; of
    equals those with the higher scores of wrong ones), then DRAWN of the others that `seed` draws.
    An image without a mistake is not among the worst. No image: the legend alone. Raises
    ImageReadError naming an image that cannot be read.
    """
    worst = worst_images(truth, predictions, outcome)[:WORST]
    others = np.setdiff1d(np.arange(len(truth)), worst)
    number = min(DRAWN, len(others))
    drawn = np.sort(np.random.default_rng(seed).choice(others, number, replace=False))
    scene = _Scene(truth, predictions, outcome)
    mistakes = "No image has a mistake" if len(worst) == 0 else "The most mistakes"
    parts = [_legend(), _title(f"{mistakes} (wrong detections and missed objects)")]
    parts += scene.rows(worst)
    if number:
        parts += [_title(f"Drawn from the others (seed {seed})"), *scene.rows(drawn)]
    write_jpeg(path, np.concatenate(parts))


def worst_images(truth: Annotations, predictions: Predictions, outcome: Outcome) -> np.ndarray:
    """Return the rows (W,) int64 of the images with a mistake, those with the most first; of equals
    those whose wrong detections have the higher scores together, then as annotated.
    """
    owners = truth.rows_of(predictions)[outcome.wrong]
    wrong = np.bincount(owners, minlength=len(truth))
    scores = np.bincount(owners, predictions.scores[outcome.wrong], minlength=len(truth))
    mistakes = wrong + np.bincount(owners_of(truth)[outcome.missed], minlength=len(truth))
    order = np.lexsort((-scores, -mistakes))
    return order[mistakes[order] > 0]


class _Scene:
    """Draws images of a data set with what is in them and what was found."""

    def __init__(self, truth: Annotations, predictions: Predictions, outcome: Outcome) -> None:
        self.truth, self.predictions, self.outcome = truth, predictions, outcome
        self.owners = truth.rows_of(predictions)

    def rows(self, images: np.ndarray) -> list[np.ndarray]:
        """Return images in rows of _PAIRS, each row (h, w, 3) as wide as the sheet."""
        return [
            self._row(images[start : start + _PAIRS].tolist())
            for start in range(0, len(images), _PAIRS)
        ]

    def _row(self, images: list[int]) -> np.ndarray:
        pictures = [self._scaled(index) for index in images]
        height = max(_LEAST_HEIGHT, *(picture.shape[0] for picture, _ in pictures))
        blank = np.full((height + 3 * _line_height(), _GAP, 3), 255, np.uint8)
        parts = [blank]
        for index, (picture, scale) in zip(images, pictures, strict=True):
            left, right = self._pair(index, picture, scale, height)
            parts += [left, blank[:, :_BETWEEN], right, blank]
        return _widened(np.concatenate(parts, axis=1))

    def _scaled(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """An image at the size it has on the sheet, and (4,) what takes its boxes there."""
        height, width = self.truth.image_sizes[index].tolist()
        image = read_image(str(self.truth.image_files[index]), stated_size=(height, width))
        height, width = image.shape[:2]
        scale = PANEL / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        shrinks = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        factor = np.tile((size[0] / width, size[1] / height), 2)
        return cv2.resize(image, size, interpolation=shrinks), factor

    def _pair(
        self, index: int, picture: np.ndarray, scale: np.ndarray, height: int
    ) -> list[np.ndarray]:
        objects = np.arange(*self.truth.offsets[index : index + 2])
        missed = int(self.outcome.missed[objects].sum())
        found = np.flatnonzero((self.owners == index) & self.outcome.taken)
        found = found[np.argsort(-self.predictions.scores[found], kind="stable")]
        wrong = int(self.outcome.wrong[found].sum())
        name = Path(str(self.truth.image_files[index])).name
        left = [name, f"objects: {len(objects)}, {missed} missed"]
        right = ["", f"detections: {len(found)}, {wrong} wrong"]
        return [
            _panel(picture, scale, height, marks, lines)
            for marks, lines in (
                (self._marks_of_objects(objects), left),
                (self._marks_of_detections(found), right),
            )
        ]

    def _marks_of_objects(self, rows: np.ndarray) -> list[Mark]:
        names = names_of(self.truth.class_map, self.truth.labels[rows])
        states = (self.outcome.found[rows], self.outcome.missed[rows])
        looks = _looks(states, (_RIGHT, _MISSED))
        return _sorted_marks(self.truth.boxes[rows], names, looks)

    def _marks_of_detections(self, rows: np.ndarray) -> list[Mark]:
        found = self.predictions
        captions = captions_of(self.truth.class_map, found.labels[rows], found.scores[rows])
        states = (self.outcome.right[rows], self.outcome.wrong[rows])
        return _sorted_marks(found.boxes[rows], captions, _looks(states, (_RIGHT, _WRONG)))


def _looks(states: tuple[np.ndarray, np.ndarray], looks: tuple[_Look, _Look]) -> list[_Look]:
    """How each of several boxes looks, by which of two states it is in; in neither: ignored."""
    return [
        looks[0] if first else looks[1] if second else _IGNORED
        for first, second in zip(*(state.tolist() for state in states), strict=True)
    ]


def _sorted_marks(boxes: np.ndarray, captions: list[str], looks: list[_Look]) -> list[Mark]:
    """Marks of boxes (B, 4), mistakes first: their captions are needed, and stay on top; where
    there are more than CAPTIONED boxes, they are the only ones.
    """
    marks = []
    for box, caption, (color, line) in zip(boxes, captions, looks, strict=True):
        mistake = (color, line) in (_WRONG, _MISSED)
        shown = caption if mistake or len(boxes) <= CAPTIONED else ""
        marks.append(Mark(box, color, shown, line, needed=mistake))
    return sorted(marks, key=lambda mark: not mark.needed)


def _panel(
    picture: np.ndarray,
    scale: np.ndarray,
    height: int,
    marks: list[Mark],
    lines: Sequence[str],
) -> np.ndarray:
    """A picture in the middle of (height, PANEL) with its marks, below two lines of text."""
    panel = np.full((height, PANEL, 3), _GREY, np.uint8)
    y, x = (height - picture.shape[0]) // 2, (PANEL - picture.shape[1]) // 2
    panel[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
    moved = [
        Mark(mark.box * scale + (x, y, x, y), mark.color, mark.caption, mark.line, mark.needed)
        for mark in marks
    ]
    panel = draw_marks(panel, moved, letters=_LETTERS, width=_WIDTH)
    head = _text(lines, _LETTERS, PANEL, 2 * _line_height())
    foot = np.full((_line_height(), PANEL, 3), 255, np.uint8)
    return np.concatenate((head, panel, foot))


def _line_height() -> int:
    return round(1.4 * _LETTERS)


def _text(lines: Sequence[str], letters: int, width: int, height: int) -> np.ndarray:
    """Lines of black text on white (height, width), cut in their middle where they are longer."""
    image = Image.new("RGB", (width, height), _WHITE)
    drawing, font = ImageDraw.Draw(image), font_of(letters)
    for place, line in enumerate(lines):
        text = printable(one_line(line))
        while font.getlength(text) > width:
            half = (len(text) - 2) // 2
            text = f"{text[:half]}\N{HORIZONTAL ELLIPSIS}{text[-half:]}"
        drawing.text((0, place * height // len(lines)), text, fill=_BLACK, font=font)
    return np.array(image)


def _sheet_width() -> int:
    return _GAP + _PAIRS * (2 * PANEL + _BETWEEN + _GAP)


def _widened(part: np.ndarray) -> np.ndarray:
    blank = np.full((part.shape[0], _sheet_width() - part.shape[1], 3), 255, np.uint8)
    return np.concatenate((part, blank), axis=1)


def _title(text: str) -> np.ndarray:
    height = 2 * _TITLE_LETTERS
    blank = np.full((height, _GAP, 3), 255, np.uint8)
    width = _sheet_width() - _GAP
    return np.concatenate((blank, _text([text], _TITLE_LETTERS, width, height)), axis=1)


def _legend() -> np.ndarray:
    """A box and a caption of each kind, and what is where."""
    height, sample, letters = 64, 46, _TITLE_LETTERS - 3
    legend = np.full((height, _sheet_width(), 3), 255, np.uint8)
    texts, x = [], _GAP
    font = font_of(letters)
    for (color, line), text in _LEGEND:
        box = np.array((x, 16, x + sample, 46))
        legend = draw_marks(legend, [Mark(box, color, "", line)], letters=letters, width=_WIDTH)
        texts.append((x + sample + _GAP, text))
        x += sample + 3 * _GAP + round(font.getlength(text))
    texts.append((x + _GAP, "left: the objects, right: what was found"))
    image = Image.fromarray(legend)
    drawing = ImageDraw.Draw(image)
    for x, text in texts:
        drawing.text((x, 22), text, fill=_BLACK, font=font)
    return np.array(image)

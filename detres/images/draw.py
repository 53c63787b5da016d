"""Pictures: boxes with names and scores drawn on images."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from detres.console import one_line, printable

Color = tuple[int, int, int]
"""RGB, 0..255."""

Line = Literal["solid", "dashed", "dash-dotted", "dotted"]

_DASHES = {"dashed": (8, 5), "dash-dotted": (9, 3, 2, 3), "dotted": (2, 3)}
"""Style of a line -> lengths of its strokes and gaps in turn, px at a width of 2."""

_DARK = (20, 20, 20)
_SMALLEST_LETTERS = 11
_LARGEST_LETTERS = 64


@dataclass(frozen=True)
class Mark:
    """A box to be drawn: (4,) xyxy px, colour, caption ("": none), style of line.

    needed: whether its caption is drawn even where there is no free place for it.
    """

    box: np.ndarray
    color: Color
    caption: str
    line: Line = "solid"
    needed: bool = True


def class_color(label: int) -> Color:
    """Return the RGB colour 0..255 of a label; neighbouring labels get distant hues."""
    return tuple(
        round(255 * value) for value in colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.85, 1.0)
    )


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, labels: Sequence[int], captions: Sequence[str]
) -> np.ndarray:
    """Return a copy of `image` (H, W, 3) uint8 RGB with boxes (D, 4) xyxy px, coloured by label,
    and their captions.

    Given best first, the best is drawn last and stays on top. Lines and letters grow with the
    image.
    """
    marks = [
        Mark(box, class_color(label), caption)
        for box, label, caption in zip(boxes, labels, captions, strict=True)
    ]
    shorter = min(image.shape[:2])
    letters = min(max(round(shorter / 28), _SMALLEST_LETTERS), _LARGEST_LETTERS)
    return draw_marks(image, marks, letters=letters, width=max(1, round(shorter / 300)))


def draw_marks(image: np.ndarray, marks: Sequence[Mark], *, letters: int, width: int) -> np.ndarray:
    """Return a copy of `image` (H, W, 3) uint8 RGB with boxes and their captions.

    letters: px of their height. width: px of the lines. Given in falling importance: the first is
    drawn last and has the first choice of a place for its caption. Lines have a dark edge and
    captions a ground of their colour, so that they show on any picture. A caption stands at its
    box, over no other where there is such a place; where there is none it overlaps as little as
    can be, and is left out unless it is needed. The font has Latin, Greek, Cyrillic and Arabic
    letters; others are drawn as a box.
    """
    image = np.ascontiguousarray(image).copy()
    for mark in reversed(marks):
        _draw_box(image, mark, width)
    shown = [mark for mark in marks if mark.caption]
    font = font_of(letters)
    pad = max(1, letters // 6)
    texts = [printable(one_line(mark.caption)) for mark in shown]
    height = sum(font.getmetrics()) + pad
    sizes = [(round(font.getlength(text)) + 2 * pad, height) for text in texts]
    places = _places(image.shape[:2], shown, sizes)
    picture = Image.fromarray(image)
    drawing = ImageDraw.Draw(picture)
    for mark, text, (w, h), place in reversed(list(zip(shown, texts, sizes, places, strict=True))):
        if place is not None:
            x, y = place
            drawing.rectangle((x, y, x + w - 1, y + h - 1), fill=mark.color)
            drawing.text((x + pad, y + pad // 2), text, fill=text_color(mark.color), font=font)
    return np.array(picture)


@lru_cache(maxsize=8)
def font_of(letters: int) -> ImageFont.FreeTypeFont:
    """Return the font of pictures at a size in px; it comes with matplotlib."""
    file = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(file), letters)


def text_color(ground: Color) -> Color:
    """Return black or white, whichever has more contrast to `ground` (WCAG 2.2, contrast ratio)."""
    linear = ((np.array(ground) / 255 + 0.055) / 1.055) ** 2.4
    luminance = linear @ (0.2126, 0.7152, 0.0722)
    black, white = (luminance + 0.05) / 0.05, 1.05 / (luminance + 0.05)
    return (0, 0, 0) if black > white else (255, 255, 255)


def _draw_box(image: np.ndarray, mark: Mark, width: int) -> None:
    beyond = 4 * width  # where a line is not seen any more
    high = np.tile(image.shape[1::-1], 2) + beyond
    x1, y1, x2, y2 = np.rint(np.clip(mark.box, -beyond, high)).astype(int).tolist()
    corners = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
    sides = [
        stroke
        for start, end in zip(corners, corners[1:] + corners[:1], strict=True)
        for stroke in _strokes(start, end, mark.line, width)
    ]
    for color, thickness in ((_DARK, width + 2), (mark.color, width)):
        for start, end in sides:
            cv2.line(image, start, end, color, thickness)


def _strokes(
    start: tuple[int, int], end: tuple[int, int], line: Line, width: int
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """The strokes of a line that is level or upright, each with its two ends."""
    if line == "solid":
        yield start, end
        return
    dashes = [max(1, length * max(width, 2) // 2) for length in _DASHES[line]]
    (x1, y1), (x2, y2) = start, end
    length = max(abs(x2 - x1), abs(y2 - y1))
    at, place = 0, 0
    while at <= length and length:
        until = min(at + dashes[place % len(dashes)], length)
        if place % 2 == 0:
            yield tuple(
                (round(x1 + (x2 - x1) * t / length), round(y1 + (y2 - y1) * t / length))
                for t in (at, until)
            )
        at, place = at + dashes[place % len(dashes)], place + 1


def _places(
    size: tuple[int, int], marks: Sequence[Mark], sizes: Sequence[tuple[int, int]]
) -> list[tuple[int, int] | None]:
    """Where the caption of each mark stands, x and y of its top left corner; None: nowhere.

    size: (h, w) of the image. sizes: (w, h) of the captions.
    """
    places: list[tuple[int, int] | None] = []
    taken = np.zeros((0, 4))
    for mark, (w, h) in zip(marks, sizes, strict=True):
        around = _around(mark.box, w, h, size)  # (C, 2)
        rectangles = np.concatenate((around, around + np.array((w, h))), axis=1)
        overlap = _overlaps(rectangles, taken)  # (C,)
        best = int(np.argmin(overlap))  # of equals the first
        if overlap[best] > 0 and not mark.needed:
            places.append(None)
            continue
        places.append(tuple(around[best].tolist()))
        taken = np.concatenate((taken, rectangles[best : best + 1]))
    return places


def _around(box: np.ndarray, w: int, h: int, size: tuple[int, int]) -> np.ndarray:
    """Places (C, 2) for a caption of (w, h) at a box, the best first: above it, below, inside,
    beside, then a line higher and lower than these; moved into the image where they leave it.
    """
    x1, y1, x2, y2 = np.rint(box).astype(int).tolist()
    places = np.array(
        [
            *((x1, y1 - h), (x2 - w, y1 - h), (x1, y2), (x2 - w, y2)),
            *((x1, y1), (x2 - w, y2 - h), (x1, y2 - h), (x2 - w, y1)),
            *((x2, y1), (x1 - w, y1), (x2, y2 - h), (x1 - w, y2 - h)),
        ]
    )
    places = np.concatenate((places, places - np.array((0, h)), places + np.array((0, h))))
    inside = np.clip(places, 0, np.maximum(np.array(size[::-1]) - (w, h), 0))
    moved = (inside != places).any(axis=1)
    return inside[np.argsort(moved, kind="stable")]


def _overlaps(rectangles: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The area (C,) that each of rectangles (C, 4) has in common with others (T, 4), summed."""
    low = np.maximum(rectangles[:, None, :2], others[None, :, :2])
    high = np.minimum(rectangles[:, None, 2:], others[None, :, 2:])
    return (high - low).clip(min=0).prod(axis=2).sum(axis=1)

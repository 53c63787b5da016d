"""What a look at a data set found, as a page."""

from __future__ import annotations

import numpy as np

from detres.detection.data.audit import Audit, SplitSummary
from detres.detection.data.findings import Example, Finding, Shown
from detres.images.decode import ImageReadError, read_image
from detres.images.draw import draw_boxes
from detres.report.html import Html, bar, columns, element, figure, joined, page, table
from detres.report.thumbnail import thumbnail

_DRAWN = 6
"""Examples of a finding with pictures; the others are listed."""

_WRITTEN = 20
"""Examples of a finding without pictures, in one paragraph; the others are listed."""

_SIDES = (0, 8, 16, 32, 64, 128, 256, 512)
"""Px, where the columns of box sizes begin."""


def data_page(audit: Audit) -> str:
    """Return the page, a file's text; the images of its examples are read.

    An image that cannot be read is left out of it.
    """
    return page(
        f"Data check: {audit.verdict()}",
        element("p", f"Files are named from {audit.base}", class_="soft"),
        _splits(audit),
        *(_finding(finding) for finding in audit.findings),
        *(_of_splits(audit) if audit.splits else ()),
    )


def _of_splits(audit: Audit) -> list[Html]:
    """What the data are, right or wrong."""
    parts = [element("h2", "Classes"), _classes(audit), element("h2", "Sizes")]
    scale = (
        f"At the training scale: short side {audit.scale[0]} px, long side at most "
        f"{audit.scale[1]} px."
    )
    parts.append(element("p", scale, class_="soft"))
    parts += [_sizes(name, split) for name, split in audit.splits.items()]
    cards = [
        figure(str(sample), drawn, alt=sample.what)
        for sample in audit.samples
        for shown in sample.pictures
        if (drawn := _with_names(shown)) is not None
    ]
    if cards:
        parts += [element("h2", "Some of the pictures"), element("div", *cards, class_="cards")]
    return parts


def _splits(audit: Audit) -> Html:
    if not audit.splits:
        return joined(())
    rows = [
        (name, split.images, split.without_objects, split.objects, split.source)
        for name, split in audit.splits.items()
    ]
    return table(("split", "images", "without objects", "boxes", "from"), rows)


def _finding(finding: Finding) -> Html:
    heading = element(
        "h2",
        element("span", finding.level, class_=finding.level),
        f" ({finding.count}): {finding.title}",
    )
    parts = [heading, element("p", finding.advice)]
    if any(example.pictures for example in finding.examples):
        shown = _DRAWN
        cards = [_card(example) for example in finding.examples[:shown]]
        parts.append(element("div", *cards, class_="cards"))
    else:
        shown = _WRITTEN
        written = "; ".join(map(str, finding.examples[:shown]))
        parts.append(element("p", written, class_="soft"))
    others = finding.examples[shown:]
    if others:
        unlisted = finding.count - shown - len(others)
        more = f", and {unlisted} more" if unlisted > 0 else ""
        summary = element("summary", f"{len(others)} more in a list{more}")
        items = [element("li", str(example)) for example in others]
        parts.append(element("details", summary, element("ul", *items)))
    return element("section", *parts)


def _card(example: Example) -> Html:
    pictures = [drawn for shown in example.pictures if (drawn := _drawn(shown)) is not None]
    names = dict.fromkeys(name for shown in example.pictures for name in shown.names)
    return figure(str(example), *pictures, alt=", ".join(names) or example.where)


def _drawn(shown: Shown) -> np.ndarray | None:
    """The picture with its boxes as training would lay them; None where it cannot be read."""
    image = _read(shown)
    return None if image is None else thumbnail(image, shown.boxes)


def _with_names(shown: Shown) -> np.ndarray | None:
    """The picture with its boxes in the colours of their classes, and their names; None where it
    cannot be read.
    """
    image = _read(shown)
    if image is None:
        return None
    usable = np.isfinite(shown.boxes).all(axis=1)
    small = thumbnail(image, np.zeros((0, 4)))
    factors = np.tile(np.array(small.shape[1::-1]) / image.shape[1::-1], 2)
    names = [name for name, fits in zip(shown.names, usable, strict=True) if fits]
    known = sorted(set(names))
    labels = [known.index(name) for name in names]
    return draw_boxes(small, shown.boxes[usable] * factors, labels, names)


def _read(shown: Shown) -> np.ndarray | None:
    """The image; None where it cannot be read."""
    try:
        return read_image(shown.file, shown.size)
    except ImageReadError:
        return None
    except ValueError:  # of another size than stated, which is what is to be seen
        return read_image(shown.file)


def _classes(audit: Audit) -> Html:
    """How many objects to learn from each class has in each split, the commonest first."""
    of_splits = [split.class_counts for split in audit.splits.values()]
    names = dict.fromkeys(name for counts in of_splits for name in counts)
    first = of_splits[0]
    most = max(first.values(), default=0) or 1
    rows = [
        (name, *(counts.get(name, 0) for counts in of_splits), bar(first.get(name, 0) / most))
        for name in sorted(names, key=lambda name: -first.get(name, 0))
    ]
    return table(("class", *audit.splits, ""), rows)


def _sizes(name: str, split: SplitSummary) -> Html:
    edges = (*_SIDES, np.inf)
    of_boxes = np.histogram(split.sides, edges)[0].tolist()
    labels = [f"<{_SIDES[1]}", *(str(side) for side in _SIDES[1:])]
    known, counts = np.unique(split.image_sizes, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:8]
    rows = [
        (f"{width}x{height} px" if height else "not known", count)
        for (height, width), count in zip(
            known[order].tolist(), counts[order].tolist(), strict=True
        )
    ]
    title = f"{name}: square root of the area of a box, px from"
    sizes = table((f"{name}: image size ({len(known)} different)", "images"), rows)
    return joined((columns(title, dict(zip(labels, of_boxes, strict=True))), sizes))

"""What a look at a data set found, as a page."""

from __future__ import annotations

import numpy as np

from detres.detection.data.audit import Audit, SplitSummary
from detres.detection.data.findings import Example, Finding, Shown
from detres.images.decode import ImageReadError, read_image
from detres.report.html import Html, bar, columns, element, figure, joined, page, table
from detres.report.thumbnail import thumbnail

_DRAWN = 6
"""Examples of a finding with pictures; the others are listed."""

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
        element("h2", "Classes"),
        _classes(audit),
        element("h2", "Sizes"),
        element(
            "p",
            f"At the training scale: short side {audit.scale[0]} px, long side at most "
            f"{audit.scale[1]} px.",
            class_="soft",
        ),
        *(_sizes(name, split) for name, split in audit.splits.items()),
    )


def _splits(audit: Audit) -> Html:
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
    cards = [_card(example) for example in finding.examples[:_DRAWN]]
    parts = [heading, element("p", finding.advice), element("div", *cards, class_="cards")]
    others = finding.examples[_DRAWN:]
    if others:
        unlisted = finding.count - _DRAWN - len(others)
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
    try:
        image = read_image(shown.file, shown.size)
    except ImageReadError:
        return None
    except ValueError:  # of another size than stated, which is what is to be seen
        image = read_image(shown.file)
    return thumbnail(image, shown.boxes)


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

"""What pages are made of: one HTML file that asks for nothing else, neither network nor script, and
is read on a phone as on a desk, by day and by night.

Text is escaped wherever it comes in: what is not Html already is text.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np

from detres.console import printable

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2024;--soft:#5b6570;--paper:#fff;--card:#f4f6f8;
--line:#d5dbe1;--bar:#3b78c2;--error:#b3261e;--warning:#8a5a00;--note:#2f6b3a}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#9aa5b1;--paper:#14171a;--card:#1e2328;
--line:#39424b;--bar:#6ba4e7;--error:#ff8a80;--warning:#f0b849;--note:#7fc98b}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:72rem;background:var(--paper);color:var(--ink);
font:16px/1.45 system-ui,sans-serif;overflow-wrap:anywhere}
h1{font-size:1.5rem;line-height:1.2;margin:.2rem 0 .6rem}
h2{font-size:1.15rem;line-height:1.3;margin:2rem 0 .5rem}
h3{font-size:1rem;margin:1.2rem 0 .3rem}
p{margin:.3rem 0}
.soft,figcaption,summary{color:var(--soft);font-size:.875rem}
.error{color:var(--error)}.warning{color:var(--warning)}.note{color:var(--note)}
.cards{display:grid;gap:.75rem;margin:.6rem 0;
grid-template-columns:repeat(auto-fill,minmax(min(100%,17rem),1fr))}
figure{margin:0;padding:.5rem;background:var(--card);border:1px solid var(--line);
border-radius:.4rem}
figure img{display:block;max-width:100%;height:auto;margin:0 auto .4rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;overflow-wrap:normal}
th,td{text-align:left;vertical-align:top;padding:.25rem .75rem .25rem 0;
border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums}
th{font-weight:600;white-space:nowrap}
td:last-child{min-width:8rem}
svg{display:block;width:100%;max-width:32rem;height:auto}
svg text{font:11px system-ui,sans-serif;fill:var(--ink)}
svg rect{fill:var(--bar)}
ul{padding-left:1.2rem;margin:.4rem 0;font-size:.875rem}
"""

# Whatever a page holds, a browser asks nobody for anything.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

_JPEG_QUALITY = 82

_WIDTH, _HEIGHT, _FOOT, _HEAD = 360, 150, 16, 14
"""Px of a column chart, of the labels below the columns and of the numbers above."""


class Html(str):
    """Markup, in which text is escaped."""


def markup(value: object) -> Html:
    """Return Html as it is, and anything else as its text, escaped."""
    return value if isinstance(value, Html) else Html(html.escape(printable(str(value))))


def element(tag: str, *children: object, **attributes: str) -> Html:
    """Return an element with these children, Html or text; attributes are by their names, `class_`
    for class.
    """
    given = "".join(f' {name.rstrip("_")}="{markup(value)}"' for name, value in attributes.items())
    return Html(f"<{tag}{given}>{''.join(map(markup, children))}</{tag}>")


def joined(children: Iterable[object]) -> Html:
    """Return children, Html or text, one behind the other."""
    return Html("".join(map(markup, children)))


def page(title: str, *children: object) -> str:
    """Return a whole page, a file's text."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{markup(title)}</title><style>{_STYLE}</style></head>"
        f"<body>{element('h1', title)}{joined(children)}</body></html>\n"
    )


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """Return a table of cells, Html or text, which scrolls by itself where the screen is narrow."""
    lines = [element("tr", *(element("td", cell) for cell in row)) for row in rows]
    top = element("tr", *(element("th", cell) for cell in head))
    return element(
        "div", element("table", element("thead", top), element("tbody", *lines)), class_="wide"
    )


def figure(caption: object, *pictures: np.ndarray, alt: str) -> Html:
    """Return pictures (H, W, 3) uint8 RGB, which become part of the page, over a caption.

    alt: what stands for them where they are not seen. No pictures: the caption alone.
    """
    images = [_image(picture, alt) for picture in pictures]
    return element("figure", *images, element("figcaption", caption))


def _image(picture: np.ndarray, alt: str) -> Html:
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    data = cv2.imencode(".jpg", picture[:, :, ::-1], quality)[1].tobytes()
    source = f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"
    height, width = picture.shape[:2]
    return Html(f'<img src="{source}" alt="{markup(alt)}" width="{width}" height="{height}">')


def columns(title: str, counts: Mapping[str, int]) -> Html:
    """Return a column chart, name -> number of at least 0, in the order given; for up to about
    twelve short names.
    """
    most, step = max(counts.values(), default=0), _WIDTH / max(len(counts), 1)
    shapes = []
    for number, (name, count) in enumerate(counts.items()):
        middle = f"{(number + 0.5) * step:.1f}"
        high = (_HEIGHT - _HEAD - _FOOT) * count / most if most else 0
        top = _HEIGHT - _FOOT - high
        shapes += [
            f'<rect x="{number * step + 1.5:.1f}" y="{top:.1f}" width="{step - 3:.1f}" '
            f'height="{high:.1f}"/>',
            f'<text x="{middle}" y="{_HEIGHT - 4}" text-anchor="middle">{markup(name)}</text>',
        ]
        if count:
            shapes.append(
                f'<text x="{middle}" y="{top - 3:.1f}" text-anchor="middle">{_short(count)}</text>'
            )
    chart = (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{markup(title)}">'
        f"{''.join(shapes)}</svg>"
    )
    return joined((element("h3", title), Html(chart)))


def bar(share: float) -> Html:
    """Return a bar, `share` 0..1 of its cell wide."""
    width = 100 * min(max(share, 0.0), 1.0)
    return Html(
        '<svg viewBox="0 0 100 10" preserveAspectRatio="none" style="height:.8rem;min-width:5rem">'
        f'<rect width="{width:.1f}" height="10"/></svg>'
    )


def _short(count: int) -> str:
    """A number in at most four characters or so."""
    if count < 10_000:
        return str(count)
    return f"{count / 1000:.0f}k" if count < 1_000_000 else f"{count / 1e6:.1f}M"

"""Pages: nothing in them is markup but what was made as such, and they ask for nothing."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

from detres.report.html import Html, bar, columns, element, figure, markup, page, table

HOSTILE = "<script>alert(1)</script> \"quoted\" 'single' & more"


class Tags(HTMLParser):
    """The elements of a page and their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    "made",
    [
        markup(HOSTILE),
        element("p", HOSTILE),
        element("p", "x", class_=HOSTILE),
        table([HOSTILE], [[HOSTILE]]),
        figure(HOSTILE, np.zeros((4, 4, 3), np.uint8), alt=HOSTILE),
        columns(HOSTILE, {HOSTILE: 3}),
        Html(page(HOSTILE, HOSTILE)),
    ],
)
def test_text_never_becomes_markup(made: Html) -> None:
    assert isinstance(made, Html)
    found = Tags(made)
    assert "script" not in [tag for tag, _ in found.tags]
    values = [found.text, *(value for _, each in found.tags for value in each.values() if value)]
    assert any(HOSTILE in value for value in values)


def test_markup_stays_as_it_is() -> None:
    inner = element("b", "bold")
    assert element("p", inner, " & text", class_="soft") == (
        '<p class="soft"><b>bold</b> &amp; text</p>'
    )


def test_text_that_moves_the_cursor_or_has_no_character_is_shown_escaped() -> None:
    made = page("a\x1b[2J", "\udcff\u202e")
    assert "\\x1b[2J" in made
    assert "\\udcff\\u202e" in made
    made.encode("utf-8")


def test_a_page_is_whole_and_asks_for_nothing() -> None:
    made = page("A title", element("p", "text"), figure("", np.zeros((3, 5, 3), np.uint8), alt=""))
    found = Tags(made)
    assert made.startswith("<!DOCTYPE html>")
    assert [tag for tag, _ in found.tags][:2] == ["html", "head"]
    metas = [each for tag, each in found.tags if tag == "meta"]
    assert {"name": "viewport", "content": "width=device-width,initial-scale=1"} in metas
    policy = [each["content"] for each in metas if each.get("http-equiv")]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not {tag for tag, _ in found.tags} & {"script", "iframe", "a"}
    # without an icon of its own a browser asks the server for one
    assert [each for tag, each in found.tags if tag == "link"] == [
        {"rel": "icon", "href": "data:,"}
    ]
    sources = [each["src"] for _, each in found.tags if "src" in each]
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"https?:|url\(|@import", made)


def test_a_picture_is_that_picture() -> None:
    picture = np.zeros((30, 50, 3), np.uint8)
    picture[:] = (200, 30, 60)
    (image,) = [each for tag, each in Tags(figure("", picture, alt="red")).tags if tag == "img"]
    assert (image["width"], image["height"], image["alt"]) == ("50", "30", "red")
    data = base64.b64decode(image["src"].partition(",")[2])
    shown = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert np.abs(shown.astype(int) - picture).max() <= 4


def test_columns_are_as_high_as_their_numbers() -> None:
    made = columns("sizes", {"<8": 0, "8": 50, "16": 100, "32": 12_345})
    rects = [each for tag, each in Tags(made).tags if tag == "rect"]
    heights = np.array([float(each["height"]) for each in rects])
    np.testing.assert_allclose(heights / heights[3], [0, 50 / 12345, 100 / 12345, 1], atol=1e-3)
    bottoms = [float(each["y"]) + float(each["height"]) for each in rects]
    assert bottoms == pytest.approx([bottoms[0]] * 4, abs=0.1)
    assert re.findall(r"<text[^>]*>([^<]*)<", made) == [
        "&lt;8",
        "8",
        "50",
        "16",
        "100",
        "32",
        "12k",
    ]


@pytest.mark.parametrize("counts", [{}, {"a": 0}])
def test_columns_of_nothing(counts: dict[str, int]) -> None:
    made = columns("none", counts)
    assert 'height="nan"' not in made
    assert made.count('height="0.0"') == len(counts)


def test_a_bar_is_its_share() -> None:
    assert 'width="25.0"' in bar(0.25)
    assert 'width="100.0"' in bar(7)
    assert 'width="0.0"' in bar(-1)

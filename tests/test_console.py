from __future__ import annotations

import io
import sys

import pytest

from detres.console import accept_any_text, one_line, printable, shortened, shown, write_line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain\nlines", "plain\nlines"),
        ("猫 café ☕", "猫 café ☕"),
        ("👩\u200d🚀", "👩\u200d🚀"),  # joined by a character that turns nothing
        ("\x1b[31mred", "\\x1b[31mred"),
        ("over\rwritten", "over\\rwritten"),
        ("a\tb\x00\x7f\x9b", "a\\tb\\x00\\x7f\\x9b"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u2066x\u2069\u200f", "\\u2066x\\u2069\\u200f"),
        ("\u2028", "\\u2028"),
        ("bad\udcff", "bad\\udcff"),
        ("", ""),
    ],
)
def test_nothing_steers_the_console(text, expected):
    assert printable(text) == expected


def test_every_control_character_is_escaped():
    for code in (*range(32), *range(127, 160)):
        if chr(code) != "\n":
            assert printable(chr(code)).isascii()
            assert printable(chr(code)).isprintable()


def test_a_name_is_one_line():
    assert one_line("a\nb\r\u2028c\td") == "a b  c d"
    assert one_line("red  cell") == "red  cell"


def test_text_is_cut_where_it_is_longer():
    assert shortened("x" * 80) == "x" * 80
    assert shortened("ab" * 45) == "ab" * 40 + "... (90 characters)"
    assert shortened("abc", 2) == "ab... (3 characters)"
    assert shortened("") == ""


def test_a_value_is_shown_short_and_in_one_line():
    assert shown("a\u2028b") == "'a\\u2028b'"
    assert shown([1, "x"]) == "[1, 'x']"
    text = shown("x" * 500)
    assert text.startswith("'xxx")
    assert text.endswith("... (502 characters)")
    assert len(text) < 120
    assert shown(10**5000) == "a int too long to show"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_characters_that_an_encoding_lacks_are_escaped(encoding, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    accept_any_text()
    write_line("猫\x1b")
    assert stream.buffer.getvalue() == b"\\u732b\\x1b\n"

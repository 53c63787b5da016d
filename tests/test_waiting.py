"""What is shown while something takes long: nothing soon, then lines or a bar, and all items."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from detres import waiting
from detres.waiting import counted, say_reading


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The seconds that are believed to have passed, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def passed_on(items, clock: list[float], seconds: float, **more: float) -> list:
    found = []
    for item in counted(items, "drawing", "images", **more):
        found.append(item)
        clock[0] += seconds
    return found


@pytest.mark.parametrize("items", [[], [7], list(range(20))])
def test_what_is_soon_over_shows_nothing(items, clock, capsys):
    assert passed_on(items, clock, 0.1) == items
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_what_takes_long_says_so_after_three_seconds_and_then_every_thirty(clock, capsys):
    assert passed_on(range(100), clock, 1.0) == list(range(100))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "drawing: 3 of 100 images, 1:37 left",
        "drawing: 33 of 100 images, 1:07 left",
        "drawing: 63 of 100 images, 0:37 left",
        "drawing: 93 of 100 images, 0:07 left",
    ]


def test_when_it_is_first_said_can_be_chosen(clock, capsys):
    passed_on(range(20), clock, 1.0, soon=15.0)
    assert capsys.readouterr().err == "drawing: 15 of 20 images, 0:05 left\n"


def test_items_whose_number_is_not_known_are_counted(clock, capsys):
    assert passed_on(iter(range(5)), clock, 2.0) == list(range(5))
    assert capsys.readouterr().err == "drawing: 2 images\n"


def test_a_terminal_gets_a_bar_with_the_number_of_items(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(waiting, "_SOON_S", 0.0)
    assert list(counted(range(4), "drawing", "images", soon=0.0)) == [0, 1, 2, 3]
    assert "drawing: " in terminal.getvalue()
    assert "/4" in terminal.getvalue()


def test_reading_a_large_file_is_said_before_it_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(waiting, "_LARGE", 2_000_000)
    small, large = tmp_path / "small.json", tmp_path / "large.json"
    small.write_bytes(b"0" * 1_999_999)
    large.write_bytes(b"0" * 2_000_000)
    for path in (small, large, tmp_path / "none.json", "a\0b"):
        say_reading(path)
    assert capsys.readouterr().err == f"reading {large}, 2 MB\n"

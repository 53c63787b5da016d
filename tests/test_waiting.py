"""What is shown while something takes long: nothing soon, then lines or a bar, and all items."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import pytest

from detres import waiting
from detres.waiting import counted, counting_bytes, say_reading


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


def test_what_comes_over_a_network_says_its_size_and_how_far_it_is(clock, capsys):
    with counting_bytes("downloading https://host/a/model.pkl") as report:
        for done in range(20, 101, 20):
            report(done * 1_000_000, 100_000_000)
            clock[0] += 20.0
    assert capsys.readouterr().err.splitlines() == [
        "downloading https://host/a/model.pkl: 100.0 MB, 20.0 of them here already",
        "model.pkl: 60.0 of 100.0 MB, 0:40 left",
        "model.pkl: 100.0 of 100.0 MB, 0:00 left",
    ]


def test_a_size_that_nobody_says_is_not_known_or_the_expected_one(clock, capsys):
    for expected in (None, 7_500_000):
        with counting_bytes("downloading x", expected) as report:
            report(0, None)
            clock[0] += 30.0
            report(2_500_000, None)
    assert capsys.readouterr().err.splitlines() == [
        "downloading x: its size is not known",
        "downloading x: 2.5 MB",
        "downloading x: 7.5 MB",
        "downloading x: 2.5 of 7.5 MB, 1:00 left",
    ]
    with counting_bytes("downloading x"):
        pass
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_of_bytes(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with counting_bytes("downloading https://host/model.pkl") as report:
        report(1_000_000, 4_000_000)
        report(4_000_000, 4_000_000)
    first, bar = terminal.getvalue().split("\n", 1)
    assert first == "downloading https://host/model.pkl: 4.0 MB, 1.0 of them here already"
    assert "model.pkl:  25%" in bar


def test_reading_a_large_file_is_said_before_it_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(waiting, "_LARGE", 2_000_000)
    small, large = tmp_path / "small.json", tmp_path / "large.json"
    small.write_bytes(b"0" * 1_999_999)
    large.write_bytes(b"0" * 2_000_000)
    for path in (small, large, tmp_path / "none.json", "a\0b"):
        say_reading(path)
    assert capsys.readouterr().err == f"reading {large}, 2 MB\n"

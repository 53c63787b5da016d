"""What people read: text that any console can show, and that cannot steer one."""

from __future__ import annotations

import sys
import unicodedata
from typing import TextIO

_BREAKS = dict.fromkeys(map(ord, "\r\n\t\v\f\x1c\x1d\x1e\x85\u2028\u2029"), " ")
_LONGEST = 80


def printable(text: str) -> str:
    """Return `text` with everything escaped that moves a cursor, changes colours or turns the
    direction of reading: control characters but for the line feed, format characters of
    direction, lone surrogates.
    """
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(
        character if character == "\n" or _is_harmless(character) else _escaped(character)
        for character in text
    )


def one_line(text: str) -> str:
    """Return a name, or a path, with every line break and tab in it turned into a space."""
    return text.translate(_BREAKS)


def shown(value: object) -> str:
    """Return how a message shows a value out of a user's file: its repr, cut where it is long."""
    try:
        text = one_line(repr(value))
    except (ValueError, RecursionError):  # an integer of very many digits; nested very deeply
        return f"a {type(value).__name__} too long to show"
    return shortened(text)


def shortened(text: str, longest: int = _LONGEST) -> str:
    """Return `text`, cut after `longest` characters with their number said where it is longer."""
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text)} characters)"


def plural(number: int, one: str, several: str | None = None) -> str:
    """Return a number of things in words: what one of them is called, and several (`one` with an s,
    where nothing else is given).
    """
    return f"{number} {one if number == 1 else several or f'{one}s'}"


def clock(seconds: float) -> str:
    """Return a duration as a clock shows it, M:SS or H:MM:SS."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def write_line(text: str, stream: TextIO | None = None) -> None:
    """Write a line (or several), as `printable` makes it, to `stream` (standard output) at once."""
    stream = sys.stdout if stream is None else stream
    stream.write(f"{printable(text)}\n")
    stream.flush()


def accept_any_text() -> None:
    """Let standard output and standard error show characters that their encoding lacks as escapes,
    where they would raise UnicodeEncodeError.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _is_harmless(character: str) -> bool:
    """Whether a character only shows itself; a zero-width joiner, part of many emoji, does."""
    category = unicodedata.category(character)
    if category == "Cf":
        return unicodedata.bidirectional(character) == "BN"
    return category not in ("Cc", "Cs", "Zl", "Zp")


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")

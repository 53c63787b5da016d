"""Files that users hand over: whether one is there and can be opened, and its text in whatever
encoding it is.
"""

from __future__ import annotations

import codecs
import json
import os
import stat
from pathlib import Path

_MARKS = (  # UTF-32's little-endian mark begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class TextError(ValueError):
    """A text file in an unknown encoding; the message names the file and the byte."""


class JsonError(ValueError):
    """A file that is no JSON; the message names it."""


def expanded(path: str) -> str:
    """Return a path as a user writes it with ~ and ~NAME at its beginning replaced by the home
    folder; others, and URLs, as they are.
    """
    return os.path.expanduser(path)


def is_url(place: str) -> bool:
    """Return whether a file or folder is given as a URL, s3://bucket/a.jpg, and not as a path."""
    return "://" in place


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is passed over for its name, which starts with a dot: macOS
    leaves ._a.xml beside a.xml.
    """
    return name.startswith(".")


def tidied(path: Path) -> Path:
    """Return `path` without "." and ".." where that names the same file, else as it is."""
    tidy = Path(os.path.normpath(path))
    try:
        return tidy if tidy.samefile(path) else path
    except OSError:
        return path


def fault_of(path: str | Path) -> str | None:
    """Return why `path` is no regular file that can be read, in words that go on after its name;
    None: it is one. Opens nothing, so a FIFO cannot hold up the caller.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            return f"is a link to {os.readlink(path)}, which is not there"
        return "does not exist"
    except OSError as error:
        return f"cannot be looked up: {error.strerror}"
    except ValueError:  # a zero byte in the name
        return "does not exist"
    if not stat.S_ISREG(mode):
        kind = next((name for is_kind, name in _KINDS if is_kind(mode)), "something else")
        return f"is {kind}, expected a file"
    return None if os.access(path, os.R_OK) else "may not be read by this user"


def require_file(path: str | Path, what: str) -> None:
    """Raise FileNotFoundError unless `path` is a regular file that can be read.

    what: it is, for the message, such as "annotation file".
    """
    fault = fault_of(path)
    if fault == "does not exist":
        raise FileNotFoundError(f"no {what} {path}")
    if fault is not None:
        raise FileNotFoundError(f"{what} {path} {fault}")


def read_text(path: str | Path, what: str = "file") -> str:
    """Return the text of a file without its byte order mark.

    UTF-8, and UTF-16 or UTF-32 with a byte order mark, or told by the zero bytes of a first ASCII
    character. Raises FileNotFoundError as `require_file` does, TextError naming the file, the byte
    and its offset for other encodings.
    """
    require_file(path, what)
    return text_of(Path(path).read_bytes(), f"{what} {path}")


def text_of(data: bytes, name: str) -> str:
    """Return the text that the bytes of a file are, as `read_text` does; name: of the file, for the
    message of a TextError.
    """
    mark, encoding = next(
        ((mark, name) for mark, name in _MARKS if data.startswith(mark)), (b"", _unmarked(data))
    )
    try:
        return data[len(mark) :].decode(encoding)
    except UnicodeDecodeError as error:
        offset = len(mark) + error.start
        line = data.count(b"\n", 0, offset) + 1
        raise TextError(
            f"{name}: byte 0x{data[offset]:02x} at offset {offset} (line {line}) is not "
            f"{encoding.upper()}; save the file as UTF-8"
        ) from None


def read_json(path: str | Path, what: str = "file") -> object:
    """Return what a JSON file holds; raises JsonError naming it when it is none, nested too deeply
    or holds an integer of thousands of digits, and as `read_text` does.
    """
    text = read_text(path, what)
    try:
        return json.loads(text)
    except RecursionError:
        raise JsonError(f"{path} is not JSON that can be read: it is nested too deeply") from None
    except ValueError as error:
        said = str(error).partition(";")[0]  # Python's hint at a limit of its own is for programs
        raise JsonError(f"{path} is not JSON: {said}") from None


def _unmarked(data: bytes) -> str:
    """The encoding of text without a mark whose first character is ASCII."""
    zeros = [byte == 0 for byte in data[:4]]
    if zeros[:2] == [False, True]:
        return "utf-32-le" if zeros[2:] == [True, True] else "utf-16-le"
    if zeros[:2] == [True, False]:
        return "utf-16-be"
    return "utf-32-be" if zeros == [True, True, True, False] else "utf-8"

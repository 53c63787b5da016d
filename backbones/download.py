"""Files from a network: written to FILE.part, with which a later try goes on, and renamed to FILE
once their checksum is right.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from torch.hub import tqdm

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

TIMEOUT_S = 30.0
"""Seconds without a sign of the server after which it is given up."""

_PAGES = ("text/html", "application/xhtml+xml")

_BLOCK = 1 << 20
_POLL_S = 0.5

Report = Callable[[int, int | None], None]
"""Called with the bytes that are there, and those of the whole file, None where nobody says."""


class DownloadError(Exception):
    """A file that could not be fetched; the message names its URL and says why."""


class ChecksumError(DownloadError):
    """A file that came, and is another than was published; nothing of it is kept."""


def digest_of(path: Path, kind: Literal["md5", "sha256"] = "sha256") -> str:
    """Return the hex digits of the digest of a file's content."""
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class Checksum:
    """The first hex digits of what a file's `kind` of digest is."""

    kind: Literal["md5", "sha256"]
    prefix: str

    def fault_of(self, path: Path) -> str | None:
        """Return why the file at `path` is another, in words; None: it is this one."""
        found = digest_of(path, self.kind)[: len(self.prefix)]
        if found == self.prefix:
            return None
        return f"its {self.kind} starts with {found}, not {self.prefix}"


def part_of(path: Path) -> Path:
    """Return where what there is of the file `path` lies until it is whole."""
    return path.with_name(f"{path.name}.part")


def download(url: str, path: Path, checksum: Checksum, report: Report) -> None:
    """Fetch `url` to `path`, going on with what an earlier try left in part_of(path); where another
    process fetches it already, wait for that.

    The folder is made when it is not there. Raises DownloadError where the server cannot be
    reached, answers with an error or breaks off, ChecksumError for another file than was published,
    which is removed, and OSError naming `path` when it cannot be written. After all but the second,
    and after Ctrl-C, what came stays in the part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    with _alone(part, path, report) as file:
        if file is None:
            return
        try:
            _fill(file, url, report)
            file.flush()
            os.fsync(file.fileno())
        except OSError as error:  # of a full disk, which knows no name
            raise OSError(error.errno, error.strerror, str(path)) from None
        fault = checksum.fault_of(part)
        if fcntl is None:
            file.close()  # an open file has no other name there
        if fault is not None:
            part.unlink()
            raise ChecksumError(f"{url} is not what was published: {fault}; it was removed")
        os.replace(part, path)


@contextlib.contextmanager
def bar() -> Iterator[Report]:
    """Give a report that draws torch.hub's bar on standard error."""
    with contextlib.ExitStack() as stack:
        bars: list[tqdm] = []

        def report(done: int, total: int | None) -> None:
            if not bars:
                how = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}
                bars.append(stack.enter_context(tqdm(total=total, **how)))
            bars[0].total = total
            bars[0].update(done - bars[0].n)

        yield report


@contextlib.contextmanager
def _alone(part: Path, path: Path, report: Report) -> Iterator[BinaryIO | None]:
    """The part, open, in the hands of this process alone; None where `path` is there by then. An
    empty part is removed.
    """
    while True:
        with part.open("ab") as file:
            while not _took(file):
                report(os.fstat(file.fileno()).st_size, None)
                time.sleep(_POLL_S)
            is_there = path.is_file()
            if not is_there and not _is_at(part, file):
                continue  # another process has removed it since it was opened
            try:
                yield None if is_there else file
            finally:
                if _is_at(part, file) and part.stat().st_size == 0:
                    part.unlink()
            return


def _took(file: BinaryIO) -> bool:
    """Whether no other process holds the file; a file system without locks has nobody who does."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            pass
    return True


def _is_at(path: Path, file: BinaryIO) -> bool:
    with contextlib.suppress(OSError):
        return not file.closed and os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    return False


def _fill(file: BinaryIO, url: str, report: Report) -> None:
    """Append to the part what it lacks."""
    response, start = _answer(url, file.seek(0, os.SEEK_END))
    if response is None:
        report(start, start)
        return
    with response:
        if start == 0:
            file.truncate(0)
        length = response.headers.get("Content-Length")
        total = start + int(length) if length is not None and length.isdecimal() else None
        done = start
        report(done, total)
        while block := _block(response, url, done, total):
            file.write(block)
            done += len(block)
            report(done, total)
    if total is not None and done < total:
        raise _broken_off(url, done, total, "the connection was closed")


def _answer(url: str, start: int) -> tuple[http.client.HTTPResponse | None, int]:
    """What the server sends, and from which byte on: `start`, or 0 where it sends all; nothing
    where `start` bytes are all there are. A page of a network that wants a login first, or an
    answer without a file, is an error, for which no part is given up.
    """
    headers = {"User-Agent": "backbones"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S
        )
    except urllib.error.HTTPError as error:
        with error:
            whole = error.headers.get("Content-Range") == f"bytes */{start}"
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE and start:
            return (None, start) if whole else _answer(url, 0)
        raise DownloadError(f"{url} is answered with {error.code} {_line(error.reason)}") from None
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"{url} cannot be reached: {_reason(error)}") from None
    if response.headers.get_content_type() in _PAGES:
        with response:
            raise DownloadError(
                f"{url} is answered with a web page, not with a file: the network may want a login"
            )
    if response.status in (http.client.OK, None):  # a file:// has none
        return response, 0
    if response.status != http.client.PARTIAL_CONTENT:
        with response:
            said = f"{response.status} {_line(response.reason)}"
            raise DownloadError(f"{url} is answered with {said}, and no file")
    if re.match(rf"bytes {start}-", response.headers.get("Content-Range", "")):
        return response, start
    response.close()
    if start == 0:
        raise DownloadError(f"{url} is answered with a part of it that was not asked for")
    return _answer(url, 0)


def _block(response: http.client.HTTPResponse, url: str, done: int, total: int | None) -> bytes:
    try:
        return response.read(_BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise _broken_off(url, done, total, _reason(error)) from None


def _broken_off(url: str, done: int, total: int | None, why: str) -> DownloadError:
    of = "" if total is None else f" of {total / 1e6:.1f}"
    return DownloadError(
        f"{url} broke off after {done / 1e6:.1f}{of} MB: {why}; they are kept, and the next try "
        "goes on from there"
    )


def _reason(error: Exception) -> str:
    """Why a server was not reached, in words."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"it was silent for {TIMEOUT_S:g} s"
    said = _line(getattr(reason, "strerror", None) or reason)
    return said or type(reason).__name__


def _line(said: object) -> str:
    """What a server or a library says, in one line."""
    return " ".join(str(said).split())

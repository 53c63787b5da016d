"""Files where they lie: on a disk, or behind a URL that fsspec opens (s3://, gs://, memory://)."""

from __future__ import annotations

import contextlib
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import fsspec
from fsspec.implementations.local import LocalFileSystem

from detres.files import replacing

_AT_ONCE = 16
"""Files that are fetched at a time."""


class StorageError(OSError):
    """A file system behind a URL that does not do what was asked; the message names the URL."""


def filesystem_of(place: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system that a path or a URL is of, and what it is called there.

    Raises ValueError naming a URL of an unknown kind, and of one whose package is not installed.
    """
    try:
        return fsspec.core.url_to_fs(place)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{place} cannot be opened: {error}") from None


class Listed(NamedTuple):
    """A file in a listing: its URL, and its bytes, None where its file system does not say."""

    url: str
    size: int | None


def listed(url: str) -> list[Listed]:
    """Return the file behind a URL, the files of the folder behind it, or those that it matches
    where it has a `*`, in the order of their names; files in folders below are left out.

    Raises FileNotFoundError where nothing is there, StorageError where it cannot be listed, and
    what `filesystem_of` raises.
    """
    files, path = filesystem_of(url)
    try:
        if "*" in url:
            found = list(files.glob(path, detail=True).values())
        else:
            info = files.info(path)
            found = files.ls(path, detail=True) if info["type"] == "directory" else [info]
    except FileNotFoundError:
        raise FileNotFoundError(f"nothing is at {url}") from None
    except Exception as error:  # each file system of fsspec has errors of its own
        raise _fault(f"{url} cannot be listed", error) from None
    before = url[: url.rfind("::") + 2] if "::" in url else ""  # simplecache::s3://
    return sorted(
        Listed(before + files.unstrip_protocol(each["name"]), each.get("size"))
        for each in found
        if each["type"] == "file"
    )


def read(place: str) -> bytes:
    """Return what is in a file; raises FileNotFoundError where it is not there, StorageError for
    other faults of a file system behind a URL, OSError for those of a disk.
    """
    files, path = filesystem_of(place)
    if isinstance(files, LocalFileSystem):
        return Path(path).read_bytes()
    try:
        return files.cat_file(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"nothing is at {place}") from None
    except Exception as error:  # each file system of fsspec has errors of its own
        raise _fault(f"{place} cannot be read", error) from None


def read_ahead(places: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield files and what is in them, in this order, some being fetched while one is worked on;
    raises as `read` does, when it is the turn of the file.
    """
    waiting: deque[tuple[str, Future[bytes]]] = deque()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for place in places:
            waiting.append((place, pool.submit(read, place)))
            if len(waiting) == _AT_ONCE:
                first, content = waiting.popleft()
                yield first, content.result()
        while waiting:
            first, content = waiting.popleft()
            yield first, content.result()


class Folder:
    """A folder, by its path or URL; it need not be there until something is written into it."""

    def __init__(self, place: str) -> None:
        self.place = place.rstrip("/") or "/"
        self._files, self._path = filesystem_of(self.place)

    def __str__(self) -> str:
        return self.place

    def of(self, name: str) -> str:
        """Return the path or URL of a file in it."""
        return f"{self.place}/{name}"

    def sizes(self, inside: str = "") -> dict[str, int | None]:
        """Return the names of the files in it, or in a folder `inside` it, with their bytes; there
        is none where the folder is not there. Raises StorageError, or OSError of a disk.
        """
        try:
            self._files.invalidate_cache()
            found = self._files.ls(self._of(inside), detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:  # each file system of fsspec has errors of its own
            raise _fault(f"{self.of(inside)} cannot be listed", error) from None
        return {
            each["name"].rpartition("/")[2]: each.get("size")
            for each in found
            if each["type"] == "file"
        }

    def read_all(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return what is in those of these files that are there, several fetched at a time; raises
        as `read` does.
        """

        def content_of(name: str) -> tuple[str, bytes | None]:
            try:
                return name, read(self.of(name))
            except FileNotFoundError:
                return name, None

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = list(pool.map(content_of, names))
        return {name: content for name, content in found if content is not None}

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give a temporary file on the disk; when the block succeeds, it becomes the file `name` in
        one step: renamed where the folder is on a disk, else sent, which object stores show when
        it is whole. Raises StorageError or OSError naming the file where that fails.
        """
        if isinstance(self._files, LocalFileSystem):
            with replacing(self._of(name)) as temporary:
                yield temporary
            return
        with tempfile.TemporaryDirectory(prefix="detres-") as folder:
            temporary = Path(folder) / "file"
            yield temporary
            try:
                self._files.put_file(str(temporary), self._of(name))
            except Exception as error:  # each file system of fsspec has errors of its own
                raise _fault(f"{self.of(name)} cannot be written", error) from None

    def _of(self, name: str) -> str:
        return f"{self._path.rstrip('/')}/{name}" if name else self._path


def _fault(what: str, error: Exception) -> StorageError:
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return StorageError(f"{what}: {said}")

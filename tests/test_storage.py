"""Files on a disk and behind URLs, by the same functions."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from detres.storage import Folder, Listed, StorageError, listed, read, read_ahead


@pytest.fixture(params=["path", "file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A folder that is not there yet: as a path, and behind two kinds of URL."""
    if request.param == "memory":
        name = f"memory://{uuid.uuid4().hex}/in"
        yield name
        fsspec.filesystem("memory").store.clear()
    else:
        yield str(tmp_path / "in") if request.param == "path" else f"file://{tmp_path}/in"


def fill(place: str, **files: bytes) -> None:
    for name, content in files.items():
        with Folder(place).writing(name.replace("__", "/")) as temporary:
            temporary.write_bytes(content)


def test_what_is_written_is_read(place: str) -> None:
    folder = Folder(f"{place}/")
    assert folder.sizes() == {}
    assert folder.sizes("deeper") == {}
    assert folder.read_all(["a"]) == {}
    fill(place, b=b"two", a=b"1", deeper__c=b"three")
    assert folder.sizes() == {"a": 1, "b": 3}
    assert folder.sizes("deeper") == {"c": 5}
    assert folder.read_all(["deeper/c", "gone", "a"]) == {"deeper/c": b"three", "a": b"1"}
    assert folder.read_all([]) == {}
    assert str(folder) == place
    assert read(folder.of("b")) == b"two"
    fill(place, b=b"other")
    assert read(folder.of("b")) == b"other"
    with pytest.raises(FileNotFoundError):
        read(folder.of("gone"))


def test_an_error_while_writing_leaves_what_was_there(place: str) -> None:
    fill(place, a=b"old")

    def fail() -> None:
        with Folder(place).writing("a") as temporary:
            temporary.write_bytes(b"ne")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert Folder(place).sizes() == {"a": 3}
    assert read(f"{place}/a") == b"old"


def test_files_come_in_their_order_more_than_are_fetched_at_a_time(place: str) -> None:
    files = {f"f{number:02d}": b"x" * number for number in range(40)}
    fill(place, **files)
    names = [f"{place}/{name}" for name in reversed(files)]
    assert list(read_ahead(names)) == [(name, files[name.rpartition("/")[2]]) for name in names]
    assert list(read_ahead([])) == []
    ahead = read_ahead([names[0], f"{place}/gone", names[1]])
    assert next(ahead)[0] == names[0]
    with pytest.raises(FileNotFoundError):
        next(ahead)


@pytest.fixture
def memory() -> Iterator[str]:
    place = f"memory://{uuid.uuid4().hex}"
    fill(place, b__2=b"22", b__1=b"1", b__deeper__3=b"333", a__2=b"2222")
    yield place
    fsspec.filesystem("memory").store.clear()


def names_of(found: list[Listed], place: str) -> list[tuple[str, int | None]]:
    within = place.removeprefix("memory://")
    return [(url.partition(within)[2], size) for url, size in found]


def test_listings_are_sorted_and_go_no_deeper(memory: str) -> None:
    assert names_of(listed(f"{memory}/b"), memory) == [("/b/1", 1), ("/b/2", 2)]
    assert names_of(listed(f"{memory}/b/"), memory) == [("/b/1", 1), ("/b/2", 2)]
    assert names_of(listed(f"{memory}/b/2"), memory) == [("/b/2", 2)]
    assert names_of(listed(f"{memory}/*/2"), memory) == [("/a/2", 4), ("/b/2", 2)]
    assert listed(f"{memory}/*/9") == []
    assert [read(each.url) for each in listed(f"{memory}/*/2")] == [b"2222", b"22"]
    with pytest.raises(FileNotFoundError, match=f"nothing is at {memory}/c"):
        listed(f"{memory}/c")


class _Failing(MemoryFileSystem):
    """Behind a network that is gone."""

    protocol = "failing"
    cachable = False

    def _fail(self, *_: object, **__: object) -> None:
        raise ConnectionError("reset by peer\nat line 5")

    info = ls = cat_file = put_file = _fail


def test_what_a_file_system_raises_is_one_line_that_names_the_url() -> None:
    fsspec.register_implementation("failing", _Failing, clobber=True)
    folder = Folder("failing://b/out")
    ways = {
        "failing://b/a.jpg cannot be read": lambda: read("failing://b/a.jpg"),
        "failing://b cannot be listed": lambda: listed("failing://b"),
        "failing://b/out/ cannot be listed": folder.sizes,
        "failing://b/out/a cannot be read": lambda: folder.read_all(["a"]),
        "failing://b/out/a cannot be written": lambda: fill("failing://b/out", a=b"1"),
    }
    for said, does in ways.items():
        with pytest.raises(StorageError) as raised:
            does()
        assert str(raised.value) == f"{said}: reset by peer"


def test_kinds_of_urls_that_cannot_be_opened_are_named() -> None:
    with pytest.raises(ValueError, match=r"^klingon://b cannot be opened: "):
        read("klingon://b")
    with pytest.raises(ValueError, match=r"^klingon://b cannot be opened: "):
        Folder("klingon://b/")

"""A file comes whole, or in parts, over a network that breaks off; or one clear error does."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from backbones import download as module
from backbones.download import Checksum, ChecksumError, DownloadError, bar, download, part_of
from tests.file_server import FileServer, serving

CONTENT = np.random.default_rng(0).bytes(3_000_000)
CHECKSUM = Checksum("sha256", hashlib.sha256(CONTENT).hexdigest()[:8])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", "*")
    with serving(CONTENT) as server:
        yield server


def silent(_done: int, _total: int | None) -> None:
    pass


def test_a_file_comes_whole_and_says_how_far_it_is(server: FileServer, tmp_path: Path) -> None:
    path, said = tmp_path / "a" / "model.pth", []
    download(server.url, path, CHECKSUM, lambda *each: said.append(each))
    assert path.read_bytes() == CONTENT
    assert [each.name for each in path.parent.iterdir()] == ["model.pth"]
    assert said[0] == (0, 3_000_000)
    assert said[-1] == (3_000_000, 3_000_000)
    assert said == sorted(said)


def test_a_server_that_does_not_say_the_size(server: FileServer, tmp_path: Path) -> None:
    server.sized, said = False, []
    download(server.url, tmp_path / "x", CHECKSUM, lambda *each: said.append(each))
    assert (tmp_path / "x").read_bytes() == CONTENT
    assert {total for _, total in said} == {None}


def test_md5_prefixes_are_known_too(server: FileServer, tmp_path: Path) -> None:
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    download(server.url, tmp_path / "x", Checksum("md5", md5[:6]), silent)
    assert Checksum("md5", md5).fault_of(tmp_path / "x") is None
    fault = Checksum("md5", "0" * 6).fault_of(tmp_path / "x")
    assert fault == f"its md5 starts with {md5[:6]}, not 000000"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_part_is_gone_on_with(server: FileServer, tmp_path: Path, *, ranges: bool) -> None:
    """Where the server knows no ranges, from the beginning."""
    path, said = tmp_path / "model.pth", []
    server.ranges = ranges
    part_of(path).write_bytes(CONTENT[:1_234_567] if ranges else b"of another file")
    download(server.url, path, CHECKSUM, lambda *each: said.append(each))
    assert path.read_bytes() == CONTENT
    assert server.starts == [1_234_567 if ranges else 15]
    assert said[0] == (1_234_567 if ranges else 0, 3_000_000)
    assert not part_of(path).exists()


def test_a_part_that_is_whole_only_takes_its_name(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    part_of(path).write_bytes(CONTENT)
    download(server.url, path, CHECKSUM, silent)
    assert path.read_bytes() == CONTENT
    assert server.starts == [3_000_000]


def test_a_part_longer_than_the_file_is_fetched_anew(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    part_of(path).write_bytes(CONTENT + b"more")
    download(server.url, path, CHECKSUM, silent)
    assert path.read_bytes() == CONTENT
    assert server.starts == [3_000_004, 0]


def test_a_connection_that_breaks_off_is_gone_on_with(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    server.cut = 2_000_000
    with pytest.raises(DownloadError, match=r"model\.pth broke off after 2\.0 of 3\.0 MB: .* next"):
        download(server.url, path, CHECKSUM, silent)
    assert part_of(path).read_bytes() == CONTENT[:2_000_000]
    server.cut = None
    download(server.url, path, CHECKSUM, silent)
    assert path.read_bytes() == CONTENT
    assert server.starts == [0, 2_000_000]


def test_ctrl_c_leaves_the_part(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"

    def interrupt(done: int, _total: int | None) -> None:
        if done > 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(server.url, path, CHECKSUM, interrupt)
    left = part_of(path).read_bytes()
    assert 1_000_000 < len(left) < 3_000_000
    assert CONTENT.startswith(left)
    download(server.url, path, CHECKSUM, silent)
    assert path.read_bytes() == CONTENT


def test_another_file_than_was_published_is_removed(server: FileServer, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    part_of(path).write_bytes(b"x" * 1_000_000)
    with pytest.raises(ChecksumError, match=f"not what was .* not {CHECKSUM.prefix}; it was rem"):
        download(server.url, path, CHECKSUM, silent)
    assert list(tmp_path.iterdir()) == []
    download(server.url, path, CHECKSUM, silent)
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("status", [404, 503, 302, 204])
def test_an_error_of_the_server_is_said(server: FileServer, tmp_path: Path, status: int) -> None:
    """In one line, also of a redirection to itself, for which urllib has several."""
    server.status = status
    with pytest.raises(DownloadError, match=rf"model\.pth is answered with {status} \w+") as raised:
        download(server.url, tmp_path / "model.pth", CHECKSUM, silent)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_http_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/model.pth"

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"220 mail\r\nwelcome\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(DownloadError, match=rf"^{url} cannot be reached: 220 mail$"):
            download(url, tmp_path / "model.pth", CHECKSUM, silent)
        thread.join()


@pytest.mark.parametrize(("status", "kind"), [(None, "text/html; charset=utf-8"), (204, None)])
def test_what_is_no_file_leaves_the_part(
    server: FileServer, tmp_path: Path, status: int | None, kind: str | None
) -> None:
    """The page of a network that wants a login knows no ranges either."""
    path = tmp_path / "model.pth"
    part_of(path).write_bytes(CONTENT[:1_000_000])
    server.ranges, server.kind, server.status = False, kind, status
    with pytest.raises(DownloadError, match=r"with (a web page, not with|204 No Content, and no)"):
        download(server.url, path, CHECKSUM, silent)
    assert part_of(path).read_bytes() == CONTENT[:1_000_000]
    server.ranges, server.kind, server.status = True, None, None
    download(server.url, path, CHECKSUM, silent)
    assert path.read_bytes() == CONTENT
    assert server.starts == [1_000_000, 1_000_000]


def test_a_connection_that_is_refused_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/model.pth"
    with pytest.raises(DownloadError, match=rf"^{url} cannot be reached: Connection refused$"):
        download(url, tmp_path / "model.pth", CHECKSUM, silent)
    assert list(tmp_path.iterdir()) == []


def test_a_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/model.pth"
        with pytest.raises(DownloadError, match=r"cannot be reached: it was silent for 0\.2 s"):
            download(url, tmp_path / "model.pth", CHECKSUM, silent)


def test_of_two_the_second_waits_for_the_first(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_POLL_S", 0.01)
    path, holds, waits = tmp_path / "model.pth", threading.Event(), threading.Event()

    def first(_done: int, _total: int | None) -> None:
        holds.set()
        assert waits.wait(10)

    other = threading.Thread(target=download, args=(server.url, path, CHECKSUM, first))
    other.start()
    assert holds.wait(10)
    download(server.url, path, CHECKSUM, lambda *_: waits.set())
    other.join()
    assert path.read_bytes() == CONTENT
    assert server.starts == [0]
    assert [each.name for each in tmp_path.iterdir()] == ["model.pth"]


def test_a_file_that_cannot_be_written_is_named(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(OSError, match="folder"):
        download(server.url, tmp_path / "folder" / "model.pth", CHECKSUM, silent)


def test_a_bar_shows_all_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    with bar() as report:
        report(1_000_000, 2_000_000)
        report(2_000_000, 2_000_000)
    assert "100%" in capsys.readouterr().err
    with bar():
        pass
    assert capsys.readouterr().err == ""

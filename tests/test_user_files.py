from __future__ import annotations

import os

import pytest

from detres.user_files import (
    JsonError,
    TextError,
    expanded,
    fault_of,
    is_hidden,
    read_json,
    read_text,
    require_file,
    tidied,
)

TEXT = "é: [猫]\n"


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-32"],
)
def test_text_with_or_without_a_mark(tmp_path, encoding):
    path = tmp_path / "a"
    path.write_bytes(TEXT.encode(encoding))
    assert read_text(path) == TEXT


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_zero_bytes_tell_an_encoding_without_a_mark(tmp_path, encoding):
    path = tmp_path / "a"
    path.write_bytes(("a" + TEXT).encode(encoding))
    assert read_text(path) == "a" + TEXT


def test_big_endian_marks(tmp_path):
    path = tmp_path / "a"
    for mark, encoding in ((b"\xfe\xff", "utf-16-be"), (b"\0\0\xfe\xff", "utf-32-be")):
        path.write_bytes(mark + TEXT.encode(encoding))
        assert read_text(path) == TEXT


@pytest.mark.parametrize("length", [0, 1, 2, 3])
def test_short_files_are_text(tmp_path, length):
    path = tmp_path / "a"
    path.write_text("abc"[:length])
    assert read_text(path) == "abc"[:length]


def test_another_encoding_is_named_with_its_byte(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes(b"dog\ncaf\xe9\n")
    with pytest.raises(
        TextError, match=r"list .*names\.txt: byte 0xe9 at offset 7 \(line 2\) is not UTF-8; save"
    ):
        read_text(path, "list")
    path.write_bytes(b"\xff\xfea\0b")  # half a character at its end
    with pytest.raises(TextError, match=r"byte 0x62 at offset 4 \(line 1\) is not UTF-16-LE"):
        read_text(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_json_in_any_encoding_of_text(tmp_path, encoding):
    path = tmp_path / "a.json"
    path.write_text('{"猫": [1, 2.5]}', encoding=encoding)
    assert read_json(path) == {"猫": [1, 2.5]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("9" * 5000, "is not JSON: .*has 5000 digits$"),
        ("", "is not JSON: Expecting value"),
        ("{}{}", "is not JSON: Extra data"),
        ('"\x1b"', "is not JSON: Invalid control character"),
    ],
)
def test_what_is_no_json_is_named_in_a_line(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(JsonError, match=message) as caught:
        read_json(path, "results")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"no results .*gone\.json"):
        read_json(tmp_path / "gone.json", "results")


def test_what_is_no_file_is_told_without_opening_it(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("gone")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("x")
    (tmp_path / "good").symlink_to("file")
    assert fault_of(tmp_path / "file") is None
    assert fault_of(tmp_path / "good") is None
    for name, fault in {
        "folder": "is a folder, expected a file",
        "fifo": "is a FIFO, expected a file",
        "link": "is a link to gone, which is not there",
        "gone": "does not exist",
        "file/below": "does not exist",
        "x\0y": "does not exist",
    }.items():
        assert fault_of(os.path.join(tmp_path, name)) == fault
    assert fault_of(tmp_path / "loop").startswith("cannot be looked up")
    assert fault_of("/dev/null") == "is a device, expected a file"


def test_a_required_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^no annotation file \S+gone$"):
        require_file(tmp_path / "gone", "annotation file")
    with pytest.raises(FileNotFoundError, match=r"^annotation file \S+ is a folder, expected"):
        require_file(tmp_path, "annotation file")


def test_home_is_expanded_at_the_beginning_only(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert expanded("~/data") == "/home/me/data"
    assert expanded("~") == "/home/me"
    assert expanded("a/~/b") == "a/~/b"
    assert expanded("https://host/~me/x") == "https://host/~me/x"


def test_a_path_is_tidied_only_where_it_stays_the_same_file(tmp_path):
    (tmp_path / "far" / "inside").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/inside")
    assert tidied(tmp_path / "far" / ".." / "far") == tmp_path / "far"
    through = tmp_path / "link" / ".."  # that is far, not tmp_path
    assert tidied(through) == through
    assert tidied(tmp_path / "gone" / ".." / "x") == tmp_path / "gone" / ".." / "x"


@pytest.mark.parametrize(
    ("name", "expected"), [("._a.xml", True), (".git", True), ("a.xml", False), ("a._b", False)]
)
def test_names_that_start_with_a_dot_are_hidden(name, expected):
    assert is_hidden(name) is expected

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from detres.images.locate import OutsideFolderError, Spellings, locate


def folder_of(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_names_as_they_are_written(tmp_path):
    folder = folder_of(tmp_path, "b.jpg", "sub/a.jpg")
    files, notes = locate(folder, ["sub/a.jpg", "./b.jpg"], source="x.json")
    assert files == [f"{folder}/sub/a.jpg", f"{folder}/b.jpg"]
    assert notes == []
    assert locate(folder, [], source="x.json") == ([], [])


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("sub\\a.jpg", "sub/a.jpg"),
        (".\\sub\\a.jpg", "sub/a.jpg"),
        ("my%20photo.jpg", "my photo.jpg"),
        ("SUB/A.JPG", "sub/a.jpg"),
        (unicodedata.normalize("NFD", "café.jpg"), unicodedata.normalize("NFC", "café.jpg")),
        (unicodedata.normalize("NFC", "café.jpg"), unicodedata.normalize("NFD", "café.jpg")),
        ("Sub\\My%20Caf\u00e9.JPG", "sub/my cafe\u0301.jpg"),
    ],
)
def test_other_spellings_are_found_and_said(tmp_path, written, there):
    folder = folder_of(tmp_path, there, "other.jpg")
    files, notes = locate(folder, ["other.jpg", written], source="x.json")
    assert files == [f"{folder}/other.jpg", f"{folder}/{there}"]
    (note,) = notes
    assert note.startswith("1 of 2 image files are spelt otherwise than they are listed")
    assert repr(there) in note


def test_a_spelling_of_two_files_or_of_one_that_is_taken_is_not_guessed(tmp_path):
    folder = folder_of(tmp_path, "a.jpg", "A.jpg")
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images of x\.json are not in"):
        locate(folder, ["a.JPG"], source="x.json")
    (tmp_path / "A.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images .*: A\.JPG$"):
        locate(folder, ["a.jpg", "A.JPG"], source="x.json")
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images .*: a\.JPG$"):
        locate(folder, ["A.JPG", "a.JPG"], source="x.json")


def test_the_nearest_name_is_one_in_another_folder_first(tmp_path):
    folder = folder_of(tmp_path, "train/0001.jpg", "0002.jpg", "._0001.jpg", ".trash/0001.jpg")
    with pytest.raises(FileNotFoundError, match=r"nearest to the first is train/0001\.jpg$"):
        locate(folder, ["images/0001.jpg"], source="x.json")
    with pytest.raises(FileNotFoundError, match=r"nearest to the first is 0002\.jpg$"):
        locate(folder, ["0003.jpg"], source="x.json")
    with pytest.raises(FileNotFoundError, match=r": zebra\.png$"):
        locate(folder, ["zebra.png"], source="x.json")
    assert Spellings([]).nearest("a") is None


@pytest.mark.parametrize(
    "name", ["../x.jpg", "/etc/passwd", "a/../../x.jpg", "..\\x.jpg", "C:\\x.jpg", "c:/x.jpg"]
)
def test_a_name_that_leads_out_is_refused(tmp_path, name):
    folder = folder_of(tmp_path / "images", "a.jpg")
    (tmp_path / "x.jpg").touch()
    with pytest.raises(OutsideFolderError, match=r"x\.json: file_name .* lies outside the image"):
        locate(folder, ["a.jpg", name], source="x.json")


def test_a_name_that_leads_out_may_be_allowed(tmp_path):
    folder = folder_of(tmp_path / "images", "a.jpg")
    (tmp_path / "x.jpg").touch()
    names = ["../x.jpg", str(tmp_path / "x.jpg"), "sub/../a.jpg"]
    files, _ = locate(folder, names, source="x.json", outside="allow")
    assert files == [f"{tmp_path}/x.jpg", f"{tmp_path}/x.jpg", f"{folder}/a.jpg"]


def test_what_is_no_file_is_refused_before_it_is_opened(tmp_path):
    folder = folder_of(tmp_path, "a.jpg")
    (tmp_path / "link.jpg").symlink_to("gone.jpg")
    (tmp_path / "dir.jpg").mkdir()
    os.mkfifo(tmp_path / "fifo.jpg")
    for name, fault in {
        "link.jpg": "is a link to gone.jpg, which is not there",
        "dir.jpg": "is a folder, expected a file",
        "fifo.jpg": "is a FIFO, expected a file",
    }.items():
        with pytest.raises(FileNotFoundError) as caught:
            locate(folder, ["a.jpg", name], source="x.json")
        assert str(caught.value) == (
            f"x.json: image {tmp_path}/{name} {fault} (1 of 2 images cannot be used)"
        )


def test_a_folder_that_is_not_there(tmp_path):
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(FileNotFoundError, match=r"image folder \S+link of x\.json is a link to"):
        locate(tmp_path / "link", [], source="x.json")
    with pytest.raises(FileNotFoundError, match=r"does not exist or is not a folder"):
        locate(tmp_path / "gone", [], source="x.json")

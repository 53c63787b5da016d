"""Images as a user gives them: which forms are one, which are several, and what they hold."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from detres.images.given import find_images, is_one, left_out, pictures_of

PIXELS = np.zeros((4, 5, 3), np.uint8)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `set` with b.png and a.png, and a list of them, in the working directory."""
    monkeypatch.chdir(tmp_path)
    Path("set").mkdir()
    for name in ("b.png", "a.png"):
        Image.fromarray(PIXELS).save(f"set/{name}")
    Path("list.txt").write_text("set/b.png\n\n  set/a.png \nset/b.png\n")
    return Path("set")


A, B = Path("set/a.png"), Path("set/b.png")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("set/a.png", ["set/a.png"]),
        (A, [A]),
        ("gone.png", ["gone.png"]),
        ("gone.txt", ["gone.txt"]),
        ("a" * 5000, ["a" * 5000]),
        ("zero\0byte", ["zero\0byte"]),
        (PIXELS, [PIXELS]),
        (PIXELS[:, :, 0], [PIXELS[:, :, 0]]),
        (None, [None]),
        (7, [7]),
    ],
)
def test_what_is_one_image(given: object, expected: list) -> None:
    assert is_one(given)
    (found,) = pictures_of(given)
    assert found is expected[0] or np.array_equal(found, expected[0])


@pytest.mark.usefixtures("folder")
def test_a_picture_of_pillow_is_one() -> None:
    with Image.open(A) as image:
        assert is_one(image)
        assert pictures_of(image) == [image]
        assert pictures_of([image, "b.png"]) == [image, "b.png"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("set", [A, B]),
        (Path("set"), [A, B]),
        ("list.txt", [B, A]),
        ([], []),
        (["set/a.png"], ["set/a.png"]),
        ([A, A], [A, A]),
        (("set/b.png", "set", "set/b.png"), ["set/b.png", A, B, "set/b.png"]),
        (["list.txt", "gone.png"], [B, A, "gone.png"]),
        (np.stack([PIXELS, PIXELS + 1]), [PIXELS, PIXELS + 1]),
        (np.zeros((0, 4, 5, 3), np.uint8), []),
    ],
)
def test_what_are_several_images(given: object, expected: list) -> None:
    assert not is_one(given)
    found = pictures_of(given)
    assert len(found) == len(expected)
    assert all(np.array_equal(mine, its) for mine, its in zip(found, expected, strict=True))


@pytest.mark.usefixtures("folder")
def test_an_iterator_is_several_images() -> None:
    assert not is_one(iter(["a"]))
    assert pictures_of(str(path) for path in (A, B)) == [str(A), str(B)]


def test_a_list_names_files_of_its_own_folder_first_then_of_the_working_directory(
    folder: Path,
) -> None:
    Path("a.png").write_bytes(b"another")
    (folder / "list.TXT").write_text("a.png\nlist.txt\n", encoding="utf-16")
    assert find_images([folder / "list.TXT"]) == [A, Path("list.txt")]
    (folder / "absolute.txt").write_text(f"{B.resolve()}\r\nset/a.png\r\n")
    assert find_images([folder / "absolute.txt"]) == [B.resolve(), A]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"set/a.png\n\ngone.png\n", r"list\.txt: line 3: no image 'gone\.png' in \. or in the"),
        (b"set/a.png 3\n", r"list\.txt: line 1: no image 'set/a\.png 3'"),
        (b"set\n", r"list\.txt: line 1: no image 'set'"),
        (b"", r"list of images list\.txt names none"),
        (b" \n\n", r"list of images list\.txt names none"),
        (b"caf\xe9.png", r"list of images list\.txt: byte 0xe9"),
    ],
)
def test_what_a_list_names_wrongly_is_said_by_line(text: bytes, message: str) -> None:
    Path("list.txt").write_bytes(text)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        pictures_of("list.txt")


def test_a_dangling_link_in_a_list_is_left_to_whoever_reads_it(folder: Path) -> None:
    (folder / "link.png").symlink_to("gone.png")
    Path("list.txt").write_text("set/link.png")
    assert find_images([Path("list.txt")]) == [Path("set/link.png")]


def test_image_files_of_other_formats_in_a_folder_are_left_out(folder: Path) -> None:
    for name in ("c.heic", "._d.heic", "e.AVIF"):
        (folder / name).write_bytes(b"")
    assert left_out([folder, A]) == [folder / "c.heic", folder / "e.AVIF"]
    assert find_images([folder]) == [A, B]


def test_images_are_found_in_the_order_named_and_sorted_in_a_folder(tmp_path: Path) -> None:
    for name in ("set/b.JPG", "set/a.png", "set/c.webp", "set/deep/d.png", "z.png", "odd.xyz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("not opened")
    (tmp_path / "set" / "notes.txt").write_text("no image")
    inside = [tmp_path / "set" / name for name in ("a.png", "b.JPG", "c.webp")]
    assert find_images([tmp_path / "set"]) == inside
    z, odd = tmp_path / "z.png", tmp_path / "odd.xyz"
    assert find_images([z, tmp_path / "set", odd]) == [z, *inside, odd]
    assert find_images(iter([z])) == [z]


def test_an_image_named_twice_is_found_once_at_its_first_place(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_text("not opened")
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    assert find_images([b, tmp_path, b, a]) == [b, a]


def test_nothing_named_is_nothing_found() -> None:
    assert find_images([]) == []


def test_a_path_that_is_not_there_and_a_folder_without_images_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no image or folder \S*gone\.png"):
        find_images([tmp_path / "gone.png"])
    (tmp_path / "set" / "deep").mkdir(parents=True)
    (tmp_path / "set" / "deep" / "a.png").write_text("not searched")
    where = re.escape(str(tmp_path / "set"))
    with pytest.raises(ValueError, match=rf"no image \(.*\) in folder {where}; folders in "):
        find_images([tmp_path / "set"])


def test_folders_that_have_images_are_named_where_the_one_given_has_none(tmp_path: Path) -> None:
    for place in ("b", "a/deep", "c c", "d", ".e"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "x.png").touch()
    (tmp_path / "empty").mkdir()
    for kept in ("d", "b"):
        with pytest.raises(ValueError, match="are not searched, give them: ") as raised:
            find_images([tmp_path])
        named = str(raised.value).partition("give them: ")[2]
        assert named.endswith(" ...") is (kept == "d")
        assert "empty" not in named
        (tmp_path / kept / "x.png").unlink()
    assert named == f"{tmp_path}/a/deep {tmp_path}/b '{tmp_path}/c c'"
    with pytest.raises(ValueError, match=r"in folder \S*empty$"):
        find_images([tmp_path / "empty"])

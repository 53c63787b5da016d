"""Which images a run has learned from, told by the content of their files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from detres.detection.data.learnt_images import LearntImages

LARGE = 100_000
"""Bytes of a file that is told by its two ends and its middle."""


def written(folder: Path, **contents: bytes) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name}.jpg").write_bytes(content)
    return [str(folder / f"{name}.jpg") for name in contents]


def test_files_are_known_by_their_content_wherever_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    contents = {name: rng.bytes(size) for name, size in (("a", 10), ("b", 49_152), ("c", LARGE))}
    train = written(tmp_path / "mine", **contents)
    val = written(tmp_path / "mine", d=rng.bytes(300))
    learnt = LearntImages.of(train, val)
    assert learnt.seen([*train, *val]).tolist() == [True, True, True, False]
    moved = [str(shutil.copy(file, tmp_path / f"{n}.png")) for n, file in enumerate(train)]
    assert learnt.seen(moved).all()
    others = written(tmp_path / "others", **{name: rng.bytes(LARGE) for name in "abcd"})
    assert not learnt.seen(others).any()


@pytest.mark.parametrize("place", [0, 20_000, 49_152, 50_000, LARGE - 1])
def test_a_byte_at_either_end_or_in_the_middle_makes_another_file(
    tmp_path: Path, place: int
) -> None:
    content = bytearray(np.random.default_rng(1).bytes(LARGE))
    (file,) = written(tmp_path, a=bytes(content))
    learnt = LearntImages.of([file], [])
    content[place] ^= 1
    (other,) = written(tmp_path / "other", a=bytes(content))
    # the pieces are 0..16383, 41808..58191 and 83616..99999
    assert learnt.seen([other]).tolist() == [place == 20_000]


def test_an_appended_byte_makes_another_file(tmp_path: Path) -> None:
    zeros = bytes(LARGE)
    learnt = LearntImages.of(written(tmp_path, a=zeros), [])
    assert not learnt.seen(written(tmp_path / "other", a=zeros + b"\0")).any()


def test_a_picture_in_both_parts_stays_in_both(tmp_path: Path) -> None:
    """As in the run's own evaluation; under a third name it was learned from."""
    train, val = written(tmp_path, a=b"same"), written(tmp_path, b=b"same", c=b"other")
    learnt = LearntImages.of(train, val)
    assert learnt.seen([*train, *val]).tolist() == [True, False, False]
    assert learnt.seen(written(tmp_path / "moved", z=b"same")).tolist() == [True]


def test_files_that_are_not_there_are_none_of_them(tmp_path: Path) -> None:
    learnt = LearntImages.of([str(tmp_path / "gone.jpg")], [])
    assert learnt.seen([str(tmp_path / "another.jpg")]).tolist() == [False]
    assert learnt.seen([]).shape == (0,)
    assert not LearntImages.of([], []).seen(written(tmp_path, a=b"")).any()


def test_it_is_written_as_plain_values(tmp_path: Path) -> None:
    learnt = LearntImages.of(written(tmp_path, a=b"1", b=b"2"), written(tmp_path, c=b"3"))
    tree = learnt.to_dict()
    assert LearntImages.from_dict(tree) == learnt
    assert [len(part) for part in tree.values()] == [2, 1]
    for bad in ([], {}, {"trained": []}, {"trained": [1], "held_out": []}, {"trained": "ab"}):
        with pytest.raises((TypeError, ValueError)):
            LearntImages.from_dict(bad)

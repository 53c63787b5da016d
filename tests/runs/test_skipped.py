"""skipped.txt: each image that could not be read, once, by the first process."""

from __future__ import annotations

from pathlib import Path

import pytest

from detres.engine.distributed import Group
from detres.runs.skipped import NAMED, SkippedImages


class OneOfTwo(Group):
    """One of two processes, the other one of which has not read `others`."""

    size = 2

    def __init__(self, rank: int, others: list[str]) -> None:
        super().__init__()
        self.rank, self.others = rank, others

    def gather(self, value: list[str]) -> list[list[str]]:
        return [value, self.others] if self.rank == 0 else [self.others, value]


def test_one_process_lists_at_once_each_name_once_and_goes_on_with_the_file(tmp_path: Path) -> None:
    path, said = tmp_path / "skipped.txt", []
    skipped = SkippedImages(path, Group())
    skipped.add(["b.jpg", "a.jpg"], said.append)
    skipped.add(["a.jpg"], said.append)
    assert path.read_text() == "a.jpg\nb.jpg\n"
    SkippedImages(path, Group()).add(["c.jpg", "b.jpg"], said.append)
    assert path.read_text() == "a.jpg\nb.jpg\nc.jpg\n"
    assert said == [
        f"damaged, skipped: b.jpg, a.jpg (2 so far, listed in {path})",
        f"damaged, skipped: c.jpg (3 so far, listed in {path})",
    ]


@pytest.mark.parametrize(("rank", "written"), [(0, True), (1, False)])
def test_of_two_processes_the_first_lists_for_both_when_they_are_together(
    tmp_path: Path, rank: int, written: bool
) -> None:
    path, said = tmp_path / "skipped.txt", []
    skipped = SkippedImages(path, OneOfTwo(rank, ["z.jpg"]))
    skipped.add(["a.jpg"], said.append)
    assert not path.exists()
    assert said == []
    skipped.list_of_all(said.append)
    assert path.exists() is written
    if written:
        assert path.read_text() == "a.jpg\nz.jpg\n"
    skipped.list_of_all(said.append)
    assert len(said) == 2 * written


def test_the_first_few_are_named(tmp_path: Path) -> None:
    for more, words in ((0, ""), (1, " and 1 more")):
        said: list[str] = []
        names = [f"{n}.jpg" for n in range(NAMED + more)]
        SkippedImages(tmp_path / f"{more}.txt", Group()).add(names, said.append)
        assert said[0].startswith(f"damaged, skipped: {', '.join(names[:NAMED])}{words} (")

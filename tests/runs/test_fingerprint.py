"""What tells other data from those of a run, and what does not."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
import torch

from detres.runs.fingerprint import Fingerprint, file_hashes, hashes_of


def fingerprint(records: list[str], files: list[str] | None = None) -> Fingerprint:
    hashes = hashes_of((record,) for record in records)
    other = hashes if files is None else hashes_of((file,) for file in files)
    return Fingerprint(hashes, other, lambda row: f"image {records[row]}")


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (["a", "b", "c", "d"], None),
        (["a", "x", "c", "y"], "2 of 4 records differ, the first is image x"),
        (["a", "c", "b", "d"], "the same 4 records in another order, from image c on"),
        (["a", "b", "c"], "4 records then, 3 now"),
        (["a", "c", "d"], "4 records then, 3 now, the first that differs is image c"),
        (list("abcde"), "4 records then, 5 now, the first that differs is image e"),
        ([], "4 records then, 0 now"),
    ],
)
def test_what_changed_is_said(now, said):
    assert fingerprint(now).what_changed(fingerprint(list("abcd")).state()) == said


def test_files_count_where_the_records_are_the_same():
    before = fingerprint(["a", "b"], ["1", "2"]).state()
    assert fingerprint(["a", "b"], ["1", "3"]).what_changed(before) == (
        "the files of 1 of 2 records have another name or size, the first is image b"
    )


def test_many_are_counted_in_thousands():
    names = [str(number) for number in range(5011)]
    before = fingerprint(names).state()
    names[7] = names[9] = "other"
    assert fingerprint(names).what_changed(before) == (
        "2 of 5,011 records differ, the first is image other"
    )


@pytest.mark.parametrize(
    "saved",
    [
        {"records": torch.zeros(2, dtype=torch.int64), "files": torch.zeros(2)},
        {"records": torch.zeros(2, 1, dtype=torch.int64), "files": torch.zeros(2, 1).long()},
        {"records": torch.zeros(2, dtype=torch.int64), "files": torch.zeros(3).long()},
    ],
)
def test_what_is_no_fingerprint_is_refused(saved):
    with pytest.raises(ValueError, match="two lists of hashes"):
        fingerprint(["a", "b"]).what_changed(saved)


def test_parts_do_not_run_into_each_other():
    hashes = hashes_of([("ab", "c"), ("a", "bc"), ("abc",), (b"ab", "c")]).tolist()
    assert len(set(hashes)) == 3
    assert hashes[0] == hashes[3]
    assert hashes_of([]).shape == (0,)


def test_a_hash_is_that_of_every_machine_and_day():
    parts = b"\2\0\0\0\0\0\0\0ab" + b"\1\0\0\0\0\0\0\0c"
    digest = hashlib.blake2b(parts, digest_size=8).digest()
    assert struct.unpack("<q", digest) == (652078932630809789,)
    assert hashes_of([("ab", "c")]).tolist() == [652078932630809789]


def write(folder: Path, sizes: dict[str, int]) -> list[str]:
    for name, size in sizes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(bytes(size))
    return [str(folder / name) for name in sizes]


def test_files_are_told_by_name_and_size_and_not_by_where_they_are(tmp_path):
    sizes = {"train/a.jpg": 3, "train/b.jpg": 4, "more/a.jpg": 3}
    one, moved = (file_hashes(write(tmp_path / place, sizes)) for place in ("one", "x/y"))
    assert torch.equal(one, moved)
    assert len(set(one.tolist())) == 3
    larger = file_hashes(write(tmp_path / "one", sizes | {"train/b.jpg": 5}))
    assert (larger != one).tolist() == [False, True, False]
    renamed = file_hashes(
        write(tmp_path / "z", {"train/c.jpg": 3, "train/b.jpg": 4, "more/a.jpg": 3})
    )
    assert (renamed != one).tolist() == [True, False, False]
    assert file_hashes([]).shape == (0,)
    assert file_hashes([str(tmp_path / "gone.jpg")]).shape == (1,)

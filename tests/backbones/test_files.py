from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from backbones import files
from backbones.files import (
    DIGEST,
    DamagedFileError,
    read_safetensors,
    read_safetensors_metadata,
    replacing,
    write_safetensors,
)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_whole_and_its_folder_is_made(tmp_path):
    path = tmp_path / "deep" / "er" / "w.txt"
    with replacing(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_text("first")
        assert not path.exists()
    assert path.read_text() == "first"
    with replacing(str(path)) as temporary:
        temporary.write_text("second")
        assert path.read_text() == "first"
    assert path.read_text() == "second"
    assert names_in(path.parent) == ["w.txt"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_after_an_error_the_old_file_is_as_it_was(tmp_path, error):
    path = tmp_path / "w.txt"
    path.write_text("old")

    def stop_half_way():
        with replacing(path) as temporary:
            temporary.write_text("ha")
            raise error("stop")

    with pytest.raises(error, match="stop"):
        stop_half_way()
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["w.txt"]


def test_a_block_that_writes_nothing_is_an_error_and_keeps_the_old_file(tmp_path):
    path = tmp_path / "w.txt"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_text() == "old"


def test_bytes_are_flushed_before_they_take_the_name(tmp_path, monkeypatch):
    path, done = tmp_path / "w.txt", []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda file: (done.append("fsync"), fsync(file)))
    monkeypatch.setattr(files.os, "replace", lambda *to: (done.append("replace"), replace(*to)))
    with replacing(path) as temporary:
        temporary.write_text("text")
    assert done == ["fsync", "replace"]


def test_tensors_come_back_equal_and_contiguous_with_their_metadata(tmp_path):
    shared = torch.randn(6)
    tensors = {
        "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "turned": torch.randn(3, 4).t(),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "scalar": torch.tensor(9),
        "empty": torch.zeros(0, 4),
        "same": shared,
        "view": shared[1:3],
        "half": torch.randn(3).bfloat16(),
    }
    path = tmp_path / "run" / "w.safetensors"
    write_safetensors(path, tensors, {"note": "ä"})
    read = load_file(path)
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].is_contiguous()
        assert torch.equal(read[name], tensor.detach())
    with safe_open(path, framework="np") as witness:
        assert witness.metadata() == {"note": "ä", DIGEST: ANY}
        assert np.array_equal(witness.get_tensor("last"), tensors["last"].numpy())
    assert tensors["last"].is_contiguous(memory_format=torch.channels_last)
    assert names_in(path.parent) == ["w.safetensors"]


def test_no_tensors_make_a_file_of_metadata_alone(tmp_path):
    write_safetensors(tmp_path / "w.safetensors", {}, {"note": "kept"})
    assert load_file(tmp_path / "w.safetensors") == {}
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        assert file.metadata() == {"note": "kept", DIGEST: ANY}


def test_metadata_that_are_no_text_leave_the_old_weights(tmp_path):
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"w": torch.ones(2)}, {})
    with pytest.raises(Exception, match="str"):
        write_safetensors(path, {"w": torch.zeros(2)}, {"step": 3})
    assert load_file(path)["w"].tolist() == [1.0, 1.0]
    assert names_in(tmp_path) == ["w.safetensors"]


@pytest.mark.skipif(os.name != "posix", reason="file modes")
def test_a_file_can_be_read_by_whom_other_files_can(tmp_path):
    (tmp_path / "other").touch()
    write_safetensors(tmp_path / "own.safetensors", {"w": torch.ones(1)}, {})
    assert (tmp_path / "own.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_what_another_program_wrote_is_read(tmp_path):
    path = tmp_path / "w.safetensors"
    tensors = {"b": torch.randn(2, 3), "a": torch.tensor(5)}
    save_file(tensors, path, {"note": "kept"})
    read, metadata = read_safetensors(path)
    assert set(read) == set(tensors)
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())
    assert metadata == read_safetensors_metadata(path) == {"note": "kept"}
    save_file({}, path)
    assert read_safetensors(path) == ({}, {})
    assert read_safetensors_metadata(path) == {}


@pytest.mark.parametrize("read", [read_safetensors, read_safetensors_metadata])
def test_a_missing_and_a_damaged_file_cannot_be_read(tmp_path, read):
    with pytest.raises(OSError, match="gone"):
        read(tmp_path / "gone.safetensors")
    path = tmp_path / "w.safetensors"
    write_safetensors(path, {"w": torch.ones(100)}, {})
    os.truncate(path, 200)
    with pytest.raises(DamagedFileError, match=r"w\.safetensors is damaged"):
        read(path)
    path.write_text("no weights")
    with pytest.raises(DamagedFileError, match=r"w\.safetensors is damaged"):
        read(path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is full")
@pytest.mark.parametrize("existing", [False, True])
def test_a_file_that_cannot_be_written_is_named_and_no_temporary_one(tmp_path, existing):
    path = tmp_path / "a.safetensors"
    if existing:
        path.write_bytes(b"old")

    def write(into: Path) -> None:
        if not path.is_dir():
            into.symlink_to("/dev/full")
        into.write_bytes(b"new")

    with pytest.raises(OSError, match="No space left") as error, replacing(path) as temporary:
        write(temporary)
    assert error.value.filename == str(path)
    assert [each.name for each in tmp_path.iterdir()] == ["a.safetensors"] * existing
    path.unlink(missing_ok=True)
    path.mkdir()
    with pytest.raises(IsADirectoryError) as error, replacing(path) as temporary:
        write(temporary)
    assert error.value.filename == str(path)

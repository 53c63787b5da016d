"""Files of weights and text: what is written is what is read, and a failure leaves the old file."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from detres.files import (
    WHAT_FILES_HOLD,
    CheckpointError,
    TakenFolderError,
    cache_folder,
    first_line,
    has_metadata,
    load_model_state,
    load_weights,
    mapping,
    metadata_field,
    replacing,
    require_free_folder,
    require_metadata,
    write_safetensors,
    write_text,
    writing_folder,
)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_replacing_gives_the_new_file_the_permissions_of_any_other(tmp_path):
    (tmp_path / "plain").write_text("x")
    write_text(tmp_path / "new", "é\n")
    assert (tmp_path / "new").read_text(encoding="utf-8") == "é\n"
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_nothing_appears_when_the_first_write_fails(tmp_path):
    def stop_half_way() -> None:
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop_half_way()
    assert files_in(tmp_path) == []


def test_weights_come_back_with_their_metadata_and_contiguous(tmp_path):
    shared = torch.randn(5)
    tensors = {
        "nhwc": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": nn.Parameter(torch.randn(3)),
        "count": torch.tensor(9),
        "empty": torch.zeros(0, 4),
        "view": shared[1:3],
        "same": shared,
        "half": torch.randn(3).bfloat16(),
    }
    write_safetensors(tmp_path / "w.safetensors", tensors, {"model": "{}", "classes": "ä"})
    read, metadata = load_weights(tmp_path / "w.safetensors")
    assert metadata == {"model": "{}", "classes": "ä", "sha256": ANY}
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor.detach())
    with safe_open(tmp_path / "w.safetensors", framework="np") as witness:
        assert np.array_equal(witness.get_tensor("nhwc"), tensors["nhwc"].numpy())
    assert tensors["nhwc"].is_contiguous(memory_format=torch.channels_last)


def test_weights_without_our_metadata(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "w.safetensors")
    tensors, metadata = load_weights(tmp_path / "w.safetensors")
    assert list(tensors) == ["w"]
    assert metadata == {}
    with pytest.raises(
        CheckpointError,
        match=r"w\.safetensors holds weights but not what a classifier needs beside them: config, "
        r"classes, step; a detector's weights are best\.safetensors of its run",
    ):
        require_metadata(metadata, "a classifier", tmp_path / "w.safetensors")


@pytest.mark.parametrize("wanted", list(WHAT_FILES_HOLD))
def test_weights_of_another_kind_are_called_what_they_are(wanted):
    for other, keys in WHAT_FILES_HOLD.items():
        metadata = dict.fromkeys(keys, "")
        if other == wanted:
            require_metadata(metadata, wanted, Path("w"))
            continue
        with pytest.raises(
            CheckpointError, match=rf"w holds the weights of {other}, not of {wanted}; a det"
        ):
            require_metadata(metadata, wanted, Path("w"))


def test_metadata_that_cannot_be_read_are_named():
    assert metadata_field({"a": "[1]"}, "a", Path("w"), list) == [1]
    assert metadata_field({"a": '{"b": 1}'}, "a", Path("w"), mapping) == {"b": 1}
    for text in ("[]", '[["b", 1]]', "null", '""'):
        with pytest.raises(CheckpointError, match=r"metadata 'a' .*expected an object"):
            metadata_field({"a": text}, "a", Path("w"), mapping)
    for text in ("{", "[" * 100_000, '"1"x', "1"):
        with pytest.raises(CheckpointError, match="w is damaged or was edited: its metadata 'a'"):
            metadata_field({"a": text}, "a", Path("w"), list)


def test_weights_files_that_cannot_be_read(tmp_path):
    write_safetensors(tmp_path / "w.safetensors", {"w": torch.ones(100)}, {})
    os.truncate(tmp_path / "w.safetensors", 200)
    with pytest.raises(CheckpointError, match=r"w\.safetensors is damaged"):
        load_weights(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"is a folder; a detector's weights are best"):
        load_weights(tmp_path)
    write_safetensors(tmp_path / "run" / "best.safetensors", {}, {})
    with pytest.raises(CheckpointError, match=r"run is a folder; give \S*run\Wbest\.safetensors"):
        load_weights(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"no weights file at \S*gone$"):
        load_weights(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"no weights file at .*v1: that is the name of"):
        load_weights(Path("torchvision/resnet50.v1"))
    torch.save({"w": torch.ones(1)}, tmp_path / "last.pt")
    with pytest.raises(
        CheckpointError, match=r"last\.pt is a file of torch\.save, not a run.* `convert` makes"
    ):
        load_weights(tmp_path / "last.pt")


def test_weights_that_are_not_numbers_of_the_model_s_kind_change_nothing():
    model = nn.BatchNorm1d(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, wrong, message in (
        ("weight", torch.tensor([1.0, float("nan")]), "weight has values that are NaN or infinite"),
        ("weight", torch.tensor([1, 2]), "weight is torch.int64, expected torch.float32"),
        ("weight", torch.ones(2).to(torch.float8_e4m3fn), "weight is torch.float8_e4m3fn"),
        ("bias", torch.ones(2, dtype=torch.complex64), "bias is torch.complex64"),
        ("num_batches_tracked", torch.tensor(1.0), "num_batches_tracked is torch.float32"),
        ("running_var", torch.full((2,), 1e300, dtype=torch.float64), "running_var has values"),
    ):
        with pytest.raises(CheckpointError, match=f"w: {message}"):
            load_model_state(model, {**before, name: wrong}, Path("w"))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    half = {name: tensor.half() if tensor.dim() else tensor for name, tensor in before.items()}
    load_model_state(model, half, Path("w"))


def test_a_model_takes_its_own_weights_and_keeps_its_memory_format():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(
        memory_format=torch.channels_last
    )
    tensors = {
        name: torch.full_like(tensor, 2, memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
    }
    load_model_state(model, tensors, Path("w"))
    assert all((tensor == 2).all() for tensor in model.state_dict().values())
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_weights_of_another_architecture_are_listed_and_change_nothing():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = {
        "0.weight": torch.zeros(3, 2),
        "0.bias": torch.zeros(5),
        "1.weight": torch.zeros(1, 3),
        "head": torch.zeros(1),
    }
    with pytest.raises(CheckpointError) as caught:
        load_model_state(model, tensors, Path("other.safetensors"))
    assert str(caught.value).splitlines() == [
        "other.safetensors holds weights of another architecture:",
        "  missing: 1.bias; unexpected: head; shape of 0.bias: file (5,), model (3,)",
    ]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(CheckpointError, match="and 96 more"):
        load_model_state(nn.ModuleList(nn.Linear(1, 1) for _ in range(50)), {}, Path("w"))


def test_an_error_while_replacing_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "file", "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "file", "\ud800")
    assert (tmp_path / "file").read_text() == "old"
    assert files_in(tmp_path) == ["file"]
    write_text(tmp_path / "new" / "folder" / "file", "")
    assert files_in(tmp_path / "new" / "folder") == ["file"]


def test_metadata_are_looked_for_without_an_error(tmp_path):
    write_safetensors(tmp_path / "w.safetensors", {"w": torch.ones(1)}, {"a": "1", "b": ""})
    assert has_metadata(tmp_path / "w.safetensors", ("a", "b"))
    assert has_metadata(tmp_path / "w.safetensors", ())
    assert not has_metadata(tmp_path / "w.safetensors", ("a", "c"))
    save_file({"w": torch.ones(1)}, tmp_path / "bare.safetensors")
    assert not has_metadata(tmp_path / "bare.safetensors", ("a",))
    (tmp_path / "text").write_text("hello")
    for name in ("text", "absent", "."):
        assert not has_metadata(tmp_path / name, ())


def test_the_cache_folder_is_the_environment_s_or_below_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("DETRES_CACHE", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache"
    assert not cache_folder().exists()
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv("DETRES_CACHE", "")
    assert cache_folder() == tmp_path / ".cache" / "detres"
    monkeypatch.delenv("DETRES_CACHE")
    assert cache_folder() == tmp_path / ".cache" / "detres"


def test_the_first_line_of_an_error_or_its_name():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(EOFError()) == "EOFError"


def test_a_folder_appears_whole(tmp_path):
    folder = tmp_path / "above" / "new"
    with writing_folder(folder) as temporary:
        (temporary / "in").mkdir()
        (temporary / "in" / "a").write_text("a")
        assert not folder.exists()
    assert (folder / "in" / "a").read_text() == "a"
    assert files_in(folder.parent) == ["new"]
    (tmp_path / "plain").mkdir()
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_empty_folder_and_a_link_to_one_are_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with writing_folder(tmp_path / "link") as temporary:
        (temporary / "a").write_text("a")
    assert files_in(tmp_path / "empty") == ["a"]
    assert (tmp_path / "link").is_symlink()
    assert files_in(tmp_path) == ["empty", "link"]


def test_a_link_in_a_folder_is_moved_and_what_it_leads_to_is_not_opened(tmp_path):
    """A FIFO, which would hold up who opens it to write."""
    os.mkfifo(tmp_path / "fifo")
    with writing_folder(tmp_path / "new") as temporary:
        (temporary / "link").symlink_to(tmp_path / "fifo")
        (temporary / "gone").symlink_to(tmp_path / "nowhere")
    assert (tmp_path / "new" / "link").is_fifo()
    assert (tmp_path / "new" / "gone").is_symlink()


def test_a_folder_that_fails_half_way_leaves_nothing(tmp_path):
    (tmp_path / "empty").mkdir()

    def stop_half_way(folder: Path) -> None:
        with writing_folder(folder) as temporary:
            (temporary / "half").write_text("half")
            raise RuntimeError("stop")

    for name in ("new", "empty"):
        with pytest.raises(RuntimeError, match="stop"):
            stop_half_way(tmp_path / name)
    assert files_in(tmp_path) == ["empty"]
    assert files_in(tmp_path / "empty") == []


def test_a_folder_with_files_is_never_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").write_text("mine")

    def fill(folder: Path) -> None:
        with writing_folder(folder) as temporary:
            (temporary / "a").write_text("ours")

    for use in (fill, require_free_folder):
        with pytest.raises(TakenFolderError, match="mine already holds files and is left as it"):
            use(tmp_path / "mine")
        for taken in (tmp_path / "mine" / "a", tmp_path / "mine" / "a" / "below"):
            with pytest.raises(TakenFolderError, match="a part of its path, is a file"):
                use(taken)
    assert (tmp_path / "mine" / "a").read_text() == "mine"
    assert files_in(tmp_path / "mine") == ["a"]
    assert files_in(tmp_path) == ["mine"]


def test_whether_a_folder_can_be_written_is_told_by_making_it(tmp_path):
    require_free_folder(tmp_path / "new")
    require_free_folder(tmp_path / "new")
    assert files_in(tmp_path / "new") == []
    with pytest.raises(OSError, match="File name too long") as e:
        require_free_folder(tmp_path / "new" / ("x" * 300))
    assert e.value.filename == str(tmp_path / "new" / ("x" * 300))


def test_what_a_killed_process_of_the_same_number_left_is_cleared(tmp_path):
    left = tmp_path / f".new.{os.getpid()}.tmp"
    left.mkdir()
    (left / "old").write_text("old")
    with writing_folder(tmp_path / "new") as temporary:
        (temporary / "a").write_text("a")
    assert files_in(tmp_path / "new") == ["a"]

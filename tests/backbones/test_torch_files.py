"""Files of torch.save, as torch.load reads them; and what torch.load would run or refuse."""

from __future__ import annotations

import argparse
import datetime
import enum
import os
import pathlib
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backbones.restricted_pickle import ForbiddenPickleError, Record
from backbones.torch_files import load_archive, load_earlier_form

BASE = torch.arange(24.0).view(4, 6)

TENSORS = {
    "plain": BASE,
    "turned": BASE.t(),
    "part": BASE[1:3, ::2],
    "shared": BASE,
    "parameter": nn.Parameter(BASE[0]),
    "scalar": torch.tensor(3),
    "empty": torch.zeros(0, 3),
    "expanded": torch.ones(1).expand(5, 7),
    "complex": BASE.to(torch.complex64),
    "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    **{
        str(dtype): (BASE > 5).to(dtype)
        for dtype in (
            torch.float64,
            torch.float16,
            torch.bfloat16,
            torch.int64,
            torch.int32,
            torch.int16,
            torch.int8,
            torch.uint8,
            torch.bool,
        )
    },
}


class Precision(enum.Enum):
    LOW = "low"


def same(found: Tensor, expected: Tensor) -> bool:
    return found.dtype == expected.dtype and torch.equal(found, expected.detach())


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_are_as_torch_load_gives_them(protocol, tmp_path):
    torch.save(TENSORS, tmp_path / "w.pth", pickle_protocol=protocol)
    found = load_archive(tmp_path / "w.pth")
    assert list(found) == list(TENSORS)
    assert all(same(found[name], tensor) for name, tensor in TENSORS.items())
    assert found["expanded"].stride() == (0, 0)


def test_tensors_of_the_form_before_the_archive(tmp_path):
    torch.save(TENSORS, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    found = load_earlier_form(tmp_path / "w.pth")
    assert all(same(found[name], tensor) for name, tensor in TENSORS.items())
    content = (tmp_path / "w.pth").read_bytes()
    for damaged in (content[:-1], content + b"x", content[:200]):
        (tmp_path / "w.pth").write_bytes(damaged)
        with pytest.raises((ValueError, EOFError)):
            load_earlier_form(tmp_path / "w.pth")


def test_the_form_before_the_archive_may_not_end_in_the_size_of_a_tensor(tmp_path):
    """Of an empty tensor nothing but its size is there, zeros that a cut leaves zeros."""
    torch.save({"w": torch.zeros(0)}, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "w.pth").read_bytes()
    assert load_earlier_form(tmp_path / "w.pth")["w"].shape == (0,)
    for missing in range(1, 9):
        (tmp_path / "w.pth").write_bytes(content[:-missing])
        with pytest.raises(ValueError, match="ends before its last tensor"):
            load_earlier_form(tmp_path / "w.pth")


def test_float8_keeps_its_type_so_that_it_can_be_refused(tmp_path):
    tensor = torch.ones(3).to(torch.float8_e4m3fn)
    torch.save({"w": tensor}, tmp_path / "w.pth")
    assert load_archive(tmp_path / "w.pth")["w"].dtype == torch.float8_e4m3fn


def test_a_state_dict_with_the_versions_of_its_modules(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    torch.save(net.state_dict(), tmp_path / "w.pth")
    found = load_archive(tmp_path / "w.pth")
    assert list(found) == list(net.state_dict())
    assert all(same(found[name], tensor) for name, tensor in net.state_dict().items())


def test_what_training_code_keeps_beside_the_weights(tmp_path):
    beside = {
        "args": argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("runs/a"), of=nn.ReLU),
        "best": np.float64(76.5),
        "history": np.arange(3),
        "seen": {"a", "b"},
        "counts": Counter("aab"),
        "lists": defaultdict(list, {"x": [1, 2]}),
        "ordered": OrderedDict(b=1, a=2),
        "when": datetime.timedelta(hours=1),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "size": torch.Size([2, 3]),
        "optimizer": torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1).state_dict(),
    }
    torch.save({"model": {"w": BASE}, **beside}, tmp_path / "w.pth")
    found = load_archive(tmp_path / "w.pth")
    assert same(found["model"]["w"], BASE)
    assert isinstance(found["args"], Record)
    assert found["args"].name == "argparse.Namespace"
    assert found["args"]["lr"] == 0.1
    assert found["args"]["of"].name == "torch.nn.modules.activation.ReLU"
    assert found["best"] == 76.5
    assert found["history"].tolist() == [0, 1, 2]
    assert found["counts"] == {"a": 2, "b": 1}
    assert found["lists"] == {"x": [1, 2]}
    assert list(found["ordered"]) == ["b", "a"]
    assert found["dtype"] == torch.float16
    assert found["size"] == [2, 3]
    assert found["optimizer"]["param_groups"][0]["lr"] == 0.1


def test_a_module_becomes_a_record_of_its_class(tmp_path):
    torch.save(nn.Linear(2, 3), tmp_path / "w.pth")
    found = load_archive(tmp_path / "w.pth")
    assert (found.name, "_modules" in found) == ("torch.nn.modules.linear.Linear", True)


def test_tensors_that_are_no_plain_arrays_become_records(tmp_path):
    odd = {"sparse": BASE.to_sparse(), "meta": torch.empty(3, device="meta")}
    torch.save(odd, tmp_path / "w.pth")
    found = load_archive(tmp_path / "w.pth")
    assert {name: value.name for name, value in found.items()} == {
        "sparse": "a sparse tensor",
        "meta": "a tensor without values",
    }


class _Trap:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_function_is_called(zipped, tmp_path):
    path, sprung = tmp_path / "w.pth", tmp_path / "sprung"
    load = load_archive if zipped else load_earlier_form
    torch.save({"w": BASE, "x": _Trap(sprung)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ForbiddenPickleError, match=r"\w+\.mkdir"):
        load(path)
    assert not sprung.exists()
    torch.load(path, weights_only=False)  # the trap is a real one
    assert sprung.exists()
    torch.save({"x": Precision.LOW}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ForbiddenPickleError, match=r"test_torch_files\.Precision"):
        load(path)

"""Checkpoints: what is written is what is read, a crash leaves the old file, and no file gets to
run code.
"""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from detres.engine import checkpoint
from detres.engine.checkpoint import (
    CheckpointError,
    load_model_state,
    load_state,
    load_weights,
    replacing,
    require_metadata,
    save_state,
    save_weights,
    write_text,
)


class Malicious:
    """Unpickling this creates the file it names."""

    def __init__(self, evidence: Path) -> None:
        self.evidence = evidence

    def __reduce__(self):
        return os.mkdir, (str(self.evidence),)


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_state_comes_back_as_it_was(tmp_path):
    weights = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    state = {
        "model": OrderedDict(weight=weights, count=torch.tensor(3)),
        "optimizer": {
            "state": {0: {"momentum_buffer": torch.randn(2)}},
            "param_groups": [{"lr": 0.1, "foreach": None, "params": [0]}],
        },
        "step": 7,
        "best": None,
        "classes": {"names": ["a", "b"], "ids": (1, 2)},
    }
    save_state(tmp_path / "runs" / "last.pt", state)
    read = load_state(tmp_path / "runs" / "last.pt", ("model", "step"))
    assert torch.equal(read["model"]["weight"], weights)
    assert read["model"]["weight"].stride() == weights.stride()
    assert torch.equal(
        read["optimizer"]["state"][0]["momentum_buffer"],
        state["optimizer"]["state"][0]["momentum_buffer"],
    )
    assert read["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
    assert (read["step"], read["best"], read["classes"]) == (7, None, state["classes"])
    assert files_in(tmp_path / "runs") == ["last.pt"]


def test_the_state_of_a_real_optimizer_is_plain(tmp_path):
    model = nn.Conv2d(3, 4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    save_state(tmp_path / "last.pt", {"optimizer": optimizer.state_dict()})
    read = load_state(tmp_path / "last.pt", ("optimizer",))["optimizer"]
    assert torch.equal(read["state"][0]["momentum_buffer"], model.weight.grad)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.float64(0.5), r"state\['best'\] is a float64"),
        (np.zeros(2), r"state\['best'\] is a ndarray"),
        ([1, {"path": Path("x")}], r"state\['best'\]\[1\]\['path'\] is a \w*Path"),
        ({1.5: "x"}, r"state\['best'\]: key 1.5 is a float"),
        ({"f": len}, r"is a builtin_function_or_method"),
    ],
)
def test_what_could_not_be_read_back_safely_is_not_written(tmp_path, value, named):
    save_state(tmp_path / "last.pt", {"step": 1})
    with pytest.raises(TypeError, match=named):
        save_state(tmp_path / "last.pt", {"best": value})
    assert load_state(tmp_path / "last.pt", ("step",)) == {"step": 1}


def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch):
    save_state(tmp_path / "last.pt", {"step": 1})
    real_save = torch.save

    def cut_short(state: dict, path: Path) -> None:
        real_save(state, path)
        os.truncate(path, 100)
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", cut_short)
    with pytest.raises(OSError, match="no space left"):
        save_state(tmp_path / "last.pt", {"step": 2})
    assert load_state(tmp_path / "last.pt", ("step",)) == {"step": 1}
    assert files_in(tmp_path) == ["last.pt"]


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


@pytest.mark.parametrize("writer", ["torch", "torch legacy", "pickle"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, writer):
    path, evidence = tmp_path / "last.pt", tmp_path / "evidence"
    payload = {"model": Malicious(evidence), "step": 1}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        torch.save(payload, path, _use_new_zipfile_serialization=writer == "torch")
    with pytest.raises(CheckpointError, match=rf"{path}.*may (be|hold) code; it was not loaded"):
        load_state(path, ("model", "step"))
    with pytest.raises(CheckpointError, match=f"{path} is not a readable .safetensors file"):
        load_weights(path)
    assert not evidence.exists()


def test_files_that_are_no_training_state_say_what_they_are(tmp_path):
    save_state(tmp_path / "good.pt", {"step": 1, "model": {"w": torch.randn(1000)}})
    whole = (tmp_path / "good.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("hello")
    save_weights(tmp_path / "best.safetensors", {"w": torch.ones(1)}, metadata={"format": "x"})
    torch.save([1, 2], tmp_path / "list.pt")
    for name, said in (
        ("absent.pt", "no training state at"),
        ("cut.pt", "cut short or damaged"),
        ("empty.pt", "it is empty"),
        ("text.pt", "a file of another kind"),
        ("best.safetensors", "weights only; a run is resumed from its last.pt"),
        ("list.pt", "it holds a list"),
        ("good.pt", "it lacks optimizer; it holds step, model"),
    ):
        with pytest.raises(CheckpointError, match=rf"{name}.*{said}|{said}.*{name}"):
            load_state(tmp_path / name, ("step", "optimizer"))


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
    save_weights(tmp_path / "w.safetensors", tensors, metadata={"model": "{}", "classes": "ä"})
    read, metadata = load_weights(tmp_path / "w.safetensors")
    assert metadata == {"model": "{}", "classes": "ä"}
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
        CheckpointError, match=r"w\.safetensors holds weights but not .*: classes, model"
    ):
        require_metadata(metadata, ("classes", "model"), tmp_path / "w.safetensors")
    require_metadata({"classes": "", "model": ""}, ("classes", "model"), tmp_path)


def test_weights_files_that_cannot_be_read(tmp_path):
    save_weights(tmp_path / "w.safetensors", {"w": torch.ones(100)}, metadata={})
    os.truncate(tmp_path / "w.safetensors", 200)
    with pytest.raises(CheckpointError, match=r"w\.safetensors is not a readable"):
        load_weights(tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="no weights file at"):
        load_weights(tmp_path)


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
        "  missing: 1.bias",
        "  unexpected: head",
        "  shape of 0.bias: file (5,), model (3,)",
    ]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(CheckpointError, match="and 92 more"):
        load_model_state(nn.ModuleList(nn.Linear(1, 1) for _ in range(50)), {}, Path("w"))

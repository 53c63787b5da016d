"""The state of a run: what is written is what is read, a crash leaves the old file, and no file may
run code.
"""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from torch import nn

from detres.files import CheckpointError, load_weights, write_safetensors
from detres.runs.state import load_state, save_state


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

    def cut_short(state: dict, file: BinaryIO) -> None:
        real_save(state, file)
        file.truncate(100)
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", cut_short)
    with pytest.raises(OSError, match="no space left"):
        save_state(tmp_path / "last.pt", {"step": 2})
    assert load_state(tmp_path / "last.pt", ("step",)) == {"step": 1}
    assert files_in(tmp_path) == ["last.pt"]


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
    write_safetensors(tmp_path / "best.safetensors", {"w": torch.ones(1)}, {"format": "x"})
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

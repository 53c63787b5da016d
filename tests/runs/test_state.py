"""The state of a run: what is written is what is read, a crash leaves the old file, and no file may
run code.
"""

from __future__ import annotations

import math
import os
import pickle
import random
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import torch
from torch import nn

from detres.files import CheckpointError, load_weights, write_safetensors
from detres.runs.state import (
    FORMAT,
    DamagedStateError,
    load_state,
    reading_field,
    save_state,
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
    with pytest.raises(
        CheckpointError, match=f"{path} is a (pickle|file of torch.save), not a run's"
    ):
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


def state_of(step: int) -> dict:
    weights = torch.randn(40, 30, generator=torch.Generator().manual_seed(step))
    return {"format": FORMAT, "step": step, "model": {"w": weights, "n": torch.tensor(3)}}


def damaged(whole: bytes, kind: str, generator: random.Random) -> bytes:
    content, start = bytearray(whole), generator.randrange(len(whole))
    if kind == "cut":
        return whole[:start]
    if kind == "flip":
        content[start] ^= 1 << generator.randrange(8)
    else:
        length = min(generator.choice((1, 64, 4096)), len(whole) - start)
        content[start : start + length] = bytes(length)
    return bytes(content)


@pytest.mark.parametrize("kind", ["cut", "flip", "zeros"])
def test_no_damage_is_loaded(tmp_path, kind):
    path, generator = tmp_path / "last.pt", random.Random(len(kind))
    save_state(path, state_of(1))
    whole = path.read_bytes()
    refused = 0
    for _ in range(200):
        content = damaged(whole, kind, generator)
        path.write_bytes(content)
        if content == whole:  # zeros where zeros were
            assert load_state(path, ("model",))["step"] == 1
            continue
        with pytest.raises(DamagedStateError, match=f"^{path} is (damaged|not a training state)"):
            load_state(path, ("model",))
        refused += 1
    assert refused > 150


def test_the_previous_state_is_kept_and_one_of_the_two_is_always_there(tmp_path, monkeypatch):
    path, previous = tmp_path / "last.pt", tmp_path / "previous.pt"
    save_state(path, state_of(1), previous=previous)
    assert files_in(tmp_path) == ["last.pt"]
    save_state(path, state_of(2), previous=previous)
    assert [load_state(each, ())["step"] for each in (path, previous)] == [2, 1]
    real_replace, steps = os.replace, []

    def watched(source: Path, target: Path) -> None:
        steps.append([load_state(each, ())["step"] for each in (path, previous) if each.exists()])
        real_replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    save_state(path, state_of(3), previous=previous)
    assert steps == [[2, 1], [2]]
    assert [load_state(each, ())["step"] for each in (path, previous)] == [3, 2]


FULL = """
import resource, signal, sys, torch
from pathlib import Path
from detres.runs.state import save_state
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
path = Path(sys.argv[1])
try:
    save_state(path, {"model": {"w": torch.ones(300_000)}}, previous=path.with_name("previous.pt"))
except OSError as error:
    sys.exit(f"{error.filename}: {error.strerror}")
"""


@pytest.mark.skipif(os.name != "posix", reason="limits")
@pytest.mark.parametrize("limit", [0, 700, 500_000, 1_199_000])
def test_where_the_file_system_takes_no_more_the_old_states_stay(tmp_path, limit):
    path = tmp_path / "last.pt"
    for step in (1, 2):
        save_state(path, state_of(step), previous=tmp_path / "previous.pt")
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path), str(limit)], capture_output=True, text=True
    )
    assert done.stderr == f"{path}: File too large\n"
    assert files_in(tmp_path) == ["last.pt", "previous.pt"]
    steps = [load_state(tmp_path / name, ())["step"] for name in ("last.pt", "previous.pt")]
    assert steps == [2, 1]


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (FORMAT + 1, f"is of format {FORMAT + 1}, .* written by a newer detres"),
        (0, "is of format 0"),
        ("x", "is of format 'x'"),
        (True, "is of format True"),
    ],
)
def test_an_unknown_format_is_refused_by_name(tmp_path, version, said):
    save_state(tmp_path / "last.pt", state_of(1) | {"format": version})
    with pytest.raises(CheckpointError, match=said) as refused:
        load_state(tmp_path / "last.pt", ())
    assert not isinstance(refused.value, DamagedStateError)  # nothing is to be gone back from


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused_wherever_it_is(tmp_path, value):
    for where in ("model", "optimizer"):
        tensor = torch.ones(2, 3)
        tensor[1, 2] = value
        save_state(tmp_path / "last.pt", {"model": {}, where: {"a": [1, {"b": tensor}]}})
        with pytest.raises(CheckpointError, match=rf"{where}\.a\.1\.b has values that are not"):
            load_state(tmp_path / "last.pt", ())


def test_a_container_that_holds_itself_ends(tmp_path):
    loop: dict = {"step": 1}
    loop["loop"] = loop
    torch.save(loop, tmp_path / "last.pt")
    assert load_state(tmp_path / "last.pt", ("step",))["step"] == 1


def test_a_pipe_is_no_state(tmp_path):
    os.mkfifo(tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match="it is no regular file"):
        load_state(tmp_path / "last.pt", ())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no number"), "no number"),
        (KeyError("names"), "without 'names'"),
        (RecursionError("too deep"), "too deep"),
        (OverflowError("too large"), "too large"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, error, said):
    wanted = rf"its 'classes' is not what a run writes \({said}\)"
    with pytest.raises(CheckpointError, match=wanted), reading_field(tmp_path, "classes"):
        raise error

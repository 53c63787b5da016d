"""What several processes tell each other, and what is said where one of them fails."""

from __future__ import annotations

import socket
import time

import pytest
import torch
from torch import nn

from detres.engine.distributed import (
    ElsewhereError,
    Group,
    LaunchError,
    LostProcessError,
    is_launched,
    joined,
)
from tests.processes import free_port, together

CPU = torch.device("cpu")


def tell_each_other(group: Group) -> dict:
    rank = group.rank
    model = nn.BatchNorm1d(2)
    model.running_mean.fill_(rank)
    group.same_buffers(model)
    found = {
        "none": group.any(False),
        "one": group.any(rank == 1),
        "sum": group.add({"a": rank + 1, "b": 2.5}),
        "terms": group.add_scalars({"x": torch.tensor(float(rank)), "y": torch.tensor(2.0)}),
        "all": group.gather(("rank", rank)),
        "first": group.broadcast(rank + 7),
        "buffers": model.running_mean.tolist(),
        "is_first": group.is_first,
    }
    with group.together():
        pass
    return found


def test_three_processes_tell_each_other() -> None:
    for rank, found in enumerate(together(3, tell_each_other)):
        assert found["none"] is False
        assert found["one"] is True
        assert found["sum"] == {"a": 6.0, "b": 7.5}
        assert {name: value.item() for name, value in found["terms"].items()} == {"x": 3, "y": 6}
        assert found["all"] == [("rank", 0), ("rank", 1), ("rank", 2)]
        assert found["first"] == 7
        assert found["buffers"] == [0, 0]
        assert found["is_first"] is (rank == 0)


def test_one_process_alone_tells_itself() -> None:
    found = tell_each_other(Group())
    assert (found["none"], found["sum"], found["all"]) == (False, {"a": 1, "b": 2.5}, [("rank", 0)])
    assert (found["first"], found["is_first"]) == (7, True)
    assert not is_launched()
    assert joined(CPU)[0].size == 1


def fails_in(group: Group, ranks: tuple[int, ...]) -> str:
    try:
        with group.together():
            if group.rank in ranks:
                raise ValueError(f"no data in {group.rank}")
    except (ValueError, ElsewhereError) as error:
        return f"{type(error).__name__} {error}"
    return "nothing"


@pytest.mark.parametrize("ranks", [(), (0,), (1,), (1, 2), (0, 1, 2)])
def test_the_first_that_fails_says_it_and_all_stop(ranks: tuple[int, ...]) -> None:
    found = together(3, fails_in, ranks)
    if not ranks:
        assert found == ["nothing"] * 3
        return
    for rank, said in enumerate(found):
        if rank == ranks[0]:
            assert said == f"ValueError no data in {rank}"
        else:
            assert said == f"ElsewhereError process {ranks[0]} has failed"


def sleeps(group: Group) -> str:
    group.doing("waiting for the images of step 4")
    if group.rank == 1:
        time.sleep(8)
        return "late"
    group.doing("step 4, images 7, 9")
    try:
        group.add({"a": 1})
    except RuntimeError as error:
        explained = group.explained(error)
        return f"{type(explained).__name__} {explained.told_here} {explained}"
    return "not late"


def test_a_late_process_is_named_with_what_it_began() -> None:
    """By the first of those that waited for it."""
    first, late, last = together(3, sleeps, waits_s=3)
    assert late == "late"
    assert first.startswith("LostProcessError True process 1 of 3 has not answered within 3 s; ")
    assert first.endswith(" s ago it began: waiting for the images of step 4")
    assert last.startswith("LostProcessError False process 1 of 3 ")


def test_other_errors_stay_what_they_are() -> None:
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert Group().explained(error) is error
    assert isinstance(LostProcessError("x", told_here=True), RuntimeError)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set: start the processes with torchrun"),
        (
            {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"},
            "MASTER_PORT is not set",
        ),
        ({"RANK": "2"}, r"RANK is 2, expected 0..1 \(WORLD_SIZE is 2\)"),
        ({"RANK": "x"}, "all but the address are numbers"),
    ],
)
def test_an_environment_that_is_not_whole(environment, message, monkeypatch) -> None:
    whole = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    if "WORLD_SIZE" in environment:
        whole = {}
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**whole, **environment}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(LaunchError, match=message):
        joined(CPU)


def launch(monkeypatch: pytest.MonkeyPatch, rank: int, size: int, port: int) -> None:
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")


def test_processes_that_do_not_come_are_named(monkeypatch) -> None:
    launch(monkeypatch, 0, 3, free_port())
    with pytest.raises(LaunchError, match=r"only 1 of 3 processes have come; missing: 1, 2"):
        joined(CPU, waits_s=1)


def test_a_port_in_use_is_named(monkeypatch) -> None:
    with socket.socket(socket.AF_INET6) as taken:
        taken.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        taken.bind(("::", 0))
        taken.listen()
        port = taken.getsockname()[1]
        launch(monkeypatch, 0, 2, port)
        with pytest.raises(LaunchError, match=rf"port {port} of 127\.0\.0\.1 is in use"):
            joined(CPU, waits_s=2)


def test_a_first_process_that_is_not_there_is_said(monkeypatch) -> None:
    launch(monkeypatch, 1, 2, free_port())
    with pytest.raises(LaunchError, match="the first process does not answer at 127"):
        joined(CPU, waits_s=1)

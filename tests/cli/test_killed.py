"""A run that is killed, between writes and in the middle of one, ends as one that never was."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from backbones.files import read_safetensors
from detres.cli import train_det
from detres.detection.alternating import FOLDERS
from tests.cli.conftest import read_json, records, same_tensors, tensors

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")

KILLED = """
import os, random, signal, sys
from detres.cli import train_det

where, number = sys.argv.pop(1), int(sys.argv.pop(1))
calls = 0

def counted(function, after, counts=lambda *_: True):
    def call(*arguments, **named):
        global calls
        if not counts(*arguments):
            return function(*arguments, **named)
        calls += 1
        if calls == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **named)
        if calls == number and after:
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

if where == "renaming":
    in_a_run = lambda _, path: os.path.exists(os.path.join(os.path.dirname(path), "lock.json"))
    os.replace = counted(os.replace, number % 2 == 0, in_a_run)
elif where == "flushing":
    os.fsync = counted(os.fsync, after=False)
elif where == "stepping":
    import torch
    torch.manual_seed = counted(torch.manual_seed, after=False)
sys.exit(train_det.main(sys.argv[1:]))
"""
"""Train, and be killed at a call of the kind `where`: of os.replace, os.fsync, or in a step."""

SETTINGS = (
    *("train.steps=6", "train.log_every=2", "train.save_every=1", "train.eval_every=3"),
    *("train.eval_images=2", "train.ema_decay=0.9"),
)


def run_killed(where: str, number: int, flags: Sequence[str]) -> int:
    """Return the exit status of a training that is killed at the `number`-th call; 0 where it ended
    before.
    """
    done = subprocess.run(
        [sys.executable, "-c", KILLED, where, str(number), *flags, "--device", "cpu"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def trained_through(kills: Sequence[tuple[str, int]], tiny: Path, out: Path) -> int:
    """Train to the end through `kills`; return how many of them came before the end."""
    begin = ["--cfg", str(tiny), "--set", *SETTINGS, "--out", str(out)]
    happened = 0
    for where, number in kills:
        saved = (out / "last.pt").exists() or (out / "previous.pt").exists()
        flags = ["--resume", str(out)] if saved else begin
        if run_killed(where, number, flags) == 0:
            return happened
        happened += 1
    assert train_det.main(["--resume", str(out), "--device", "cpu"]) == 0
    return happened


def require_same_run(straight: Path, killed: Path) -> None:
    for kind in ("train", "eval"):
        assert records(killed, kind) == records(straight, kind)
    assert same_tensors(tensors(killed), tensors(straight))
    for name in ("predictions.json", "metrics.json"):
        assert read_json(killed / name) == read_json(straight / name)
    assert {path.name for path in killed.iterdir()} == {path.name for path in straight.iterdir()}


@pytest.fixture(scope="module", autouse=True)
def _one_thread_everywhere() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def straight(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight") / "run"
    flags = ["--cfg", str(tiny), "--set", *SETTINGS, "--out", str(out), "--device", "cpu"]
    assert train_det.main(flags) == 0
    return out


def test_a_run_killed_in_a_step_and_in_a_write_ends_as_one_never_killed(
    tiny: Path, straight: Path, tmp_path: Path
) -> None:
    # the 9th rename is the second of two that put a state in place: there is no last.pt then
    assert trained_through([("renaming", 9), ("stepping", 3)], tiny, tmp_path / "run") == 2
    require_same_run(straight, tmp_path / "run")


@pytest.mark.slow
def test_through_twenty_kills_nothing_changes(tiny: Path, straight: Path, tmp_path: Path) -> None:
    generator, happened = random.Random(7), {"write": 0, "step": 0}
    for attempt in range(40):
        out = tmp_path / f"run{attempt}"
        writes = [
            (generator.choice(("renaming", "flushing")), generator.randrange(1, 14))
            for _ in range(2)
        ]
        steps = [("stepping", generator.randrange(2, 5)) for _ in range(2)]
        kills = [kill for pair in zip(writes, steps, strict=True) for kill in pair]
        count = trained_through(kills, tiny, out)
        happened["write"] += (count + 1) // 2
        happened["step"] += count // 2
        require_same_run(straight, out)
        if happened["write"] >= 10 and sum(happened.values()) >= 20:
            return
    pytest.fail(f"only {happened} kills came before the end")


@pytest.mark.slow
def test_a_run_killed_before_its_first_state_leaves_its_folder_to_the_same_command(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    begin = ["--cfg", str(tiny), "--set", *SETTINGS]
    assert run_killed("renaming", 3, begin) == -signal.SIGKILL  # before the third, of last.pt
    assert not list(Path("runs/tiny").glob("*.pt"))
    holder = json.loads(Path("runs/tiny/lock.json").read_text())
    assert train_det.main(["--resume", "runs/tiny", "--device", "cpu"]) == 2
    command = shlex.join(["detres", "train-det", *begin, "--device", "cpu"])
    assert capsys.readouterr().err == (
        f"error: nothing was saved yet in runs/tiny; start again with {command}, which uses the "
        "same folder\n"
    )
    assert train_det.main([*begin, "--device", "cpu"]) == 0
    assert (
        f"note: runs/tiny was left by process {holder['pid']} on {holder['host']}, which has "
        "ended: taken over"
    ) in capsys.readouterr().out
    assert [path.name for path in Path("runs").iterdir()] == ["tiny"]
    assert not Path("runs/tiny/lock.json").exists()


FOUR_STEPS = (
    *("train.scheme=alternating", "train.steps=8", "train.phase_steps=[2,2,2,2]"),
    *("train.log_every=1", "train.save_every=1"),
)


@pytest.mark.slow
def test_killed_in_each_of_the_four_steps_a_run_ends_as_one_never_killed(
    tiny: Path, tmp_path: Path
) -> None:
    """In training steps and in writes, those between two of the four included, at least three times
    in each.
    """
    straight, out = tmp_path / "straight", tmp_path / "run"
    begin = ["--cfg", str(tiny), "--set", *FOUR_STEPS]
    assert train_det.main([*begin, "--out", str(straight), "--device", "cpu"]) == 0
    generator, happened = random.Random(11), [0, 0, 0, 0]
    while True:
        state = out / "phase.json"
        phase = read_json(state)["phase"] if state.exists() else 0
        if happened[phase] < 3:
            where = ("renaming", "flushing", "stepping")[happened[phase]]
            kill = where, generator.randrange(1, 4)
        else:
            kill = "renaming", generator.randrange(6, 12)  # further on, into the next
        flags = ["--resume", str(out)] if state.exists() else [*begin, "--out", str(out)]
        if run_killed(*kill, flags) == 0:
            break
        happened[phase] += 1
    assert min(happened) >= 3, happened
    for name in (*FOLDERS, ""):
        require_same_alternating_step(straight / name, out / name)


def require_same_alternating_step(straight: Path, killed: Path) -> None:
    for kind in ("train", "eval") if (straight / "metrics.jsonl").exists() else ():
        assert records(killed, kind) == records(straight, kind)
    assert same_tensors(tensors(killed), tensors(straight))
    assert read_json(killed / "metrics.json") == read_json(straight / "metrics.json")
    assert {path.name for path in killed.iterdir()} == {path.name for path in straight.iterdir()}
    for file in straight.glob("*_proposals.safetensors"):
        made, again = (read_safetensors(folder / file.name)[0] for folder in (straight, killed))
        assert same_tensors(made, again)

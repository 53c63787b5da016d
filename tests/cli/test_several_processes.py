"""Trainings of several processes, by torchrun and the real commands: as one process trains, and
through whatever happens to them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from detres.cli.train_det import main
from tests.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    *("train.log_every=1", "data.workers=0", "train.precision=fp32"),
    *("eval.batch_size=2", "data.shapes_val=8", "data.shapes_train=64"),
    *("train.batch_size=4", "model.input.short_side=96", "model.input.max_side=128"),
    *("train.warmup_steps=2", "train.save_every=5", "train.eval_every=0"),
]
CLASSIFIER = "cls_shapes_r18"
TIMES = ("step_s", "data_s", "images_per_s")


def environment(**more: object) -> dict[str, str]:
    paths = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return os.environ | paths | {name: str(value) for name, value in more.items()}


def arguments(out: Path, *settings: str, cfg: str = "shapes_r18") -> list[str]:
    config = ROOT / "configs" / f"{cfg}.yaml"
    small = [each for each in SMALL if cfg != CLASSIFIER or not each.startswith("model.input")]
    return ["--cfg", str(config), "--out", str(out), "--set", *small, *settings]


def torchrun(size: int, *command: str) -> list[str]:
    return [
        *(sys.executable, "-m", "torch.distributed.run", f"--master-port={free_port()}"),
        *(f"--nproc-per-node={size}", *command),
    ]


def run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def require_same_run(one: Path, other: Path, tolerance: float, weights: str) -> None:
    """Every number of every record, and every weight."""
    for left, right in zip(records(one), records(other), strict=True):
        for name, value in left.items():
            if name not in TIMES and isinstance(value, float):
                assert right[name] == pytest.approx(value, abs=tolerance), (left["step"], name)
    left, right = load_file(one / weights), load_file(other / weights)
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=0, atol=tolerance, msg=name)


IN_FLOAT64 = ("-m", "tests.float64_command")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "cfg", "steps", "size", "settings", "weights"),
    [
        ("train_det", "shapes_r18", 40, 2, ["model.backbone.norm=sync"], "best.safetensors"),
        ("train_det", "shapes_r18", 12, 4, ["model.backbone.norm=group"], "best.safetensors"),
        ("train_det", "shapes_r18_fpn", 8, 2, ["model.backbone.norm=sync"], "best.safetensors"),
        ("train_cls", CLASSIFIER, 12, 2, ["model.network.norm=sync"], "weights.safetensors"),
    ],
)
def test_several_processes_train_as_one(
    tmp_path: Path, command, cfg, steps, size, settings, weights
) -> None:
    """In float64, for float32's rounding is another in every batch size and grows tenfold every few
    steps.
    """
    given = [f"train.steps={steps}", f"train.eval_every={steps // 2}", *settings]
    one = run([sys.executable, *IN_FLOAT64, command, *arguments(tmp_path / "1", *given, cfg=cfg)])
    assert one.returncode == 0, one.stderr
    several = run(torchrun(size, *IN_FLOAT64, command, *arguments(tmp_path / "n", *given, cfg=cfg)))
    assert several.returncode == 0, several.stderr
    require_same_run(tmp_path / "1", tmp_path / "n", 1e-8, weights)
    said = f"({size} processes of {4 // size} image"
    assert said in several.stdout
    assert several.stdout.count("every setting, defaults included") == 1  # one of them prints


@pytest.mark.slow
def test_batches_one_after_the_other_train_as_one_large_one(tmp_path: Path) -> None:
    given = ["train.steps=10", "model.backbone.norm=group"]
    command = [sys.executable, *IN_FLOAT64, "train_det"]
    whole = run([*command, *arguments(tmp_path / "8", *given, "train.batch_size=8")])
    assert whole.returncode == 0, whole.stderr
    parts = run([*command, *arguments(tmp_path / "2x4", *given, "train.accumulate=2")])
    assert parts.returncode == 0, parts.stderr
    require_same_run(tmp_path / "8", tmp_path / "2x4", 1e-8, "best.safetensors")
    assert "at batch 8 (2 parts one after the other of 4 images)" in parts.stdout


def when_it_says(log: Path, text: str, seconds: float = 120.0) -> None:
    until = time.monotonic() + seconds
    while text not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < until, f"no {text!r} in {log.read_text()}"
        time.sleep(0.1)


def process_of(rank: int, out: Path) -> int:
    """The process of a rank, by what its environment and its command say."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            said = (folder / "cmdline").read_bytes()
            given = (folder / "environ").read_bytes()
        except OSError:
            continue
        if str(out).encode() in said and f"\0RANK={rank}\0".encode() in b"\0" + given:
            return int(folder.name)
    raise AssertionError(f"no process of rank {rank}")


LINUX = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")


@LINUX
@pytest.mark.slow
def test_five_killed_processes_cost_nothing(tmp_path: Path) -> None:
    """torchrun starts all again, and they go on from what was saved."""
    steps = ["train.steps=14", "model.backbone.norm=group"]
    tool = str(ROOT / "tools" / "train_det.py")
    whole = run(torchrun(2, tool, *arguments(tmp_path / "whole", *steps)))
    assert whole.returncode == 0, whole.stderr
    log, out = tmp_path / "log", tmp_path / "killed"
    command = torchrun(2, "--max-restarts=6", tool, "--resume", "auto", *arguments(out, *steps))
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=file, stderr=file)
        for rank, step in ((1, 3), (0, 6), (1, 8), (0, 11), (1, 13)):
            when_it_says(log, f"step {step}/14")
            os.kill(process_of(rank, out), signal.SIGKILL)
        assert process.wait(timeout=300) == 0, log.read_text()
    said = log.read_text()
    assert [said.count(f"steps {step}..14") for step in (0, 5, 10)] == [2, 2, 2]
    require_same_run(tmp_path / "whole", out, 0.0, "best.safetensors")


@LINUX
@pytest.mark.slow
def test_a_signal_to_all_stops_all_at_one_step(tmp_path: Path) -> None:
    steps = ["train.steps=14", "model.backbone.norm=group"]
    tool = str(ROOT / "tools" / "train_det.py")
    whole = run(torchrun(2, tool, *arguments(tmp_path / "whole", *steps)))
    assert whole.returncode == 0, whole.stderr
    log, out = tmp_path / "log", tmp_path / "stopped"
    command = torchrun(2, tool, "--resume", "auto", *arguments(out, *steps))
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=file, stderr=file)
        when_it_says(log, "step 7/14")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=120) != 0
    assert log.read_text().count("stopped after step") == 1
    again = run(command)
    assert again.returncode == 0, again.stderr
    require_same_run(tmp_path / "whole", out, 0.0, "best.safetensors")


@LINUX
@pytest.mark.slow
def test_a_late_process_is_named(tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "late"
    tool = str(ROOT / "tools" / "train_det.py")
    command = torchrun(2, tool, "--timeout", "4", *arguments(out, "train.steps=200"))
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=file, stderr=file)
        when_it_says(log, "step 3/200")
        late = process_of(1, out)
        os.kill(late, signal.SIGSTOP)
        when_it_says(log, "error: process 1 of 2 has not answered within 4 s; ")
        os.kill(late, signal.SIGCONT)
        assert process.wait(timeout=120) != 0
    assert "s ago it began: " in log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["train.batch_size=3"], "error: train.batch_size=3 cannot be divided among 2 processes"),
        (["train.scheme=alternating"], "error: train.scheme=alternating trains on one process"),
        (["train.nosuch=1"], "error: "),
    ],
)
def test_what_is_wrong_for_all_is_said_once(tmp_path: Path, settings, message) -> None:
    tool = str(ROOT / "tools" / "train_det.py")
    found = run(torchrun(2, tool, *arguments(tmp_path / "out", "train.steps=20", *settings)))
    assert found.returncode != 0
    assert sum(line.startswith("error: ") for line in found.stderr.splitlines()) == 1
    assert message in found.stderr
    assert not (tmp_path / "out" / "last.pt").exists()


@pytest.mark.slow
def test_other_settings_in_one_process_are_named(tmp_path: Path) -> None:
    port, processes = free_port(), []
    for rank, rate in enumerate(("0.001", "0.5")):
        launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
        command = [sys.executable, str(ROOT / "tools" / "train_det.py")]
        processes.append(
            subprocess.Popen(
                [*command, *arguments(tmp_path / "out", "train.steps=4", f"train.lr={rate}")],
                env=environment(MASTER_ADDR="127.0.0.1", **launched),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [process.communicate(timeout=240)[1] for process in processes]
    assert said[0].strip() == (
        "error: process 1 has train.lr 0.5, the first one 0.001: start all with the same settings"
    )
    assert said[1] == ""


def test_resume_auto_starts_goes_on_and_ends(tmp_path: Path, capsys) -> None:
    """The same command, whatever the run folder holds."""
    out = tmp_path / "run"
    given = [*arguments(out, "train.steps=2"), "--resume", "auto"]
    assert main(given) == 0
    assert "steps 0..2" in capsys.readouterr().out
    assert main(given) == 0
    assert "finished: all 2 steps are done; evaluated once more" in capsys.readouterr().out
    (out / "last.pt").unlink()
    (out / "previous.pt").unlink(missing_ok=True)
    assert main(given) == 2  # a folder with other files is nobody's to fill
    assert "already holds files" in capsys.readouterr().err


def test_resume_auto_without_a_folder_takes_the_runs_name(tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = list(arguments(tmp_path, "train.steps=2", "name=mine"))
    given = given[:2] + given[4:] + ["--resume", "auto"]
    assert main(given) == 0
    assert main(given) == 0
    assert "finished" in capsys.readouterr().out
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine"]

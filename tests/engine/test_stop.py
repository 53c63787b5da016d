"""Stopping between steps: Ctrl-C as a terminal sends it, SIGTERM as a scheduler does, to the
training process and to its loader's workers at once.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from detres.engine.distributed import Group
from detres.engine.stop import Interrupted, StopSignals
from detres.runs.state import load_state

SCRIPT = """
import sys, time
from pathlib import Path
import torch
from detres.engine.batches import make_loader
from detres.engine.distributed import Group
from detres.engine.flight_recorder import FlightRecorder
from detres.engine.log import RunLog
from detres.engine.loop import LoopSettings, fit
from detres.engine.meter import Meter
from detres.engine.progress import Progress
from detres.engine.schedule import Schedule
from detres.engine.stop import Interrupted
from detres.losses import Losses
from detres.runs.state import save_state

class Images(list):
    ids = ("a",)
    def to(self, device):
        return self

class Slow(torch.utils.data.Dataset):
    def __len__(self):
        return 1000
    def __getitem__(self, index):
        time.sleep(0.3)  # so that the signal finds the process waiting for its workers
        return index

class Model(torch.nn.Linear):
    def forward(self, images, targets):
        sys.stdout.write("step\\n")
        sys.stdout.flush()
        self.steps = getattr(self, "steps", 0) + 1
        if sys.argv[2:] == [str(self.steps)]:
            raise RuntimeError("out of memory")
        value = super().forward(torch.ones(1, 1)).sum()
        return Losses({"loss_all": value}, {"loss_all": 1})

class Run:
    def __init__(self, folder):
        self.folder, self.progress, self.meter = folder, Progress(), Meter()
        self.average, self.recorder = None, FlightRecorder()
        self.scaler = torch.amp.GradScaler(enabled=False)
        self.log = RunLog(folder / "metrics.jsonl", folder / "tensorboard", console=sys.stderr,
                          steps=1000, progress=self.progress)
    def saw(self, parts):
        pass
    def evaluate(self):
        raise AssertionError("no evaluation is due")
    def save(self):
        save_state(self.folder / "last.pt", {"step": self.progress.step})

model = Model(1, 1)
batches = make_loader(
    Slow(), lambda items: (Images(items), []), [[index] for index in range(1000)], 2
)
try:
    fit(
        model, torch.optim.SGD(model.parameters(), lr=0.0), batches,
        schedule=Schedule(lr=0.0, steps=1000),
        settings=LoopSettings(seed=0, log_every=100, save_every=1000),
        run=Run(Path(sys.argv[1])), device=torch.device("cpu"), group=Group(),
    )
except Interrupted as stopped:
    sys.stdout.write(f"stopped after {stopped.step}\\n")
    sys.exit(3)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals to a process group")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_while_waiting_for_workers_saves_the_last_step(tmp_path, number):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        for _ in range(2):
            assert process.stdout.readline() == "step\n"
        os.killpg(process.pid, number)
        out, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    step = load_state(tmp_path / "last.pt", ("step",))["step"]
    assert process.returncode == 3, errors
    assert out.splitlines()[-1] == f"stopped after {step}"
    assert step == 2 + out.count("step\n")


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_an_error_in_a_step_ends_the_process_and_its_workers(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), "3"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("RuntimeError: out of memory")


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="finds the workers in /proc")
def test_a_killed_worker_ends_the_process(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "step\n"
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "DataLoader worker" in errors


def test_a_signal_asks_and_the_handlers_of_before_come_back(capsys):
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with StopSignals(Group()) as stop:
        stop.raise_if_asked(3)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked
        with pytest.raises(Interrupted, match="stopped after step 3") as stopped:
            stop.raise_if_asked(3)
        assert stopped.value.step == 3
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in numbers] == before
    assert "once more stops at once" in capsys.readouterr().err


def test_outside_the_main_thread_signals_stay_with_whoever_has_them():
    seen = []

    def ask() -> None:
        with StopSignals(Group()) as stop:
            seen.append((stop.asked, signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert seen == [(False, signal.getsignal(signal.SIGINT))]

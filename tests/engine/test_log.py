"""Records that stay readable and single over a resume, and what the console shows."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detres.engine.log import QuietLog, RunLog, without_nan
from detres.engine.meter import Meter
from detres.engine.progress import Progress
from detres.engine.writers import Writer

RECORD = {"loss": 1.5, "loss_a": 1.0, "loss_b": 0.5, "step_s": 0.1, "lr": 0.01}


class Terminal(io.StringIO):
    """What a program writes to a terminal, kept."""

    def isatty(self) -> bool:
        return True


def run_log(
    folder: Path,
    console: io.StringIO | None = None,
    *,
    steps: int,
    progress: Progress | None = None,
    writers: Sequence[Writer] = (),
) -> RunLog:
    return RunLog(
        folder / "metrics.jsonl",
        folder / "tensorboard",
        console=console or io.StringIO(),
        steps=steps,
        progress=progress or Progress(),
        writers=writers,
        config={"seed": 3},
    )


def metered(loss: float, steps: int = 1) -> Meter:
    """What a meter holds after `steps` steps."""
    meter = Meter()
    for _ in range(steps):
        meter.step_done({"loss": torch.tensor(loss)}, 1)
    return meter


def records(folder: Path) -> list[dict]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return [
        json.loads(line, parse_constant=refuse)
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The seconds that the log believes have passed, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr("detres.engine.log.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_without_nan_reaches_every_depth():
    value = {"a": math.nan, "b": [1.0, -math.inf, {"c": (math.inf, 2)}], "d": "nan", "e": None}
    assert without_nan(value) == {
        "a": None,
        "b": [1.0, None, {"c": [None, 2]}],
        "d": "nan",
        "e": None,
    }


def test_metrics_are_one_json_object_a_line(tmp_path):
    log = run_log(tmp_path, steps=10)
    log.train(5, RECORD)
    log.evaluation(5, {"AP": 0.25, "APs": None, "odd": math.nan})
    assert records(tmp_path) == [  # readable while the run goes on
        {"step": 5, "kind": "train", **RECORD},
        {"step": 5, "kind": "eval", "AP": 0.25, "APs": None, "odd": None},
    ]
    log.close()


def test_a_resumed_run_has_no_step_twice(tmp_path):
    log = run_log(tmp_path, steps=30)
    for step in (10, 20, 30):
        log.train(step, RECORD)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "ki')  # the line a crash cut off
    log = run_log(tmp_path, steps=30, progress=Progress(20))
    log.train(30, RECORD)
    log.close()
    assert [record["step"] for record in records(tmp_path)] == [10, 20, 30]


def test_tensorboard_has_the_numbers_and_no_step_twice(tmp_path):
    for start, steps in ((0, (10, 20, 30)), (20, (30,))):
        log = run_log(tmp_path, steps=30, progress=Progress(start))
        for step in steps:
            log.train(step, RECORD | {"loss": 100.0 * start + step})
            log.evaluation(step, {"AP": 0.5, "APs": None})
        log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (10, 10.0),
        (20, 20.0),
        (30, 2030.0),
    ]
    assert "eval/AP" in events.Tags()["scalars"]
    assert "eval/APs" not in events.Tags()["scalars"]


def test_without_a_terminal_progress_is_plain_lines(tmp_path, clock):
    console = io.StringIO()
    log = run_log(tmp_path, console, steps=200)
    clock[0] += 100
    log.step_done(49, metered(2.0), lr=0.01, every=50)
    log.train(50, RECORD)
    log.line("a table\nof two lines")
    log.close()
    assert console.getvalue().splitlines() == [
        "step 49/200  loss 2.000  lr 0.01000  2.04 s/step  5:08 left",  # nothing for 30 s
        "step 50/200  loss 1.500  a 1.000  b 0.500  lr 0.01000  2.00 s/step  5:00 left",
        "a table",
        "of two lines",
    ]


def test_a_resumed_run_counts_only_its_own_steps_in_the_time_left(tmp_path, clock):
    console = io.StringIO()
    log = run_log(tmp_path, console, steps=2000, progress=Progress(100))
    clock[0] += 20
    log.train(110, RECORD)
    log.close()
    assert "2.00 s/step  1:03:00 left" in console.getvalue()


def test_a_terminal_gets_one_bar_that_moves_every_step(tmp_path):
    console = Terminal()
    log = run_log(tmp_path, console, steps=8, progress=Progress(2))
    for step in (3, 4):
        log.step_done(step, metered(2.0), lr=0.01, every=100)
    assert log.bar.n == 4
    log.train(4, RECORD)
    log.line("a note")
    log.close()
    shown = console.getvalue()
    assert "4/8" in shown
    assert "loss 1.500  a 1.000  b 0.500" in shown
    assert "a note\n" in shown
    assert "step 4/8" not in shown
    assert "to start" not in shown
    assert [record["step"] for record in records(tmp_path)] == [4]


def test_without_a_terminal_there_is_a_line_every_30_s_whatever_is_logged(tmp_path, clock):
    console, meter = io.StringIO(), Meter()
    log = run_log(tmp_path, console, steps=100)
    for step in range(1, 12):
        clock[0] += 10
        meter.step_done({"loss": torch.tensor(float(step))}, 4)
        log.step_done(step, meter, lr=0.1, every=8)
        if step == 9:
            log.line("an evaluation")
    log.close()
    assert [line.split("  ")[:2] for line in console.getvalue().splitlines()] == [
        ["step 1/100", "loss 1.000"],
        ["step 4/100", "loss 2.500"],  # the mean since the last record, which is not written
        ["step 7/100", "loss 4.000"],
        ["step 8/100", "loss 4.500"],
        ["an evaluation"],
    ]
    assert [record["step"] for record in records(tmp_path)] == [8]


def test_the_bar_shows_speed_and_memory_and_is_new_every_second(tmp_path, clock, monkeypatch):
    monkeypatch.setattr("detres.engine.log.most_memory", lambda: "3.5 GiB")
    console, meter = Terminal(), Meter()
    log = run_log(tmp_path, console, steps=100)
    shown = []
    monkeypatch.setattr(log.bar, "set_postfix_str", shown.append)
    for step, seconds in ((1, 0.5), (2, 0.6), (3, 0.5), (4, 0.5)):
        clock[0] += seconds
        meter.step_done({"loss": torch.tensor(float(step))}, 4)
        meter.step_s = float(step)
        log.step_done(step, meter, lr=0.1, every=100)
    log.close()
    assert shown == ["loss 1.500  4.0 images/s  3.5 GiB", "loss 2.500  4.0 images/s  3.5 GiB"]
    assert records(tmp_path) == []


def test_a_resumed_run_keeps_the_evaluations_it_knows_of_alone(tmp_path):
    log = run_log(tmp_path, steps=30)
    for step in (10, 20, 30):
        log.evaluation(step, {"AP": step / 100})
    log.averaged(30, {"AP": 0.5})
    log.close()
    run_log(tmp_path, steps=30, progress=Progress(20, {10: 0.1})).close()
    assert [(record["step"], record["AP"]) for record in records(tmp_path)] == [(10, 0.1)]


def test_an_average_is_a_record_of_its_own_kind(tmp_path):
    log = run_log(tmp_path, steps=4)
    log.averaged(4, {"top1": 0.5})
    log.close()
    assert records(tmp_path) == [{"step": 4, "kind": "averaged", "top1": 0.5}]


def test_steps_are_recorded_every_so_often_and_after_the_last_one(tmp_path, clock):
    console = io.StringIO()
    log = run_log(tmp_path, console, steps=5)
    meter = Meter()
    for step in range(1, 6):
        clock[0] += 1.5
        meter.step_done({"loss": torch.tensor(float(step))}, 1)
        log.step_done(step, meter, lr=0.1 * step, every=2)
    log.close()
    assert [(record["step"], record["loss"]) for record in records(tmp_path)] == [
        (2, 1.5),
        (4, 3.5),
        (5, 5.0),
    ]
    assert [record["lr"] for record in records(tmp_path)] == pytest.approx([0.2, 0.4, 0.5])
    assert console.getvalue().splitlines() == [
        "step 1/5  loss 1.000  1.5 s to start",
        "step 2/5  loss 1.500  lr 0.20000  1.50 s/step  0:04 left",
        "step 4/5  loss 3.500  lr 0.40000  1.50 s/step  0:02 left",
        "step 5/5  loss 5.000  lr 0.50000  1.50 s/step  0:00 left",
    ]


def test_a_resumed_run_shows_its_own_first_step(tmp_path, clock):
    console = io.StringIO()
    log = run_log(tmp_path, console, steps=9, progress=Progress(6))
    clock[0] += 3
    log.step_done(7, metered(2.0), lr=0.1, every=100)
    log.step_done(8, metered(2.0), lr=0.1, every=100)
    log.close()
    assert console.getvalue() == "step 7/9  loss 2.000  3.0 s to start\n"
    assert records(tmp_path) == []


NO_ANSWER = ConnectionError("no answer\nfrom the service")


class Told:
    """A writer that keeps what it is told, and fails in one of its methods."""

    def __init__(
        self,
        fails_in: str | None = None,
        error: BaseException = NO_ANSWER,
    ) -> None:
        self.told: list[tuple] = []
        self.fails_in, self.error = fails_in, error

    def _tell(self, method: str, *what: object) -> None:
        self.told.append((method, *what))
        if method == self.fails_in:
            raise self.error

    def started(self, config: Mapping[str, object], folder: Path, step: int) -> None:
        self._tell("started", dict(config), folder, step)

    def numbers(self, kind: str, step: int, record: Mapping[str, float | None]) -> None:
        self._tell("numbers", kind, step, record)

    def closed(self) -> None:
        self._tell("closed")


def test_writers_are_told_what_the_records_hold(tmp_path):
    writers = [Told(), Told()]
    log = run_log(tmp_path, steps=10, writers=writers)
    log.train(5, RECORD)
    log.evaluation(5, {"AP": math.nan, "APs": None})
    log.averaged(10, {"top1": 0.5})
    log.close()
    for writer in writers:
        assert writer.told == [
            ("started", {"seed": 3}, tmp_path, 0),
            *(
                ("numbers", record.pop("kind"), record.pop("step"), record)
                for record in records(tmp_path)
            ),
            ("closed",),
        ]


def test_a_writer_sees_a_record_that_is_there_already_and_cannot_change_it(tmp_path):
    class Reading(Told):
        def numbers(self, kind: str, step: int, record: dict) -> None:
            super().numbers(kind, step, records(tmp_path)[-1])
            record.clear()

    first, second = Reading(), Told()
    log = run_log(tmp_path, steps=9, writers=[first, second])
    log.train(3, RECORD)
    log.close()
    assert first.told[1] == ("numbers", "train", 3, {"step": 3, "kind": "train", **RECORD})
    assert second.told[1] == ("numbers", "train", 3, RECORD)


@pytest.mark.parametrize("method", ["started", "numbers", "closed"])
def test_a_writer_that_fails_is_said_once_and_left_out(tmp_path, method):
    console, failing, sound = io.StringIO(), Told(fails_in=method), Told()
    log = run_log(tmp_path, console, steps=10, writers=[failing, sound])
    for step in (5, 10):
        log.train(step, RECORD)
    log.close()
    said = [line for line in console.getvalue().splitlines() if "Told" in line]
    assert said == [
        "Told failed and is left out from here on, all numbers are in metrics.jsonl: "
        "ConnectionError: no answer from the service"
    ]
    assert [entry[0] for entry in failing.told].count(method) == 1
    assert failing.told[-1][0] == method
    assert [entry[0] for entry in sound.told] == ["started", "numbers", "numbers", "closed"]
    assert [record["step"] for record in records(tmp_path)] == [5, 10]


def test_a_stop_by_the_user_is_no_failure_of_a_writer(tmp_path):
    stopped = Told(fails_in="numbers", error=KeyboardInterrupt())
    log = run_log(tmp_path, steps=10, writers=[stopped])
    with pytest.raises(KeyboardInterrupt):
        log.train(5, RECORD)
    log.close()


def test_a_resumed_run_tells_no_step_again_that_its_records_keep(tmp_path):
    first, second = Told(), Told()
    for writer, start, steps in ((first, 0, (10, 20, 30)), (second, 20, (30, 40))):
        log = run_log(tmp_path, steps=40, progress=Progress(start), writers=[writer])
        for step in steps:
            log.train(step, RECORD)
        log.close()
    assert second.told[0] == ("started", {"seed": 3}, tmp_path, 20)
    kept = [each[2] for each in first.told if each[0] == "numbers" and each[2] <= 20]
    told = kept + [each[2] for each in second.told if each[0] == "numbers"]
    assert told == [record["step"] for record in records(tmp_path)] == [10, 20, 30, 40]


WITHOUT_TENSORBOARD = """
import sys
sys.modules["tensorboard"] = None  # as where it is not installed
from pathlib import Path
from detres.engine.log import QuietLog, RunLog
from detres.engine.progress import Progress
folder = Path(sys.argv[1])
log = RunLog(folder / "metrics.jsonl", folder / "tensorboard", console=sys.stdout, steps=1,
             progress=Progress())
log.evaluation(1, {"AP": 0.5})
log.close()
"""


def test_without_tensorboard_a_run_says_where_its_curves_are(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TENSORBOARD, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    file = tmp_path / "metrics.jsonl"
    assert done.stdout == f"the curves are in {file}; for TensorBoard: pip install tensorboard\n"
    assert records(tmp_path) == [{"step": 1, "kind": "eval", "AP": 0.5}]
    assert not (tmp_path / "tensorboard").exists()


def test_the_log_of_a_following_process_forgets_where_the_first_one_records():
    class Counted:
        flushed = 0

        def flush(self):
            self.flushed += 1

    meter, log, counts = Counted(), QuietLog(), []
    for step in range(1, 10):
        log.step_done(step, meter, lr=0.1, every=4)
        counts.append(meter.flushed)
    assert counts == [0, 0, 0, 1, 1, 1, 1, 2, 2]

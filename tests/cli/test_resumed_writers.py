"""Where the numbers of a run that is stopped and goes on end up: every step once in the writers it
had, among them TensorBoard, whose files are read back by TensorBoard.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import detres
from detres.cli import train_det
from detres.config import ConfigError
from detres.detection.alternating import FOLDERS
from detres.detection.resumed_run import resume_line_with
from detres.engine.stop import Interrupted
from detres.runs.folder import NoRunError
from tests.cli.test_python_api import SMALL

Point = tuple[str, int]

LOGGED = SMALL | {"train.log_every": 1, "train.save_every": 2}
FOUR_STEPS = {
    "train.scheme": "alternating",
    "train.steps": 8,
    "train.phase_steps": [2, 2, 2, 2],
}


@pytest.fixture(autouse=True)
def _fresh_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


class Noted:
    """Keeps what it is told, by the run's folder; asks for a stop once it is told of step `at` in
    the folder `of`.
    """

    def __init__(self, at: int | None = None, of: str = "") -> None:
        self.at, self.of = at, of
        self.starts: list[tuple[str, int]] = []
        self.told: dict[str, list[Point]] = {}
        self.open = 0

    def started(self, config: Mapping[str, object], folder: Path, step: int) -> None:
        assert config["train"]["log_every"] == 1
        self.folder = folder.name
        self.starts.append((folder.name, step))
        self.open += 1

    def numbers(self, kind: str, step: int, record: Mapping[str, float | None]) -> None:
        points = [(f"{kind}/{name}", step) for name, value in record.items() if value is not None]
        self.told.setdefault(self.folder, []).extend(points)
        if kind == "train" and step == self.at and self.folder.startswith(self.of):
            os.kill(os.getpid(), signal.SIGINT)

    def closed(self) -> None:
        self.open -= 1


def recorded(folder: Path) -> list[Point]:
    """Every number of metrics.jsonl, by name and step."""
    found = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        kind, step = record.pop("kind"), record.pop("step")
        found += [
            (f"{kind}/{name}", step)
            for name, value in record.items()
            if isinstance(value, (int, float))
        ]
    return sorted(found)


def in_tensorboard(folder: Path) -> list[Point]:
    """Every point that TensorBoard shows, by name and step."""
    read = EventAccumulator(str(folder / "tensorboard"))
    read.Reload()
    return sorted(
        (name, each.step) for name in read.Tags()["scalars"] for each in read.Scalars(name)
    )


def stopped_in_python(data: Path, writer: Noted, **settings: object) -> None:
    with pytest.raises(Interrupted):
        detres.train(
            data, settings=LOGGED | settings, out="runs/it", device="cpu", writers=[writer]
        )
    assert writer.open == 0


def numbers_alone(points: list[Point]) -> list[Point]:
    """Without the digests, which are no numbers."""
    return sorted(point for point in points if not point[0].endswith("_digest"))


def test_a_run_resumed_in_python_tells_its_writers_and_tensorboard_every_step_once(
    coco_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, folder = Noted(at=3), Noted(), Path("runs/it")
    stopped_in_python(coco_folder, first, **{"train.steps": 6})
    assert "continue with: detres.resume('runs/it', writers=[...])" in capsys.readouterr().out
    detector = detres.resume("it", device="cpu", writers=[second])
    assert "its numbers went to" not in capsys.readouterr().out
    assert (first.starts, second.starts, second.open) == ([("it", 0)], [("it", 3)], 0)
    assert numbers_alone(first.told["it"] + second.told["it"]) == recorded(folder)
    assert in_tensorboard(folder) == recorded(folder)
    assert {step for name, step in recorded(folder) if name == "train/loss"} == {*range(1, 7)}
    saved = json.loads((folder / "metrics.json").read_text())
    numbers = detector.evaluate().metrics
    assert numbers == {name: saved[name] for name in numbers}


def test_steps_that_the_state_lacks_are_told_again_and_tensorboard_shows_them_once(
    coco_folder: Path,
) -> None:
    """As after a crash behind the state: it has step 2, and step 3 was told."""
    folder, second = Path("runs/it"), Noted()
    stopped_in_python(coco_folder, Noted(at=3), **{"train.steps": 4})
    (folder / "last.pt").unlink()
    detres.resume(folder, device="cpu", writers=[second])
    assert second.starts == [("it", 2)]
    assert {step for name, step in second.told["it"] if name == "train/loss"} == {3, 4}
    assert in_tensorboard(folder) == recorded(folder)


def test_the_command_says_which_writers_it_goes_on_without_and_tensorboard_goes_on(
    coco_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("runs/it")
    stopped_in_python(coco_folder, Noted(at=1), **{"train.steps": 4})
    shutil.copytree(folder, "runs/other")
    said = (
        "note: its numbers went to Noted too, and no more from here on: in Python, resume takes "
        "writers"
    )
    for _ in range(2):  # the second time it is over, and only evaluated
        capsys.readouterr()
        assert train_det.main(["--resume", str(folder), "--device", "cpu"]) == 0
        assert said in capsys.readouterr().out
    assert in_tensorboard(folder) == recorded(folder)
    detres.resume("runs/other", device="cpu", writers=[Noted()])
    assert said not in capsys.readouterr().out


def test_four_alternating_steps_go_on_with_their_writers(coco_folder: Path) -> None:
    first, second = Noted(at=1, of="2-"), Noted()
    stopped_in_python(coco_folder, first, **FOUR_STEPS)
    detres.resume("runs/it", device="cpu", writers=[second])
    assert second.starts == [(FOLDERS[1], 1), (FOLDERS[2], 0), (FOLDERS[3], 0)]
    for name in FOLDERS:
        folder = Path("runs/it") / name
        told = first.told.get(name, []) + second.told.get(name, [])
        assert numbers_alone(told) == recorded(folder) == in_tensorboard(folder)


@pytest.mark.parametrize("between", [True, False])
def test_four_alternating_steps_say_once_which_writers_they_go_on_without(
    coco_folder: Path, capsys: pytest.CaptureFixture[str], between: bool
) -> None:
    stopped_in_python(coco_folder, Noted(at=1, of="2-"), **FOUR_STEPS)
    if between:  # as if it had been stopped before the second step began
        shutil.rmtree(Path("runs/it") / FOLDERS[1])
    capsys.readouterr()
    assert train_det.main(["--resume", "runs/it", "--device", "cpu"]) == 0
    before, after = capsys.readouterr().out.split(f"runs/it/{FOLDERS[1]}\n", maxsplit=1)
    assert ("its numbers went to Noted too" in before) is between
    assert ("its numbers went to Noted too" in after) is not between


def test_what_a_resumed_run_cannot_be_given(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="has no started"):
        detres.resume("it", writers=["wandb"])
    with pytest.raises(ConfigError, match=r"^train\.batch_size cannot be otherwise in a run that"):
        detres.resume("it", settings={"train.batch_size": 4})
    with pytest.raises(NoRunError, match=r"no run to resume: no last\.pt in runs/it"):
        detres.resume("it")
    with pytest.raises(ValueError, match="no training state at"):
        detres.resume(tmp_path)


def test_the_line_that_goes_on_is_a_command_unless_there_are_writers() -> None:
    folder, rate = Path("runs/my data"), {"train.lr": 0.001}
    command, call = resume_line_with([]), resume_line_with([Noted()])
    assert command(folder, {}) == "detres train-det --resume 'runs/my data'"
    assert command(folder, rate) == "detres train-det --resume 'runs/my data' --set train.lr=0.001"
    assert call(folder, {}) == "detres.resume('runs/my data', writers=[...])"
    assert call(folder, rate) == (
        "detres.resume('runs/my data', settings={'train.lr': 0.001}, writers=[...])"
    )

"""How a time is read, and how many steps fit into it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from detres.config import check
from detres.detection.config import DetectionConfig, DetectionTrainConfig
from detres.detection.duration import in_units, seconds_of
from detres.detection.time_budget import (
    LEAST_STEPS,
    Pace,
    ShortTimeError,
    images_judged,
    in_length,
    pace_of,
    with_time,
)
from detres.detection.training import DetectionTraining
from tests.cli.conftest import TINY


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("30m", 1800), ("90s", 90), ("2h", 7200), ("1h30m", 5400), ("1h0m30s", 3630)),
        *((" 45S ", 45), ("120m", 7200), ("2H", 7200)),
    ],
)
def test_times_are_read(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "1.5h", "30m1h", "-5m", "30 m", "1d", "3m3m"])
def test_other_texts_are_no_times(text: str) -> None:
    with pytest.raises(ValueError, match="is no time: write it as 30m, 90s, 2h or 1h30m"):
        seconds_of(text)


@pytest.mark.parametrize("text", ["5s", "29s", "0m", "0h0m0s"])
def test_too_short_a_time_says_what_is_the_least(text: str) -> None:
    with pytest.raises(ValueError, match=f"{text} is too short: .* at least 30s"):
        seconds_of(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(30, "30s"), (89.2, "90s"), (119.9, "120s"), (121, "3m"), (3600, "1h"), (5340, "1h29m")],
)
def test_times_are_written_as_they_are_read(seconds: float, text: str) -> None:
    assert in_units(seconds) == text
    assert seconds <= seconds_of(text) < seconds + 60


def train_config(**given: object) -> DetectionTrainConfig:
    return DetectionTrainConfig(**{"steps": 1000, "batch_size": 4, "eval_every": 0, **given})


def config(**given: object) -> DetectionConfig:
    return check(DetectionConfig, {**TINY, "train": {**TINY["train"], **given}}, "tiny")


def test_evaluations_on_the_way_and_at_the_end_are_counted() -> None:
    assert images_judged(train_config(), 1000, 70) == 70
    every = train_config(eval_every=300, eval_images="all")
    assert images_judged(every, 1000, 70) == 4 * 70  # after 300, 600, 900 and 1000
    assert images_judged(every, 900, 70) == 3 * 70
    some = train_config(eval_every=300, eval_images=20)
    assert images_judged(some, 1000, 70) == 3 * 20 + 2 * 70  # at the end the best of before, too


@pytest.mark.parametrize(
    "given", [{"eval_every": 0}, {"eval_every": 7}, {"eval_every": "auto"}, {"eval_every": 400}]
)
@pytest.mark.parametrize("num_val", [1, 60, 5000])
def test_what_is_chosen_fits_and_no_more_would(given: dict, num_val: int) -> None:
    pace = Pace(step=0.5, image=0.02, spent=10.0)
    found = with_time(config(**given), pace, 1800, num_val).train
    assert pace.takes(found, found.steps, num_val) <= 0.94 * 1800
    assert pace.takes(found, found.steps + 30, num_val) > 0.94 * 1800


def test_a_step_more_would_be_too_long() -> None:
    pace = Pace(step=1.0, image=0.0, spent=4.0)
    assert with_time(config(eval_every=0), pace, 100, 10).train.steps == 90  # 94 - 4


def test_a_time_that_holds_no_run_says_which_would() -> None:
    pace = Pace(step=10.0, image=1.0, spent=20.0)
    with pytest.raises(ShortTimeError) as error:
        with_time(config(), pace, 90, 50)
    assert "90s is too short: a step takes 10 s, judging 50 held-out images 50 s" in str(
        error.value
    )
    advised = str(error.value).rpartition("give at least ")[2]
    assert with_time(config(), pace, seconds_of(advised), 50).train.steps >= LEAST_STEPS


def test_a_length_keeps_the_shape_of_the_schedule() -> None:
    long = train_config(milestones=(500, 900), warmup_steps=400)
    short = in_length(long, 100)
    assert (short.steps, short.milestones, short.warmup_steps) == (100, (50, 90), 20)
    epochs = train_config(steps=None, epochs=10, milestones=(5,))
    short = in_length(epochs, 40)
    assert (short.steps, short.epochs, short.milestones) == (40, None, (20,))
    assert in_length(train_config(milestones=(999,)), 30).milestones == ()


def test_real_steps_are_timed_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("DETRES_CACHE", str(tmp_path / "cache"))
    given = config(eval_every=1)
    training = DetectionTraining.start(given, torch.device("cpu"))
    before = {name: each.clone() for name, each in training.model.state_dict().items()}
    began = time.monotonic()
    pace = pace_of(training, began=began, building=1.0)
    took = time.monotonic() - began
    assert 0 < pace.step < took
    assert 0 < pace.image < took
    assert pace.step * 4 + pace.image < took
    assert 1 < pace.spent <= took + 1
    assert list((tmp_path / "here").iterdir()) == []
    changed = [name for name, each in training.model.state_dict().items() if "num" not in name]
    assert any(not torch.equal(before[name], training.model.state_dict()[name]) for name in changed)

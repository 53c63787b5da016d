"""Averages between two records, worked out by hand on a clock that stands still."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from detres.engine.meter import Meter


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    """The seconds that a meter believes have passed, in a list of one."""
    now = [50.0]
    monkeypatch.setattr("detres.engine.meter.time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def step(meter: Meter, clock: list[float], *, wait: float, work: float, loss: float) -> None:
    meter.wait_for_data()
    clock[0] += wait
    meter.data_ready()
    clock[0] += work
    meter.step_done({"loss": torch.tensor(loss, requires_grad=True)}, 6)


def test_a_record_has_the_means_of_values_and_times_and_begins_anew(clock):
    meter = Meter()
    step(meter, clock, wait=1.0, work=2.0, loss=3.0)
    clock[0] += 100.0  # an evaluation
    step(meter, clock, wait=2.0, work=3.0, loss=6.0)
    assert meter.mean("loss") == pytest.approx(4.5)
    assert meter.means() == pytest.approx({"loss": 4.5})
    assert meter.images_per_s == pytest.approx(12 / 8)
    assert meter.flush() == pytest.approx(
        {"loss": 4.5, "step_s": 2.5, "data_s": 1.5, "images_per_s": 12 / 8}
    )
    step(meter, clock, wait=0.5, work=0.5, loss=1.0)
    assert meter.flush() == pytest.approx(
        {"loss": 1.0, "step_s": 0.5, "data_s": 0.5, "images_per_s": 6.0}
    )


def test_bf16_values_are_added_up_in_float32(clock):
    meter = Meter()
    for _ in range(512):
        meter.step_done({"loss": torch.tensor(1.0, dtype=torch.bfloat16)}, 1)
    assert meter.mean("loss") == 1.0  # bfloat16 would stop counting at 256
    assert clock == [50.0]


def test_a_step_that_takes_no_time_has_a_finite_rate(clock):
    meter = Meter()
    step(meter, clock, wait=0.0, work=0.0, loss=1.0)
    assert meter.flush()["images_per_s"] == pytest.approx(6e9)


def test_a_value_that_was_never_seen_has_no_mean():
    with pytest.raises(KeyError, match="loss"):
        Meter().mean("loss")


def test_a_restored_meter_ends_in_the_same_record(clock):
    meter, other = Meter(), Meter()
    step(meter, clock, wait=1.0, work=2.0, loss=0.1)
    step(meter, clock, wait=0.5, work=0.25, loss=0.7)
    step(other, clock, wait=9.0, work=9.0, loss=9.0)
    other.restore(meter.state())
    for each in (meter, other):
        step(each, clock, wait=1.0, work=1.0, loss=1e-9)
    assert other.flush() == meter.flush()
    other.restore(Meter().state())
    step(other, clock, wait=1.0, work=1.0, loss=2.0)
    assert other.mean("loss") == 2.0

"""TensorBoard's events, read back by TensorBoard."""

from __future__ import annotations

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detres.engine.event_files import EventFile


def test_events_are_read_back_by_tensorboard_and_void_ones_are_not(tmp_path):
    first = EventFile(tmp_path / "events")
    for step in (1, 2, 3):
        first.add_scalar("train/loss", step / 4, step)
    second = EventFile(tmp_path / "events", purge_step=3)
    second.add_scalar("train/loss", 7.5, 3)
    assert len(list((tmp_path / "events").iterdir())) == 2
    read = EventAccumulator(str(tmp_path / "events"))
    read.Reload()
    found = {event.step: event.value for event in read.Scalars("train/loss")}
    assert found == {1: 0.25, 2: 0.5, 3: 7.5}
    first.close()
    second.close()

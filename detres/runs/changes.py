"""What a run that goes on has otherwise than when it was saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from detres.engine.progress import Progress
from detres.engine.schedule import Schedule
from detres.runs.fingerprint import Fingerprint
from detres.runs.saved import SavedRun
from detres.runs.state import reading_field


def changed_data(saved: SavedRun, data: Mapping[str, Fingerprint], num_images: int) -> str | None:
    """Return in words what of its data a saved run has otherwise; None where they are the same, as
    far as it says. data: as they are now, by split. num_images: of train, now.
    """
    before = saved.state["num_images"]
    with reading_field(saved.path, "data"):
        for split, now_there in (data if "data" in saved.state else {}).items():
            found = now_there.what_changed(saved.state["data"][split])
            if found is not None:
                return f"in {split}, {found}"
    return None if before == num_images else f"{before} training images then, {num_images} now"


def changed_length(
    saved: SavedRun, schedule: Schedule, progress: Progress, num_images: int
) -> str | None:
    """Return what is to be said where a run is longer or shorter than it was to be, None where it
    is not; schedule: that it has now.
    """
    before, milestones = saved.earlier.train.in_steps(num_images)
    if schedule.steps == before:
        return None
    earlier = replace(schedule, steps=before, milestones=milestones)
    rates = [f"{each.at(progress):g}" for each in (schedule, earlier)]
    return (
        f"goes on to step {schedule.steps}, where {before} was the end: the {schedule.shape} "
        f"schedule is that of {schedule.steps} steps from here on, lr "
        f"{' in place of '.join(dict.fromkeys(rates))}"
    )

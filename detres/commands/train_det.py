"""Train a Faster R-CNN: `train-det --data MY_FOLDER`, `train-det --cfg configs/coco_r101.yaml
--data COCO`; without arguments, on the embedded shapes.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from dataclasses import replace

from detres.cli.flags import DETECTION_CONFIG, resume_line_of, say
from detres.commands.configured import configured_name, saved_run
from detres.commands.own_data import new_run, run_name
from detres.commands.several import settle_resume, several
from detres.detection.alternating import AlternatingRun, read_saved
from detres.detection.config import DetectionConfig
from detres.detection.data.box_policy import AnnotationError
from detres.detection.resumed_run import resumed
from detres.detection.weights_file import WING
from detres.engine.allocator import keep_pages
from detres.engine.distributed import Group
from detres.runs.folder import DETECTOR_WEIGHTS, PICTURE
from detres.runs.run import TrainingRun


def train(arguments: argparse.Namespace) -> None:
    """Train to the configured end, in a new run folder or a resumed one."""
    keep_pages()
    with several(arguments) as group:
        with run_of(arguments, group) as run:
            if arguments.probe_memory:
                run.probe_memory()
            run.train()
        say(_done(run))


def _done(run: TrainingRun | AlternatingRun) -> str:
    made = [run.folder / name for name in (DETECTOR_WEIGHTS, PICTURE)]
    picture = f", picture {made[1]}" if made[1].exists() else ""
    return f"done in {run.duration()}; weights {made[0]}{picture}"


@contextlib.contextmanager
def resuming(arguments: argparse.Namespace) -> Iterator[None]:
    """Turn errors of reading --data into a ValueError that says what they are read as."""
    try:
        yield
    except (FileNotFoundError, AnnotationError) as error:
        if arguments.data is None:
            raise
        raise ValueError(
            f"--data {arguments.data} is read as the data that the run to resume was trained on, "
            f"which may have moved: {error}. Without --resume it starts a new run on it"
        ) from None


def run_of(arguments: argparse.Namespace, group: Group) -> TrainingRun | AlternatingRun:
    """Return what is to be trained, by the scheme of the configuration, by the processes of
    `group`.
    """
    device, resume_line = arguments.device, resume_line_of("train-det")
    own = run_name(arguments)
    settle_resume(
        arguments,
        lambda: own or configured_name(arguments, DetectionConfig, DETECTION_CONFIG),
        group,
    )
    if arguments.resume is None:
        with group.together():
            if group.size > 1 and arguments.time is not None:
                raise ValueError("--time is measured by one process: give --set train.steps=...")
            new = new_run(arguments)
        return replace(new, group=group).begin(arguments.out, resume_line=resume_line)
    with group.together():
        saved = saved_run(arguments, DetectionConfig, WING, read=read_saved, name=own)
    with resuming(arguments):
        return resumed(
            saved,
            group,
            device=device,
            resume_line=resume_line,
            accept_data_change=arguments.accept_data_change,
        )

"""Train a localiser: `train-loc --cfg configs/imagenet_loc_r101.yaml --data ILSVRC`; without
arguments, on the embedded shapes.
"""

from __future__ import annotations

import argparse

from detres.cli.flags import LOCALISATION_CONFIG, resume_line_of, say
from detres.commands.configured import config_from, configured_name, saved_run
from detres.commands.several import require_one_process, settle_resume
from detres.detection.localisation.config import LocalisationConfig
from detres.detection.localisation.training import LocalisationTraining
from detres.detection.localisation.weights_file import WING
from detres.engine.allocator import keep_pages
from detres.engine.determinism import compute_alike
from detres.engine.distributed import Group
from detres.network import require_downloaded
from detres.runs.folder import DETECTOR_WEIGHTS, PICTURE
from detres.runs.run import TrainingRun


def train(arguments: argparse.Namespace) -> None:
    """Train to the configured end, in a new run folder or a resumed one."""
    keep_pages()
    require_one_process("train-loc")
    if arguments.deterministic:
        compute_alike()
    device, resume_line = arguments.device, resume_line_of("train-loc")
    settle_resume(
        arguments,
        lambda: configured_name(arguments, LocalisationConfig, LOCALISATION_CONFIG),
        Group(),
    )
    if arguments.resume is None:
        config = config_from(arguments, LocalisationConfig, LOCALISATION_CONFIG)
        require_downloaded(config.model.backbone.weights, offline=arguments.offline)
        training = LocalisationTraining.start(config, device)
        run = TrainingRun.start(training, arguments.out, device=device, resume_line=resume_line)
    else:
        saved = saved_run(arguments, LocalisationConfig, WING)
        training = LocalisationTraining.resume(saved, device)
        run = TrainingRun.resume(
            saved,
            training,
            device=device,
            resume_line=resume_line,
            accept_data_change=arguments.accept_data_change,
        )
    with run:
        run.train()
    weights, picture = run.folder / DETECTOR_WEIGHTS, run.folder / PICTURE
    say(f"done in {run.duration()}; weights {weights}, picture {picture}")

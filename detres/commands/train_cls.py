"""Train a classifier: `train-cls --cfg configs/cifar10_resnet20.yaml --data CIFAR`; without
arguments, on the embedded shapes.
"""

from __future__ import annotations

import argparse

from detres.classification.config import ClassificationConfig
from detres.classification.training import ClassificationTraining
from detres.classification.weights_file import STATE_KEYS, WING
from detres.cli.flags import CLASSIFICATION_CONFIG, resume_line_of, say
from detres.commands.configured import config_from, configured_name, saved_run
from detres.commands.several import settle_resume, several
from detres.engine.allocator import keep_pages
from detres.engine.distributed import Group
from detres.network import require_downloaded
from detres.runs.folder import CLASSIFIER_WEIGHTS
from detres.runs.run import TrainingRun


def train(arguments: argparse.Namespace) -> None:
    """Train to the configured end, in a new run folder or a resumed one."""
    keep_pages()
    with several(arguments) as group, run_of(arguments, group) as run:
        if arguments.probe_memory:
            run.probe_memory()
        run.train()
        run.training.average_batch_norm(run)
        say(f"done in {run.duration()}; weights {run.folder / CLASSIFIER_WEIGHTS}")


def run_of(arguments: argparse.Namespace, group: Group) -> TrainingRun:
    """Return what is to be trained, new or resumed, by the processes of `group`."""
    device, resume_line = arguments.device, resume_line_of("train-cls")
    settle_resume(
        arguments,
        lambda: configured_name(arguments, ClassificationConfig, CLASSIFICATION_CONFIG),
        group,
    )
    if arguments.resume is None:
        with group.together():
            config = config_from(arguments, ClassificationConfig, CLASSIFICATION_CONFIG)
            require_downloaded(config.model.network.weights, offline=arguments.offline)
            training = ClassificationTraining.start(config, device, say, group)
        return TrainingRun.start(training, arguments.out, device=device, resume_line=resume_line)
    with group.together():
        saved = saved_run(arguments, ClassificationConfig, WING, *STATE_KEYS)
        training = ClassificationTraining.resume(saved, device, say, group)
    return TrainingRun.resume(
        saved,
        training,
        device=device,
        resume_line=resume_line,
        accept_data_change=arguments.accept_data_change,
    )

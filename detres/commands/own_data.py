"""The configuration of train-det's flags: that of --cfg, or, for `--data THEIRS` alone, one made
for the data that are found there; and the length that --time allows.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import NamedTuple

from detres.cli.flags import DETECTION_CONFIG, notice, say
from detres.commands.configured import config_from, config_path, overrides_of, read_config
from detres.config import given_settings
from detres.detection.alternating import TRAININGS
from detres.detection.annotations import Annotations
from detres.detection.config import DetectionConfig
from detres.detection.duration import in_units
from detres.detection.own_data import OwnData, described, name_of, replaced_data
from detres.detection.time_budget import pace_of, with_time
from detres.runs.settings import holds_shapes, with_data_root


def is_own(arguments: argparse.Namespace) -> bool:
    """Whether the settings are to be made for the data of --data, or the weights of --init-from."""
    if arguments.cfg is not None or (arguments.data is None and arguments.init_from is None):
        return False
    return arguments.data is None or not holds_shapes(Path(arguments.data))


def run_name(arguments: argparse.Namespace) -> str | None:
    """Return the name of runs on the data of --data; None where a configuration gives it."""
    return name_of(arguments.data) if arguments.data and is_own(arguments) else None


class Settled(NamedTuple):
    """The checked configuration of a new run, and its train and val where they were read for it."""

    config: DetectionConfig
    read: tuple[Annotations, Annotations] | None = None


def settled_run(arguments: argparse.Namespace) -> Settled:
    """Return what is to be trained by the flags, all that was found and chosen said.

    Raises what recognising, reading and checking raise, ShortTimeError for a --time that is too
    short.
    """
    began = time.monotonic()
    if not is_own(arguments):
        settled = Settled(_configured(arguments))
        return settled if arguments.time is None else _in_time(settled, arguments, began)
    own = OwnData.read(
        arguments.data,
        overrides_of(arguments),
        device=arguments.device,
        init_from=arguments.init_from,
        say=say,
    )
    read = own.train, own.val
    config, choices = own.configured()
    if arguments.time is not None:
        timed, _ = _in_time(Settled(config, read), arguments, began)
        config, choices = own.configured(timed.train.steps)
    for line in own.lines(choices):
        say(line)
    return Settled(config, read)


def _configured(arguments: argparse.Namespace) -> DetectionConfig:
    """The configuration of --cfg, with the data that are at --data where these are others than it
    describes.
    """
    if arguments.data is None:
        return config_from(arguments, DetectionConfig, DETECTION_CONFIG)
    overrides = overrides_of(arguments)
    config = read_config(config_path(arguments.cfg), DetectionConfig, overrides)
    given = given_settings(DetectionConfig, overrides)
    replaced = replaced_data(config, arguments.data, given)
    if replaced is None:
        return config.model_copy(update={"data": with_data_root(config.data, arguments.data)})
    config, recognised = replaced
    for line in described(recognised):
        say(line)
    notice(
        f"{config_path(arguments.cfg)} describes other data than these: its model and training "
        "are used with what was found"
    )
    return config


def _in_time(settled: Settled, arguments: argparse.Namespace, began: float) -> Settled:
    """The same with as many steps as fit into --time, which is measured."""
    config, making = settled.config, time.monotonic()
    if config.train.scheme == "alternating":
        raise ValueError("--time does not go with train.scheme=alternating: give train.steps")
    say("measuring how long a step and an evaluation take (these steps do not count)")
    training = TRAININGS[config.train.scheme].start(
        config, arguments.device, arguments.init_from, settled.read
    )
    pace = pace_of(training, began=began, building=time.monotonic() - making)
    data = training.data
    config = with_time(config, pace, arguments.time, len(data.val))
    total = pace.takes(config.train, config.train.steps, len(data.val))
    say(
        f"{config.train.steps} steps of {pace.step:.2g} s and the evaluations take about "
        f"{in_units(total)}"
    )
    return Settled(config, (data.train, data.val))

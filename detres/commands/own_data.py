"""The configuration of train-det's flags: that of --cfg, or, for `--data THEIRS` alone, one made
for the data that are found there; and the length that --time allows.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from detres.cli.flags import DETECTION_CONFIG, notice, say
from detres.cli.paths import config_path
from detres.commands.configured import (
    config_from,
    overrides_of,
    read_config,
    weights_of,
)
from detres.config import given_settings
from detres.detection.config import DetectionConfig
from detres.detection.own_data import described, name_of, replaced_data
from detres.detection.own_run import NewRun
from detres.network import require_downloaded
from detres.runs.settings import holds_shapes, with_data_root


def is_own(arguments: argparse.Namespace) -> bool:
    """Whether the settings are to be made for the data of --data, or the weights of --init-from."""
    if arguments.cfg is not None or (arguments.data is None and arguments.init_from is None):
        return False
    return arguments.data is None or not holds_shapes(Path(arguments.data))


def run_name(arguments: argparse.Namespace) -> str | None:
    """Return the name of runs on the data of --data; None where a configuration gives it."""
    return name_of(arguments.data) if arguments.data and is_own(arguments) else None


def new_run(arguments: argparse.Namespace) -> NewRun:
    """Return what is to be trained by the flags, all that was found and chosen said.

    Raises what recognising, reading and checking raise, ShortTimeError for a --time that is too
    short.
    """
    device, seconds = arguments.device, arguments.time
    offline, init_from = arguments.offline, None
    if arguments.init_from is not None:
        init_from = weights_of(arguments.init_from, offline=offline)
    if is_own(arguments):
        return NewRun.on(
            arguments.data,
            overrides_of(arguments),
            device=device,
            init_from=init_from,
            seconds=seconds,
            offline=offline,
            say=say,
        )
    began = time.monotonic()
    config = _configured(arguments)
    if init_from is None:
        require_downloaded(config.model.backbone.weights, offline=offline)
    new = NewRun(config, device, init_from)
    return new if seconds is None else new.within(seconds, began=began, say=say)


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

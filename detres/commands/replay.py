"""Say what is at fault in the step at which a training failed: `replay runs/NAME/bundle-step-N`."""

from __future__ import annotations

import argparse
from pathlib import Path

from detres.classification.replay import classification_step
from detres.classification.weights_file import WING as CLASSIFICATION
from detres.cli.flags import say
from detres.detection.replay import detection_step
from detres.detection.weights_file import WING as DETECTION
from detres.files import CheckpointError
from detres.runs.bundle import Bundle
from detres.runs.replay import what_is_at_fault

STEPS = {DETECTION: detection_step, CLASSIFICATION: classification_step}
"""Wing of a run -> what makes its step anew."""


def replay(arguments: argparse.Namespace) -> None:
    """Read the bundle, compute its step image by image, and say what is at fault; raises
    CheckpointError for a bundle that cannot be used.
    """
    bundle = Bundle.read(Path(arguments.bundle))
    step = None
    if bundle.state is not None and bundle.kind != "memory":
        if bundle.wing not in STEPS:
            raise CheckpointError(
                f"{bundle.path} is of a run of {bundle.wing}, of which no step is replayed: "
                "what its last steps were is in bundle.json, what its layers did in layers.json"
            )
        step = STEPS[bundle.wing](bundle)
    for line in what_is_at_fault(bundle, step, arguments.device):
        say(line)

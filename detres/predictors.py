"""Weights files as a user calls them: a detector or a classifier, by what the file holds."""

from __future__ import annotations

from pathlib import Path

from detres.classification.classifier import Classifier
from detres.classification.weights_file import is_classifier
from detres.config import Notice
from detres.detection.detector import Detector
from detres.detection.named_weights import weights_called


def load(
    file_or_name: str | Path, notice: Notice = lambda _: None, *, offline: bool = False
) -> Detector | Classifier:
    """Return what a run has learned, a detector or a classifier, or a published detector, on the
    CPU.

    file_or_name: its weights file; the state it was stopped in, last.pt; its folder, or its name
    (runs/NAME, of several the one saved last), of which it is what find_weights chooses; or the
    name of a published detector, see weights_called. notice: called with a line when the file, of
    an earlier version, carries no checksum, and when it is a state. offline: nothing is downloaded.
    Raises CheckpointError naming the file when it is missing, damaged, or nothing of a run, and
    saying what it is; OtherWingError for the state of a localiser.
    """
    path = weights_called(file_or_name, offline=offline, notice=notice)
    return (Classifier if is_classifier(path) else Detector).load(path, notice)

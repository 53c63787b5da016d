"""Weights files as a user calls them: a detector or a classifier, by what the file holds."""

from __future__ import annotations

from pathlib import Path

from detres.classification.classifier import Classifier
from detres.classification.weights_file import is_classifier
from detres.config import Notice
from detres.detection.detector import Detector
from detres.runs.weights import find_weights


def load(file_or_name: str | Path, notice: Notice = lambda _: None) -> Detector | Classifier:
    """Return what a run has learned, a detector or a classifier, on the CPU.

    file_or_name: its weights file; the state it was stopped in, last.pt; its folder, or its name
    (runs/NAME, of several the one saved last), of which it is what find_weights chooses. notice:
    called with a line when the file, of an earlier version, carries no checksum, and when it is a
    state. Raises CheckpointError naming the file when it is missing, damaged, or nothing of a run,
    and saying what it is; OtherWingError for the state of a localiser.
    """
    path = find_weights(file_or_name)
    return (Classifier if is_classifier(path) else Detector).load(path, notice)

"""Weights files as a user calls them: a detector or a classifier, by what the file holds."""

from __future__ import annotations

from pathlib import Path

from detres.classification.classifier import Classifier
from detres.classification.weights_file import as_classifier, is_classifier
from detres.config import Notice
from detres.detection.inference.detector import Detector
from detres.detection.weights_file import as_detector
from detres.runs.folder import weights_in


def load(path: str | Path, notice: Notice = lambda _: None) -> Detector | Classifier:
    """Return what a run has learned, a detector or a classifier, on the CPU.

    path: its weights file; the state it was stopped in, last.pt; or its folder, of which it is the
    one that weights_in chooses. notice: called with a line when the file, of an earlier version,
    carries no checksum, and when it is a state. Raises CheckpointError naming the file when it is
    missing, damaged, or nothing of a run, and saying what it is; OtherWingError for the state of a
    localiser.
    """
    path = weights_in(Path(path))
    return as_classifier(path, notice) if is_classifier(path) else as_detector(path, notice)

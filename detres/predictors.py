"""Weights files as a user calls them: a detector or a classifier, by what the file holds."""

from __future__ import annotations

from pathlib import Path

from detres.classification.classifier import Classifier
from detres.classification.weights_file import is_classifier
from detres.config import Notice
from detres.detection.detector import Detector
from detres.runs.weights import find_weights


def load(file_or_name: str | Path, notice: Notice = lambda _: None) -> Detector | Classifier:
    """Return the detector or the classifier of a weights file, a run folder or a run's name
    (runs/NAME, the one saved last), on the CPU.

    notice: called with a line when the file, of an earlier version, carries no checksum. Raises
    CheckpointError naming the file when it is missing, damaged, or no weights file of a run, and
    saying what it is.
    """
    path = find_weights(file_or_name)
    return (Classifier if is_classifier(path) else Detector).load(path, notice)

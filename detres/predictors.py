"""Weights files as a user calls them: a detector or a classifier, by what the file holds."""

from __future__ import annotations

from pathlib import Path

from detres.classification.classifier import Classifier
from detres.classification.weights_file import as_classifier, is_classifier
from detres.config import Notice
from detres.detection.inference.detector import Detector
from detres.detection.weights_file import as_detector


def load(path: str | Path, notice: Notice = lambda _: None) -> Detector | Classifier:
    """Return what the weights file of a run holds, a detector or a classifier, on the CPU.

    notice: called with a line when the file, of an earlier version, carries no checksum. Raises
    CheckpointError naming the file when it is missing, damaged, or no weights file of a run, and
    saying what it is.
    """
    path = Path(path)
    return as_classifier(path, notice) if is_classifier(path) else as_detector(path, notice)

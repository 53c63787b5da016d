"""Weights files as a user calls them: a detector or a classifier, by what the file holds."""

from __future__ import annotations

from pathlib import Path

from detres.classification.classifier import Classifier
from detres.classification.weights_file import as_classifier, is_classifier
from detres.detection.inference.detector import Detector
from detres.detection.weights_file import as_detector


def load(path: str | Path) -> Detector | Classifier:
    """Return what the weights file of a run holds, a detector or a classifier, on the CPU.

    Raises CheckpointError naming the file when it is missing, or no weights file of a run.
    """
    path = Path(path)
    return as_classifier(path) if is_classifier(path) else as_detector(path)

"""Object detection on ResNet backbones, after He et al. 2016:
`detres.load(FILE).predict(IMAGES)`.
"""

from __future__ import annotations

from pathlib import Path

from detres.class_map import ClassMap
from detres.classification.classifier import Classifier
from detres.classification.weights_file import as_classifier, is_classifier
from detres.detection.annotations import Annotations
from detres.detection.evaluation.coco_ap import evaluate_coco
from detres.detection.evaluation.voc_ap import evaluate_voc
from detres.detection.inference.detector import Detector
from detres.detection.structures import Detections, Predictions
from detres.detection.weights_file import as_detector

__version__ = "0.1.0"
__all__ = [
    "Annotations",
    "ClassMap",
    "Classifier",
    "Detections",
    "Detector",
    "Predictions",
    "evaluate_coco",
    "evaluate_voc",
    "load",
]


def load(path: str | Path) -> Detector | Classifier:
    """Return what the weights file of a run holds, a detector or a classifier, on the CPU.

    Raises CheckpointError naming the file when it is missing, or no weights file of a run.
    """
    path = Path(path)
    return as_classifier(path) if is_classifier(path) else as_detector(path)

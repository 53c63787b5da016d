"""Object detection on ResNet backbones (He et al. 2016): `detres.load(FILE).predict(IMAGES)`.

The names below are imported when they are first asked for: `detres --help` answers at once.
"""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Annotations": "detres.detection.annotations",
    "ClassMap": "detres.class_map",
    "Classifier": "detres.classification.classifier",
    "Detections": "detres.detection.structures",
    "Detector": "detres.detection.detector",
    "Predictions": "detres.detection.structures",
    "Predictor": "detres.detection.predictor",
    "Results": "detres.detection.inference.results",
    "evaluate_coco": "detres.detection.evaluation.coco_ap",
    "evaluate_voc": "detres.detection.evaluation.voc_ap",
    "load": "detres.predictors",
    "resume": "detres.detection.resumed_run",
    "train": "detres.detection.own_run",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    """Return a name of the Python API; raises AttributeError for others."""
    if name not in _HOMES:
        raise AttributeError(f"module 'detres' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]

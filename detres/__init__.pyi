"""What `detres` has, for type checkers, which do not follow its lazy imports."""

from detres.class_map import ClassMap as ClassMap
from detres.classification.classifier import Classifier as Classifier
from detres.detection.annotations import Annotations as Annotations
from detres.detection.detector import Detector as Detector
from detres.detection.evaluation.coco_ap import evaluate_coco as evaluate_coco
from detres.detection.evaluation.voc_ap import evaluate_voc as evaluate_voc
from detres.detection.inference.results import Results as Results
from detres.detection.own_run import train as train
from detres.detection.predictor import Predictor as Predictor
from detres.detection.resumed_run import resume as resume
from detres.detection.structures import Detections as Detections
from detres.detection.structures import Predictions as Predictions
from detres.predictors import load as load

__version__: str
__all__: list[str]

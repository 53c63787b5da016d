"""Evaluating by name of protocol: the numbers, what was found, and what explains a low number."""

from __future__ import annotations

from dataclasses import dataclass

from detres.detection.annotations import Annotations
from detres.detection.choices import CocoBackend
from detres.detection.evaluation.coco_ap import CocoResult, evaluate_coco
from detres.detection.evaluation.diagnose import explain
from detres.detection.evaluation.imagenet_det import evaluate_imagenet_det
from detres.detection.evaluation.voc_ap import VocResult, evaluate_voc
from detres.detection.structures import Predictions


@dataclass(frozen=True)
class DetectionEvaluation:
    """The result of a protocol, the truth and the predictions it is of, and likely causes where it
    is low.
    """

    result: CocoResult | VocResult
    truth: Annotations
    predictions: Predictions
    causes: list[str]

    @property
    def metrics(self) -> dict[str, float | None]:
        """The protocol's numbers by name, as fractions."""
        return self.result.metrics

    @property
    def best_metric(self) -> str:
        """Of `metrics`, the one that decides which weights are the best."""
        return self.result.best_metric

    def table(self) -> str:
        """Return the numbers with their protocol, and a line for each cause."""
        return "\n".join([self.result.table(), *(f"note: {cause}" for cause in self.causes)])


def evaluate(
    protocol: str,
    truth: Annotations,
    predictions: Predictions,
    *,
    iou_thresh: float = 0.5,
    backend: CocoBackend = "auto",
) -> DetectionEvaluation:
    """Evaluate predictions by "coco", "voc07", "voc12" or "imagenet_det".

    iou_thresh: of the VOC protocols, from which a detection is right. backend: who counts COCO's
    numbers, see evaluate_coco; of no other protocol. Raises NoTruthError for a
    test set without truth, and what evaluate_coco and evaluate_voc raise.
    """
    truth.require_truth()
    if protocol == "coco":
        result = evaluate_coco(truth, predictions, backend=backend)
    elif protocol == "imagenet_det":
        result = evaluate_imagenet_det(truth, predictions)
    else:
        result = evaluate_voc(truth, predictions, metric=protocol, iou_thresh=iou_thresh)
    causes = explain(truth, predictions, result.metrics[result.best_metric])
    return DetectionEvaluation(result, truth, predictions, causes)

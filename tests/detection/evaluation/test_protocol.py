from __future__ import annotations

import json

import pytest

from detres.class_map import ClassMap, ClassMismatchError
from detres.detection.evaluation.coco_ap import CocoResult, evaluate_coco
from detres.detection.evaluation.imagenet_det import evaluate_imagenet_det
from detres.detection.evaluation.protocol import evaluate
from detres.detection.evaluation.voc_ap import VocResult, evaluate_voc
from tests.detection.evaluation.scenes import predictions_of, random_scene, truth_of

BOX = (10, 10, 60, 60)
OTHER = (100, 100, 180, 180)


@pytest.mark.parametrize("seed", range(2))
def test_each_protocol_is_evaluated_by_its_name(seed: int) -> None:
    truth, found = random_scene(seed)
    coco = evaluate("coco", truth, found)
    assert isinstance(coco.result, CocoResult)
    assert coco.metrics == evaluate_coco(truth, found).metrics
    for metric in ("voc07", "voc12"):
        voc = evaluate(metric, truth, found, iou_thresh=0.7)
        assert isinstance(voc.result, VocResult)
        expected = evaluate_voc(truth, found, metric=metric, iou_thresh=0.7)
        assert voc.result.to_dict() == expected.to_dict()
        assert voc.predictions is found
        assert voc.causes == []
    assert coco.predictions is found
    imagenet = evaluate("imagenet_det", truth, found)
    assert imagenet.result.to_dict() == evaluate_imagenet_det(truth, found).to_dict()
    json.dumps(coco.result.to_dict())


@pytest.mark.parametrize(
    ("protocol", "best"),
    [("coco", "AP"), ("voc07", "mAP"), ("voc12", "mAP"), ("imagenet_det", "mAP")],
)
def test_the_metric_that_decides_is_the_protocols(protocol: str, best: str) -> None:
    truth = truth_of([("a", 1, BOX), ("a", 2, OTHER)], ["a"])
    perfect = evaluate(protocol, truth, predictions_of([("a", 1, 0.9, BOX), ("a", 2, 0.8, OTHER)]))
    assert perfect.best_metric == best
    assert best in perfect.metrics
    assert perfect.metrics[perfect.best_metric] == pytest.approx(1.0)
    assert perfect.causes == []
    assert perfect.table() == perfect.result.table()
    half = evaluate(protocol, truth, predictions_of([("a", 1, 0.9, BOX)]))
    assert half.metrics[half.best_metric] == pytest.approx(0.5)


def test_the_threshold_is_of_the_voc_protocols() -> None:
    truth = truth_of([("a", 1, (0, 0, 100, 100))], ["a"])
    found = predictions_of([("a", 1, 0.9, (0, 0, 100, 60))])  # IoU 0.6
    assert evaluate("voc12", truth, found).metrics["mAP"] == 1
    assert evaluate("voc12", truth, found, iou_thresh=0.7).metrics["mAP"] == 0
    assert evaluate("coco", truth, found, iou_thresh=0.7).metrics["AP"] == pytest.approx(0.3)


@pytest.mark.parametrize("protocol", ["coco", "voc07", "voc12", "imagenet_det"])
def test_a_low_number_comes_with_its_causes(protocol: str) -> None:
    truth = truth_of([("a", 1, BOX), ("a", 2, OTHER)], ["a"])
    nothing = evaluate(protocol, truth, predictions_of([]))
    assert nothing.metrics[nothing.best_metric] == 0
    (cause,) = nothing.causes
    assert "no detections at all" in cause
    assert nothing.table() == f"{nothing.result.table()}\nnote: {cause}"
    swapped = evaluate(protocol, truth, predictions_of([("a", 2, 0.9, BOX), ("a", 1, 0.8, OTHER)]))
    assert "the boxes are right but most classes are wrong" in swapped.causes[0]
    unmeasured = evaluate(protocol, truth_of([], ["a"]), predictions_of([("a", 1, 0.9, BOX)]))
    assert unmeasured.metrics[unmeasured.best_metric] is None
    assert "has no objects in its 1 images" in unmeasured.causes[0]


@pytest.mark.parametrize("protocol", ["coco", "voc07", "voc12", "imagenet_det"])
def test_what_cannot_be_evaluated_is_refused(protocol: str) -> None:
    truth = truth_of([("a", 1, BOX)], ["a"])
    with pytest.raises(ValueError, match="predictions for image b, which truth does not have"):
        evaluate(protocol, truth, predictions_of([("b", 1, 0.5, BOX)]))
    with pytest.raises(ClassMismatchError, match="1=owl"):
        evaluate(protocol, truth, predictions_of([], ClassMap.of_names(["owl"])))


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(ValueError, match="'voc10', expected voc07"):
        evaluate("voc10", truth_of([("a", 1, BOX)], ["a"]), predictions_of([]))

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from detres.detection.models.box_coder import BoxCoder
from detres.detection.models.box_head import Conv5BoxHead
from detres.detection.models.matcher import Matcher
from detres.detection.models.roi_head import BoxPredictor, RoIHead, RoIHeadSettings
from detres.detection.models.roi_pool import RoIPooler
from detres.detection.models.sampler import Sampler
from detres.detection.structures import FeatureMap, ImageBatch
from tests.helpers import make_batch, make_target, random_boxes, whole_map

NUM_CLASSES = 3
EMPTY = torch.zeros((0, 4))


def make_head(*, score_thresh: float = 0.05) -> RoIHead:
    return RoIHead(
        pooler=RoIPooler(strides={"conv4": 16}, kind="roi_align", output_size=3, sampling_ratio=2),
        box_head=Conv5BoxHead(conv5=nn.Conv2d(8, 16, 3, padding=1), out_channels=16),
        predictor=BoxPredictor(in_channels=16, num_classes=NUM_CLASSES),
        box_coder=BoxCoder((10.0, 10.0, 5.0, 5.0)),
        matcher=Matcher(fg_iou_thresh=0.5, bg_iou_thresh=0.5),
        sampler=Sampler(batch_size=8, positive_fraction=0.25),
        settings=RoIHeadSettings(
            score_thresh=score_thresh,
            nms_thresh=0.3,
            detections_per_image=5,
            smooth_l1_beta=1.0,
        ),
    )


def make_features(num: int = 1) -> dict[str, FeatureMap]:
    return {"conv4": whole_map(torch.randn((num, 8, 8, 8)))}


def make_images(num: int = 1) -> ImageBatch:
    return make_batch([(128, 128)] * num)


def test_first_loss_is_near_log_k_plus_1():
    losses = (
        make_head()
        .losses(
            make_features(),
            [random_boxes(50, 128)],
            make_images(),
            [make_target([[10, 10, 60, 60]], [2])],
        )
        .terms()
    )
    assert losses["loss_roi_cls"].item() == pytest.approx(math.log(NUM_CLASSES + 1), abs=0.1)


def test_sample_takes_objects_in_and_encodes_them():
    head = make_head()
    gt = torch.tensor([[10.0, 10, 60, 60]])
    near = torch.tensor([[12.0, 10, 62, 60]])
    rois, labels, deltas = head.sample(
        [torch.cat((near, random_boxes(30, 20) + 70))], make_images(), [make_target(gt, [2])]
    )
    assert labels.tolist() == [2, 2, 0, 0, 0, 0, 0, 0]
    expected = {
        tuple(near[0].tolist()): [-2 / 50 * 10, 0, 0, 0],
        tuple(gt[0].tolist()): [0, 0, 0, 0],
    }
    for roi, delta in zip(rois[0][:2], deltas[:2], strict=True):
        assert delta.tolist() == pytest.approx(expected[tuple(roi.tolist())], abs=1e-5)
    assert (deltas[2:] == 0).all()


def test_losses_by_hand():
    head = make_head()
    with torch.no_grad():
        for layer in (head.predictor.cls_score, head.predictor.bbox_pred):
            layer.weight.zero_()
        head.predictor.bbox_pred.bias.copy_(torch.arange(12.0))  # class 2 predicts (4, 5, 6, 7)
    gt = torch.tensor([[10.0, 10, 60, 60]])
    losses = head.losses(make_features(), [EMPTY], make_images(), [make_target(gt, [2])]).terms()
    assert list(losses) == ["loss_roi_cls", "loss_roi_box"]
    assert losses["loss_roi_cls"].item() == pytest.approx(math.log(4))
    assert losses["loss_roi_box"].item() == pytest.approx(
        (4 + 5 + 6 + 7) - 4 * 0.5
    )  # one RoI, all deltas beyond beta


def test_both_losses_are_divided_by_all_that_was_sampled():
    head = make_head()
    with torch.no_grad():
        for layer in (head.predictor.cls_score, head.predictor.bbox_pred):
            layer.weight.zero_()
        head.predictor.cls_score.bias[0] = math.log(2)  # background 2/5, each class 1/5
        head.predictor.bbox_pred.bias.copy_(torch.arange(12.0))
    background = [random_boxes(20, 20) + 70]
    objects = [make_target([[10.0, 10, 60, 60]], [2])]
    losses = head.losses(make_features(), background, make_images(), objects).terms()
    cls = (math.log(5) + 7 * math.log(5 / 2)) / 8  # one object, seven of background
    assert losses["loss_roi_cls"].item() == pytest.approx(cls, rel=1e-5)
    assert losses["loss_roi_box"].item() == pytest.approx(((4 + 5 + 6 + 7) - 4 * 0.5) / 8)


def test_box_loss_of_beta_0_is_l1():
    head = make_head()
    head.settings = dataclasses.replace(head.settings, smooth_l1_beta=0.0)
    with torch.no_grad():
        head.predictor.bbox_pred.weight.zero_()
        head.predictor.bbox_pred.bias[4:8] = torch.tensor([0.5, -0.25, 2.0, 0.0])
    gt = torch.tensor([[10.0, 10, 60, 60]])
    losses = head.losses(make_features(), [EMPTY], make_images(), [make_target(gt, [2])]).terms()
    assert losses["loss_roi_box"].item() == pytest.approx(0.5 + 0.25 + 2)


def test_class_agnostic_boxes_are_the_same_for_every_class():
    predictor = BoxPredictor(in_channels=16, num_classes=3, class_agnostic=True)
    assert predictor.bbox_pred.weight.shape == (4, 16)
    x = torch.randn((5, 16))
    logits, deltas = predictor(x)
    assert logits.shape == (5, 4)
    assert deltas.shape == (5, 3, 4)
    for column in range(3):
        assert torch.equal(deltas[:, column], predictor.bbox_pred(x))
    assert predictor(x[:0])[1].shape == (0, 3, 4)
    head = make_head()
    head.predictor = predictor
    gt = torch.tensor([[10.0, 10, 60, 60], [70, 70, 120, 120]])
    losses = head.losses(make_features(), [gt], make_images(), [make_target(gt, [1, 3])]).terms()
    losses["loss_roi_box"].backward()
    assert predictor.bbox_pred.bias.grad.abs().sum() > 0
    assert len(head.postprocess(*head(make_features(), [gt]), [gt], [(128, 128)])) == 1


def test_images_without_objects_and_without_proposals():
    head = make_head()
    features, images, targets = make_features(2), make_images(2), [make_target(EMPTY, [])] * 2
    losses = head.losses(features, [random_boxes(5, 128), EMPTY], images, targets).terms()
    assert losses["loss_roi_cls"] > 0
    assert losses["loss_roi_box"] == 0
    sum(losses.values()).backward()
    losses = head.losses(features, [EMPTY, EMPTY], images, targets).terms()
    assert losses["loss_roi_cls"] == losses["loss_roi_box"] == 0
    logits, deltas = head(features, [EMPTY, EMPTY])
    assert logits.shape == (0, NUM_CLASSES + 1)
    assert deltas.shape == (0, NUM_CLASSES, 4)
    found = head.postprocess(logits, deltas, [EMPTY, EMPTY], [(128, 128)] * 2)
    assert [len(each) for each in found] == [0, 0]
    assert found[0].boxes.shape == (0, 4)


def test_crowds_are_not_objects():
    _, labels, _ = make_head().sample(
        [random_boxes(5, 128)],
        make_images(),
        [make_target([[10, 10, 60, 60]], [2], crowd=[True])],
    )
    assert (labels == 0).all()
    (rois,), labels, _ = make_head().sample(
        [EMPTY],
        make_images(),
        [make_target([[10, 10, 60, 60], [0, 0, 9, 9]], [2, 1], crowd=[True, False])],
    )
    assert rois.tolist() == [[0, 0, 9, 9]]  # a crowd is no RoI to learn as background either
    assert labels.tolist() == [1]


def test_every_parameter_gets_a_gradient():
    head = make_head()
    head.losses(
        make_features(),
        [random_boxes(20, 128)],
        make_images(),
        [make_target([[10, 10, 60, 60]], [2])],
    ).total().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_detections_against_a_naive_loop():
    torch.manual_seed(3)
    head = make_head()
    boxes, scores = (
        random_boxes(40, 100).repeat_interleave(NUM_CLASSES, 0).view(40, NUM_CLASSES, 4),
        torch.rand((40, NUM_CLASSES)) * 0.5,
    )
    kept = []
    for column in range(NUM_CLASSES):
        rows = sorted(range(40), key=lambda row: -scores[row, column])
        chosen = []
        for row in rows:
            if scores[row, column] <= 0.05:
                continue
            a = boxes[row, column]
            overlaps = []
            for other in chosen:
                b = boxes[other, column]
                w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
                inter = max(w, 0) * max(h, 0)
                overlaps.append(
                    inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)
                )
            if all(overlap <= 0.3 for overlap in overlaps):
                chosen.append(row)
        kept += [(float(scores[row, column]), column + 1) for row in chosen]
    kept = sorted(kept, reverse=True)[:5]
    found = head.detections_of_image(boxes, scores)
    assert list(zip(found.scores.tolist(), found.labels.tolist(), strict=True)) == kept


def test_detections_are_inside_their_image():
    head = make_head(score_thresh=0.0)
    with torch.no_grad():
        head.predictor.bbox_pred.weight.normal_(0, 5)
    sizes, proposals = ((100, 120), (90, 128)), [random_boxes(9, 90)] * 2
    logits, deltas = head(make_features(2), proposals)
    detections = head.postprocess(logits, deltas, proposals, sizes)
    for found, (height, width) in zip(detections, sizes, strict=True):
        assert len(found) == 5
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 2] <= width).all()
        assert (found.boxes[:, 3] <= height).all()
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)


def test_scores_are_those_of_each_image_alone():
    head = make_head()
    features, proposals = make_features(2), [random_boxes(4, 128), random_boxes(3, 128, seed=1)]
    logits, deltas = head(features, proposals)
    assert logits.shape == (7, NUM_CLASSES + 1)
    assert deltas.shape == (7, NUM_CLASSES, 4)
    rows = zip(proposals, logits.split([4, 3]), deltas.split([4, 3]), strict=True)
    for n, (boxes, own_logits, own_deltas) in enumerate(rows):
        alone = head({"conv4": whole_map(features["conv4"].values[n : n + 1])}, [boxes])
        torch.testing.assert_close(own_logits, alone[0])
        torch.testing.assert_close(own_deltas, alone[1])


def test_postprocessing_by_hand():
    head = make_head()
    logits = torch.tensor([[0.0, 0, 2, 0], [0, 0, 0, 0], [3, 0, 0, 0]])
    deltas = torch.zeros((3, NUM_CLASSES, 4))
    deltas[0, 1] = torch.tensor([10.0, 0, 0, 0])  # class 2 moves by its own width
    first = torch.tensor([[10.0, 10, 30, 50]])
    second = torch.tensor([[0.0, 0, 20, 20], [0, 0, 20, 20]])
    found = head.postprocess(logits, deltas, [first, second], [(45, 48), (64, 64)])
    odds = math.exp(2)
    assert found[0].labels.tolist()[0] == 2
    assert found[0].scores[0].item() == pytest.approx(odds / (odds + 3))
    assert found[0].boxes[0].tolist() == pytest.approx([30, 10, 48, 45])  # clipped
    assert sorted(found[0].labels.tolist()[1:]) == [1, 3]
    assert found[0].boxes[1].tolist() == pytest.approx([10, 10, 30, 45])
    # of the two equal boxes of an image, NMS keeps one a class
    assert sorted(found[1].labels.tolist()) == [1, 2, 3]
    assert found[1].scores.tolist() == pytest.approx([0.25] * 3)


def test_a_score_at_the_threshold_is_no_detection():
    head = make_head(score_thresh=0.5)
    boxes = torch.tensor([[0.0, 0, 20, 20]]).view(1, 1, 4).expand(1, NUM_CLASSES, 4)
    above = math.nextafter(0.5, 1) + 1e-6
    found = head.detections_of_image(boxes, torch.tensor([[0.5, above, 0.4]]))
    assert found.labels.tolist() == [2]


def test_what_clipping_leaves_below_a_hundredth_of_a_pixel_is_no_detection():
    head = make_head()
    sides = [(0.0, 9.0), (0.005, 9.0), (9.0, 0.005), (0.02, 9.0), (9.0, 0.02)]
    boxes = torch.tensor([[[i * 20.0, 0, i * 20 + w, h]] for i, (w, h) in enumerate(sides)])
    found = head.detections_of_image(boxes, torch.full((5, 1), 0.9))
    assert sorted(found.boxes[:, 0].tolist()) == [60, 80]


def test_layers_start_as_in_the_prototxt():
    predictor = BoxPredictor(in_channels=512, num_classes=20)
    for layer, std in ((predictor.cls_score, 0.01), (predictor.bbox_pred, 0.001)):
        assert layer.weight.mean().abs() < std / 10
        assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
        assert (layer.bias == 0).all()

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from detres.models.box_coder import BoxCoder
from detres.models.matcher import Matcher
from detres.models.roi_head import BoxPredictor, RoIHead
from detres.models.roi_pool import RoIPooler
from detres.models.sampler import Sampler
from tests.helpers import make_batch, make_target, random_boxes

NUM_CLASSES = 3
EMPTY = torch.zeros((0, 4))


def make_head(**changes) -> RoIHead:
    settings = {
        "pooler": RoIPooler(kind="roi_align", output_size=3, sampling_ratio=2, stride=16),
        "conv5": nn.Conv2d(8, 16, 3, padding=1),
        "predictor": BoxPredictor(in_channels=16, num_classes=NUM_CLASSES),
        "box_coder": BoxCoder((10.0, 10.0, 5.0, 5.0)),
        "matcher": Matcher(fg_iou_thresh=0.5, bg_iou_thresh=0.5),
        "sampler": Sampler(batch_size=8, positive_fraction=0.25),
        "score_thresh": 0.05,
        "nms_thresh": 0.3,
        "detections_per_image": 5,
        "smooth_l1_beta": 1.0,
    }
    return RoIHead(**{**settings, **changes})


def test_first_loss_is_near_log_k_plus_1():
    loss_cls, _ = make_head().losses(
        torch.randn((1, 8, 8, 8)), [random_boxes(50, 128)], [make_target([[10, 10, 60, 60]], [2])]
    )
    assert loss_cls.item() == pytest.approx(math.log(NUM_CLASSES + 1), abs=0.1)


def test_sample_takes_objects_in_and_encodes_them():
    head = make_head()
    gt = torch.tensor([[10.0, 10, 60, 60]])
    near = torch.tensor([[12.0, 10, 62, 60]])
    rois, labels, deltas = head.sample(
        [torch.cat((near, random_boxes(30, 20) + 70))], [make_target(gt, [2])]
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
    loss_cls, loss_box = head.losses(torch.randn((1, 8, 8, 8)), [EMPTY], [make_target(gt, [2])])
    assert loss_cls.item() == pytest.approx(math.log(4))
    assert loss_box.item() == pytest.approx(
        (4 + 5 + 6 + 7) - 4 * 0.5
    )  # one RoI, all deltas beyond beta


def test_images_without_objects_and_without_proposals():
    head = make_head()
    feature = torch.randn((2, 8, 8, 8))
    loss_cls, loss_box = head.losses(
        feature, [random_boxes(5, 128), EMPTY], [make_target(EMPTY, [])] * 2
    )
    assert loss_cls > 0
    assert loss_box == 0
    (loss_cls + loss_box).backward()
    loss_cls, loss_box = head.losses(feature, [EMPTY, EMPTY], [make_target(EMPTY, [])] * 2)
    assert loss_cls == loss_box == 0
    found = head.detect(feature, [EMPTY, EMPTY], make_batch([(128, 128)] * 2))
    assert [len(each) for each in found] == [0, 0]
    assert found[0].boxes.shape == (0, 4)


def test_crowds_are_not_objects():
    _, labels, _ = make_head().sample(
        [random_boxes(5, 128)], [make_target([[10, 10, 60, 60]], [2], crowd=[True])]
    )
    assert (labels == 0).all()


def test_every_parameter_gets_a_gradient():
    head = make_head()
    sum(
        head.losses(
            torch.randn((1, 8, 8, 8)),
            [random_boxes(20, 128)],
            [make_target([[10, 10, 60, 60]], [2])],
        )
    ).backward()
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
    images = make_batch([(100, 120), (90, 128)])
    for found, (height, width) in zip(
        head.detect(torch.randn((2, 8, 8, 8)), [random_boxes(9, 90)] * 2, images),
        images.sizes,
        strict=True,
    ):
        assert len(found) == 5
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 2] <= width).all()
        assert (found.boxes[:, 3] <= height).all()
        assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)

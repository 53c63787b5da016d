from __future__ import annotations

import pytest
import torch
from torch import Tensor

from detres.config import check
from detres.detection.build import build_detector
from detres.detection.config import ModelConfig
from detres.detection.models.context import beside_whole_images, with_whole_images
from detres.detection.models.faster_rcnn import FasterRCNN
from tests.detection.models.test_faster_rcnn import TINY, alone, in_batches_of, with_opinions
from tests.helpers import make_batch, make_target, random_boxes

SIZES = ((64, 101), (120, 75), (33, 64))


def detector_of(**roi) -> FasterRCNN:
    torch.manual_seed(0)
    tree = {**TINY, "roi": {**TINY["roi"], **roi}}
    return with_opinions(build_detector(check(ModelConfig, tree, "test"), 4))


@pytest.fixture(scope="module")
def detector() -> FasterRCNN:
    return detector_of(context=True)


def test_regions_and_whole_images_by_hand():
    first = torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]])
    none = torch.zeros((0, 4))
    rois = with_whole_images([first, none], [(30, 40), (50, 20)])
    assert [boxes.tolist() for boxes in rois] == [
        [[1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 40, 30]],
        [[0, 0, 20, 50]],
    ]
    features = torch.tensor([[1.0, 1], [2, 2], [9, 8], [7, 6]])
    assert beside_whole_images(features, [2, 0]).tolist() == [[1, 1, 9, 8], [2, 2, 9, 8]]
    assert beside_whole_images(features[2:], [0, 0]).shape == (0, 4)


def regions_alone(detector: FasterRCNN, images, n: int, boxes: Tensor) -> Tensor:
    """The features of each box of image n, one at a time, from the image in a batch of its own."""
    features = detector.features(alone(images, n))
    head = detector.roi_head
    return torch.cat([head.box_head(head.pooler(features, [box[None]])) for box in boxes])


@pytest.mark.parametrize("pool", ["roi_pool", "roi_align", "roi_align_aligned"])
@torch.inference_mode()
def test_the_predictor_sees_a_region_beside_its_own_image_without_the_padding(pool):
    detector = detector_of(context=True, pool=pool)
    images = in_batches_of(make_batch(SIZES), (8, 27))  # the padding is noise
    rois = [random_boxes(5, 60, seed=1), torch.zeros((0, 4)), random_boxes(3, 30, seed=2)]
    logits, deltas = detector.roi_head(detector.features(images), rois, images.sizes)
    expected = []
    for n, (boxes, (height, width)) in enumerate(zip(rois, SIZES, strict=True)):
        if len(boxes):
            whole = regions_alone(detector, images, n, torch.tensor([[0.0, 0, width, height]]))
            own = regions_alone(detector, images, n, boxes)
            expected.append(torch.cat((own, whole.expand(len(own), -1)), dim=1))
    by_hand = detector.roi_head.predictor(torch.cat(expected))
    torch.testing.assert_close(logits, by_hand[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(deltas, by_hand[1], rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_what_is_elsewhere_in_the_image_changes_a_score_only_with_context(detector):
    """A region far from what changes: its receptive field is cut off, for the maps are given."""
    plain = detector_of(context=False)
    roi = [torch.tensor([[0.0, 0, 20, 20]])]
    for model, changes in ((detector, True), (plain, False)):
        features = model.features(make_batch([(64, 128)]))
        before, _ = model.roi_head(features, roi, [(64, 128)])
        features["conv4"].values[:, :, :, 5:] += 1
        after, _ = model.roi_head(features, roi, [(64, 128)])
        assert torch.equal(before, after) is not changes


def test_it_learns_end_to_end(detector):
    detector.zero_grad()
    targets = [make_target([[5, 5, 40, 40]], [3]), make_target(torch.zeros((0, 4)), [])]
    detector(make_batch([(64, 64), (60, 40)]), targets).total().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in detector.parameters())
    half = detector.roi_head.box_head.out_channels
    for layer in (detector.roi_head.predictor.cls_score, detector.roi_head.predictor.bbox_pred):
        assert layer.weight.grad[:, half:].abs().sum() > 0
    detector.zero_grad()
    with torch.no_grad():  # the region's half is switched off: what arrives, came by the context
        detector.roi_head.predictor.cls_score.weight[:, :half] = 0
        detector.roi_head.predictor.bbox_pred.weight[:, :half] = 0
    detector(make_batch([(64, 64)]), targets[:1], [torch.zeros((0, 4))]).total().backward()
    assert detector.roi_head.box_head.conv5[0].conv1.weight.grad.abs().sum() > 0
    assert detector.backbone.conv1.weight.grad.abs().sum() > 0
    with_opinions(detector)


def test_the_padding_changes_no_loss(detector):
    targets = [make_target([[3, 4, 40, 60]], [1]), make_target([[20, 70, 75, 120]], [3])]
    given = [random_boxes(12, 60, seed=1), random_boxes(12, 70, seed=2)]
    images = make_batch(list(SIZES[:2]))
    losses = []
    for extra in ((0, 0), (40, 90)):
        torch.manual_seed(3)
        losses.append(detector(in_batches_of(images, extra), targets, given).terms())
    for name, value in losses[0].items():
        assert value > 0
        assert losses[1][name].item() == pytest.approx(value.item(), rel=1e-4)


def test_it_doubles_the_predictors_input_and_changes_no_other_tensor(detector):
    own, plain = detector.state_dict(), detector_of().state_dict()
    assert own.keys() == plain.keys()
    wider = {name for name in own if own[name].shape != plain[name].shape}
    assert wider == {f"roi_head.predictor.{name}.weight" for name in ("cls_score", "bbox_pred")}
    for name in wider:
        assert own[name].shape[1] == 2 * plain[name].shape[1]


def test_no_region_and_no_sizes(detector):
    features = detector.features(make_batch([(64, 64)] * 2))
    none = [torch.zeros((0, 4))] * 2
    logits, deltas = detector.roi_head(features, none, [(64, 64)] * 2)
    assert (logits.shape, deltas.shape) == ((0, 5), (0, 4, 4))
    with pytest.raises(ValueError, match="context needs the sizes of the images"):
        detector.roi_head(features, [random_boxes(2, 60)] * 2)
    without = detector(make_batch([(64, 64)]), [make_target(none[0], [])], [none[0]]).terms()
    assert [value.item() for value in without.values()] == [0, 0]


@torch.inference_mode()
def test_it_goes_with_fc6_and_fc7_too():
    tree = {
        **TINY,
        "backbone": {"name": "vgg16", "fc_width": 24, "freeze_at": 0},
        "roi": {"pool": "roi_pool", "pool_size": 7, "context": True},
    }
    detector = build_detector(check(ModelConfig, tree, "test"), 4).eval()
    assert detector.roi_head.predictor.cls_score.in_features == 48
    images, rois = make_batch([(64, 101)]), [random_boxes(4, 60)]
    logits, _ = detector.roi_head(detector.features(images), rois, images.sizes)
    whole = regions_alone(detector, images, 0, torch.tensor([[0.0, 0, 101, 64]]))
    own = regions_alone(detector, images, 0, rois[0])
    expected, _ = detector.roi_head.predictor(torch.cat((own, whole.expand(4, -1)), dim=1))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from detres.boxes import scale_boxes
from detres.config import check
from detres.detection.build import build_detector, build_ensemble
from detres.detection.config import EvalConfig, ModelConfig
from detres.detection.data.batch import pad_images
from detres.detection.inference.ensemble import Ensemble
from detres.detection.inference.refine import RefineSettings
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.detection.structures import Detections, ImageBatch
from detres.images.resize import resize_image, resized_size
from tests.detection.models.test_faster_rcnn import TINY, assert_same, with_opinions

Built = tuple[FasterRCNN, ModelConfig]
CLASSES = 4
SIZES = ((70, 110), (120, 75), (33, 64))
ALL_ON = {
    "refine": {"iterations": 1, "nms_thresh": 0.3},
    "multi_scale": {"short_sides": [32, 64, 96]},
}


def built(seed: int = 0, **sections: dict) -> Built:
    """A detector that finds something and its configuration: TINY with some keys of some sections
    otherwise.
    """
    tree = {**TINY, **{name: {**TINY[name], **keys} for name, keys in sections.items()}}
    config = check(ModelConfig, tree, "test")
    torch.manual_seed(seed)
    return with_opinions(build_detector(config, CLASSES)), config


def ensemble_of(*members: Built, **settings: dict) -> Ensemble:
    return build_ensemble(members, check(EvalConfig, settings, "test"))


def photographs(*sizes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    coarse = [rng.integers(0, 256, (6, 9, 3), dtype=np.uint8) for _ in sizes]
    return [resize_image(image, size) for image, size in zip(coarse, sizes, strict=True)]


def batch_for(ensemble: Ensemble, images: list[np.ndarray]) -> ImageBatch:
    def at(scale: tuple[int, int]) -> ImageBatch:
        resized = [
            resize_image(image, resized_size(*image.shape[:2], short_side=scale[0],
                                             max_side=scale[1]))
            for image in images
        ]  # fmt: skip
        sizes = [image.shape[:2] for image in images]
        return pad_images(resized, original_sizes=sizes, ids=range(len(images)))

    others = {scale: at(scale) for scale in ensemble.other_scales}
    return dataclasses.replace(at(ensemble.scale), others=others)


@torch.inference_mode()
def detect(ensemble: Ensemble, images: list[np.ndarray]) -> list[Detections]:
    return ensemble(batch_for(ensemble, images))


def assert_close(first: list[Detections], second: list[Detections], atol: float = 1e-3) -> None:
    for mine, other in zip(first, second, strict=True):
        assert mine.labels.tolist() == other.labels.tolist()
        torch.testing.assert_close(mine.boxes, other.boxes, rtol=0, atol=atol)
        torch.testing.assert_close(mine.scores, other.scores, rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def member() -> Built:
    return built()


@pytest.fixture(scope="module")
def other() -> Built:
    """Another backbone, input size, normalisation, pooling, and with context."""
    return built(
        5,
        backbone={"name": "resnet34"},
        input={"short_side": 48, "max_side": 80, "mean": (100.0, 100.0, 100.0)},
        roi={"pool": "roi_pool", "context": True, "box_weights": [1.0, 1.0, 1.0, 1.0]},
    )


# ---- nothing switched on ----


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"refine": {"iterations": 0, "nms_thresh": 0.9, "voting_iou": 0.2}},
        {"refine": {"voting": "never"}},
        {"multi_scale": {"short_sides": [64]}},
        {"multi_scale": {"short_sides": [64], "max_sides": [128], "merge": "pooled"}},
    ],
)
@pytest.mark.parametrize("context", [False, True])
def test_one_detector_as_it_is_bit_for_bit(settings, context):
    member = built(roi={"context": context})
    ensemble = ensemble_of(member, **settings)
    assert ensemble.other_scales == ()
    assert ensemble.describe() == ""
    batch = batch_for(ensemble, photographs(*SIZES))
    with torch.inference_mode():
        expected = member[0](batch)
    assert all(len(each) for each in expected)
    assert_same(ensemble(batch), expected)


def test_a_detector_beside_itself_finds_what_it_finds_alone(member):
    alone = detect(ensemble_of(member), photographs(*SIZES))
    assert all(len(each) for each in alone)
    assert_close(detect(ensemble_of(member, member), photographs(*SIZES)), alone)


# ---- ensembles ----


def opinion(member: Built, logits: list[float], deltas: list[float]) -> Built:
    """A copy that says the same of every region: logits (K + 1), and deltas (4) for each class."""
    model, config = member
    again = build_detector(config, CLASSES)
    again.load_state_dict(model.state_dict())
    predictor = again.roi_head.predictor
    with torch.no_grad():
        for layer in (predictor.cls_score, predictor.bbox_pred):
            layer.weight.zero_()
        predictor.cls_score.bias.copy_(torch.tensor(logits))
        predictor.bbox_pred.bias.copy_(torch.tensor(deltas).repeat(CLASSES))
    return again.eval(), config


def test_probabilities_and_boxes_are_averaged_by_hand(member, other):
    """dx is in widths over 10 for the first, in widths for the second; both move boxes right."""
    a = opinion(member, [0.0, 2, 0, 0, 0], [1.0, 0, 0, 0])
    b = opinion(other, [0.0, 0, 3, 0, 0], [0.9, 0, 0, 0])
    ensemble = ensemble_of(a, b)
    frame = [(64, 101)]
    batch = batch_for(ensemble, photographs((64, 101)))
    roi = torch.tensor([[10.0, 10, 30, 20], [85, 0, 95, 20], [95, 0, 101, 20]])
    with torch.inference_mode():
        views = ensemble.views(batch)
        ((boxes, scores),) = ensemble.score(views, [roi], frame)
    of_a, of_b = np.exp([0, 2, 0, 0, 0]), np.exp([0, 0, 3, 0, 0])
    expected = (of_a / of_a.sum() + of_b / of_b.sum())[1:] / 2
    assert scores.tolist() == [pytest.approx(expected.tolist(), abs=1e-6)] * 3
    # by half a width; the second member alone would move the second box beyond the border, 101
    moved = torch.tensor([[20.0, 10, 40, 20], [90, 0, 100, 20], [98, 0, 101, 20]])
    torch.testing.assert_close(boxes, moved[:, None].expand(3, CLASSES, 4))


def test_proposals_are_those_of_all_in_the_first_ones_pixels(member, other):
    ensemble = ensemble_of(member, other)
    assert (ensemble.scale, ensemble.other_scales) == ((64, 128), ((48, 80),))
    batch = batch_for(ensemble, photographs(*SIZES))
    with torch.inference_mode():
        first, second = (view.proposals(batch.sizes) for view in ensemble.views(batch))
        of_second = batch.others[48, 80]
        own, _ = other[0].rpn(other[0].features(of_second), of_second, None)
    for n, size in enumerate(batch.sizes):
        assert len(first[n]) > 0
        there = scale_boxes(own[n], from_size=of_second.sizes[n], to_size=size)
        torch.testing.assert_close(second[n], there, rtol=0, atol=1e-4)
        assert (second[n][:, 2:] <= torch.tensor(size[::-1])).all()
    head = member[0].roi_head
    pooled = []
    handle = head.pooler.register_forward_hook(lambda _, given, __: pooled.append(given[1]))
    found = detect(ensemble, photographs(*SIZES))
    handle.remove()
    for rois, a, b in zip(pooled[0], first, second, strict=True):
        assert torch.equal(rois, torch.cat((a, b)))
    assert all(len(each) for each in found)


@torch.inference_mode()
def test_each_member_scores_in_its_own_pixels(member, other):
    """The second, with context, in a frame that is larger than what it sees."""
    ensemble = ensemble_of(member, other)
    batch = batch_for(ensemble, photographs(*SIZES))
    _, second = ensemble.views(batch)
    rois = [torch.tensor([[3.0, 4, 40, 30], [0, 0, 20, 20]])] * 3
    boxes, scores = second.score(rois, batch.sizes)
    model, own = other[0], batch.others[48, 80]
    there = [
        scale_boxes(each, from_size=size, to_size=its)
        for each, size, its in zip(rois, batch.sizes, own.sizes, strict=True)
    ]
    logits, deltas = model.roi_head(model.features(own), there, own.sizes)
    expected, of_classes = model.roi_head.decode(logits, deltas, there)
    torch.testing.assert_close(scores, of_classes, rtol=0, atol=1e-5)
    for n in range(3):
        mine = boxes[2 * n : 2 * n + 2].flatten(0, 1)
        back = expected[2 * n : 2 * n + 2].flatten(0, 1)
        back = scale_boxes(back, from_size=own.sizes[n], to_size=batch.sizes[n])
        torch.testing.assert_close(mine, back, rtol=1e-4, atol=1e-2)


def test_the_order_of_members_changes_only_the_pixels_boxes_are_in():
    """Two of one scale: the same union, the same means."""
    a, b = built(0), built(1)
    images = photographs(*SIZES)
    assert_close(detect(ensemble_of(a, b), images), detect(ensemble_of(b, a), images))


def test_members_that_cannot_be_combined(member):
    with pytest.raises(ValueError, match="needs at least one detector"):
        Ensemble([], RefineSettings())
    config = check(ModelConfig, TINY, "test")
    fewer = build_detector(config, 3), config
    with pytest.raises(ValueError, match="the first has 4 classes, number 2 has 3"):
        ensemble_of(member, fewer)
    finer = built()
    finer[0].roi_head.pooler.strides = {"conv4": 8}
    with pytest.raises(ValueError, match="the first has 16 px a cell of the maps, number 3 has 8"):
        ensemble_of(member, member, finer)


def test_a_batch_without_a_scale_is_refused(member):
    ensemble = ensemble_of(member, multi_scale={"short_sides": [32, 64]})
    batch = batch_for(ensemble_of(member), photographs((64, 64)))
    with pytest.raises(ValueError, match="lacks its images at short side 32 px, long side at most"):
        ensemble(batch)


# ---- all together ----


@pytest.mark.parametrize(
    "settings",
    [
        {"refine": ALL_ON["refine"]},
        pytest.param({"refine": {"voting": "always"}}, marks=pytest.mark.slow),
        pytest.param({"refine": {"iterations": 2, "voting": "never"}}, marks=pytest.mark.slow),
        {"multi_scale": ALL_ON["multi_scale"]},
        {"multi_scale": {"short_sides": [32, 48], "max_sides": [40, 90], "merge": "pooled"}},
        ALL_ON,
    ],
)
@pytest.mark.parametrize(
    "names", ["member", pytest.param("other", marks=pytest.mark.slow), "member other"]
)
def test_every_combination_in_a_padded_batch_is_each_image_alone(settings, names, request):
    members = [request.getfixturevalue(name) for name in names.split()]
    ensemble = ensemble_of(*members, **settings)
    images = photographs(*SIZES)
    together = detect(ensemble, images)
    alone = [found for image in images for found in detect(ensemble, [image])]
    plain = detect(ensemble_of(*members), images)
    sizes = batch_for(ensemble, images).sizes
    for n, (found, size) in enumerate(zip(together, sizes, strict=True)):
        assert 0 < len(found) <= 100
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, 2:] <= torch.tensor(size[::-1])).all()
        assert (found.scores.diff() <= 0).all()
        assert len(found) != len(plain[n]) or not torch.equal(found.boxes, plain[n].boxes)
    assert_close(together, alone, atol=0.05)


def test_what_is_done_is_said(member, other):
    assert ensemble_of(member, other, **ALL_ON).describe() == (
        "2 detectors; short sides 32, 64, 96 px, maxout of features; 1 x box refinement, NMS 0.3; "
        "box voting from IoU 0.5"
    )
    assert ensemble_of(member, refine={"voting": "always"}).describe() == "box voting from IoU 0.5"


@pytest.mark.parametrize("context", [False, True])
@torch.inference_mode()
def test_a_round_of_refinement_is_detecting_in_the_boxes_of_the_round_before(context):
    """Where nothing is cut or suppressed: what the model finds in its proposals, and what it finds
    when those boxes are given to it as proposals.
    """
    everything = {"score_thresh": 0.0, "nms_thresh": 1.0, "detections_per_image": 10**6}
    model, config = built(roi={**everything, "context": context})
    refine = {"iterations": 2, "nms_thresh": 1.0, "voting": "never"}
    ensemble = ensemble_of((model, config), refine=refine)
    batch = batch_for(ensemble, photographs(*SIZES))
    features = model.features(batch)
    proposals, _ = model.rpn(features, batch, None)
    rounds = []
    for _ in range(3):
        rounds.append(model(batch, proposals=proposals))
        logits, deltas = model.roi_head(features, proposals, batch.sizes)
        boxes, scores = model.roi_head.decode(logits, deltas, proposals)
        best = torch.stack([each[k] for each, k in zip(boxes, scores.argmax(dim=1), strict=True)])
        counts = [len(each) for each in proposals]
        proposals = [
            torch.stack((
                box[:, 0].clamp(0, width), box[:, 1].clamp(0, height),
                box[:, 2].clamp(0, width), box[:, 3].clamp(0, height),
            ), dim=1)
            for box, (height, width) in zip(best.split(counts), batch.sizes, strict=True)
        ]  # fmt: skip
    for n, found in enumerate(ensemble(batch)):
        expected = [each[n] for each in rounds]
        assert len(found) == sum(map(len, expected))
        rows = {
            (*box, score, label)
            for each in expected
            for box, score, label in zip(
                each.boxes.tolist(), each.scores.tolist(), each.labels.tolist(), strict=True
            )
        }
        assert rows == {
            (*box, score, label)
            for box, score, label in zip(
                found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
            )
        }


@pytest.mark.parametrize("settings", [{}, ALL_ON])
@pytest.mark.parametrize("roi", [{}, {"class_agnostic": True}, {"context": True}])
def test_no_proposal_and_no_detection(settings, roi):
    images = photographs(*SIZES)
    no_proposals = built(roi=roi, rpn={"min_size": 1e4})
    unsure = built(roi={**roi, "score_thresh": 1.0})
    for members in ([no_proposals], [unsure], [no_proposals, no_proposals]):
        found = detect(ensemble_of(*members, **settings), images)
        assert [(len(each), each.boxes.shape) for each in found] == [(0, (0, 4))] * 3
    one_proposes = detect(ensemble_of(no_proposals, built(roi=roi), **settings), images)
    assert all(len(each) for each in one_proposes)


def test_one_box_for_all_classes_is_refined_too():
    member = built(roi={"class_agnostic": True})
    found = detect(ensemble_of(member, **ALL_ON), photographs(*SIZES))
    assert all(len(each) for each in found)


# ---- what it costs ----


def count_regions(ensemble: Ensemble, model: FasterRCNN) -> tuple[list[int], int, int]:
    """Regions of every pass of the box head, passes of the backbone and of the RPN's head."""
    regions, maps, proposed = [], [], []
    hooks = [
        model.roi_head.box_head.register_forward_hook(lambda _, g, __: regions.append(len(g[0]))),
        model.backbone.conv1.register_forward_hook(lambda *_: maps.append(1)),
        model.rpn.head.register_forward_hook(lambda *_: proposed.append(1)),
    ]
    detect(ensemble, photographs(*SIZES))
    for hook in hooks:
        hook.remove()
    return regions, len(maps), len(proposed)


def test_what_each_costs(member):
    model = member[0]
    (plain,), backbone, rpn = count_regions(ensemble_of(member), model)
    assert (plain > 30, backbone, rpn) == (True, 1, 1)
    refined = count_regions(ensemble_of(member, refine={"iterations": 1}), model)
    assert refined == ([plain, plain], 1, 1)  # one more pass of the head, over as many regions
    voting = count_regions(ensemble_of(member, refine={"voting": "always"}), model)
    assert voting == ([plain], 1, 1)
    scales = {"short_sides": [32, 64, 96]}
    regions, backbone, rpn = count_regions(ensemble_of(member, multi_scale=scales), model)
    assert (sum(regions), backbone, rpn) == (2 * plain, 3, 1)  # 64 is computed once
    pooled = {**scales, "merge": "pooled"}
    assert count_regions(ensemble_of(member, multi_scale=pooled), model) == ([plain], 3, 1)
    elsewhere = {"short_sides": [32, 96]}
    _, backbone, rpn = count_regions(ensemble_of(member, multi_scale=elsewhere), model)
    assert (backbone, rpn) == (3, 1)


# ---- modes and devices ----


@pytest.mark.parametrize("training", [True, False])
def test_it_takes_the_mode_of_the_detector(training):
    model, config = built()
    model.train(training)
    ensemble = ensemble_of((model, config))
    assert ensemble.training is training
    ensemble.eval()
    assert not model.training
    ensemble.train(True)
    assert model.roi_head.training


def test_other_scales_travel_with_the_batch(member):
    ensemble = ensemble_of(member, multi_scale={"short_sides": [32, 64]})
    batch = batch_for(ensemble, photographs((64, 64)))
    moved = batch.to("meta")
    assert moved.pixels.is_meta
    assert moved.others[32, 64].pixels.is_meta
    assert moved.others.keys() == batch.others.keys() == {(32, 64)}

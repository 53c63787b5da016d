from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from detres.config import check
from detres.detection.build import build_detector
from detres.detection.config import ModelConfig
from detres.detection.data.batch import pad_images
from detres.detection.models.faster_rcnn import FasterRCNN, FastRCNN, ProposalNetwork
from detres.detection.models.matcher import BELOW
from detres.detection.models.rpn import ProposalCounts
from detres.detection.models.sampler import Sampler
from detres.detection.structures import ImageBatch, Target
from detres.losses import Losses
from tests.helpers import make_batch, make_target

TINY = {
    "backbone": {"name": "resnet18", "norm": "batch", "freeze_at": 0},
    "input": {"short_side": 64, "max_side": 128},
    "anchors": {"sizes": [16, 32], "style": "detectron2"},
    "rpn": {"width": 16, "train_anchors": "all", "min_size": 2, "test_post_nms_top_n": 20},
    "roi": {"pool": "roi_align", "pool_size": 4, "batch_size": 16, "score_thresh": 0.1},
}

EMPTY = torch.zeros((0, 4))


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return build_detector(check(ModelConfig, TINY, "test"), 4)


def test_losses_or_detections_by_the_argument_alone(detector):
    images = make_batch([(60, 64), (64, 50)])
    targets = [make_target([[5, 5, 40, 40]], [3]), make_target(torch.zeros((0, 4)), [])]
    for mode in (True, False):
        detector.train(mode)
        losses = detector(images, targets)
        assert isinstance(losses, Losses)
        assert losses.total().item() == pytest.approx(
            sum(v.item() for v in losses.terms().values()), rel=1e-5
        )
        assert len(detector(images)) == 2
    assert losses.terms()["loss_roi_cls"].item() == pytest.approx(math.log(5), abs=0.5)
    assert list(losses.terms()) == [
        "loss_rpn_cls",
        "loss_rpn_box",
        "loss_roi_cls",
        "loss_roi_box",
    ]
    with pytest.raises(ValueError, match="2 images but targets for 1"):
        detector(images, targets[:1])


def test_every_parameter_gets_a_gradient(detector):
    detector.train()
    detector.zero_grad()
    detector(
        make_batch([(64, 64)] * 2), [make_target([[5, 5, 40, 40]], [3])] * 2
    ).total().backward()
    silent = [
        name for name, p in detector.named_parameters() if p.grad is None or p.grad.abs().sum() == 0
    ]
    assert silent == []


SIZES = ((64, 101), (120, 75), (33, 64), (96, 96))


def in_batches_of(images: ImageBatch, extra: tuple[int, int]) -> ImageBatch:
    """Return the same images in a batch that is larger by `extra` (h, w) px of noise."""
    num, channels, height, width = images.pixels.shape
    pixels = torch.randint(
        0, 256, (num, channels, height + extra[0], width + extra[1]), dtype=torch.uint8
    )
    for n, (h, w) in enumerate(images.sizes):
        pixels[n, :, :h, :w] = images.pixels[n, :, :h, :w]
    return ImageBatch(pixels, images.sizes, images.original_sizes, images.ids)


def alone(images: ImageBatch, n: int) -> ImageBatch:
    (height, width), one = images.sizes[n], images.select([n])
    return replace(one, pixels=one.pixels[:, :, :height, :width])


POOLS = {
    "roi_pool": {"pool": "roi_pool"},
    "roi_align": {"pool": "roi_align"},
    "roi_align, adaptive": {"pool": "roi_align", "sampling_ratio": 0},
    "roi_align_aligned": {"pool": "roi_align_aligned"},
}


@pytest.mark.parametrize(
    ("backbone", "pool", "extra"),
    [*(("resnet18", pool, (8, 27)) for pool in POOLS), ("resnet50", "roi_pool", (0, 0))],
)
def test_the_batch_never_changes_a_detection(backbone, pool, extra):
    """Proposals as small as a cell, at every border, scored alone and in a padded batch."""
    tree = {
        **TINY,
        "backbone": {"name": backbone, "norm": "batch", "freeze_at": 0},
        "rpn": {**TINY["rpn"], "min_size": 0, "nms_thresh": 0.9, "test_post_nms_top_n": 200},
        "roi": {**TINY["roi"], **POOLS[pool], "score_thresh": 0.0, "nms_thresh": 0.9},
    }
    detector = with_opinions(build_detector(check(ModelConfig, tree, "test"), 4))
    images = in_batches_of(make_batch(SIZES), extra)
    with torch.inference_mode():
        features = detector.features(images)
        together, _ = detector.rpn(features, images, None)
        logits, deltas = detector.roi_head(features, together)
        first = 0
        for n, proposals in enumerate(together):
            one = alone(images, n)
            features = detector.features(one)
            assert features["conv4"].values.shape[2:] == features["conv4"].sizes[0]
            (expected,), _ = detector.rpn(features, one, None)
            assert len(expected) > 30
            torch.testing.assert_close(proposals, expected, rtol=0, atol=1e-3)
            border = expected.new_tensor(one.sizes[0][::-1])
            assert (expected[:, 2:] == border).any()
            alone_logits, alone_deltas = detector.roi_head(features, [proposals])
            rows = slice(first, first := first + len(proposals))
            torch.testing.assert_close(logits[rows], alone_logits, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(deltas[rows], alone_deltas, rtol=1e-4, atol=1e-4)


def targets_of_sizes() -> list[Target]:
    """Return objects of images of SIZES; the third has none."""
    return [
        make_target([[3, 4, 40, 60], [50, 20, 101, 64]], [1, 2]),
        make_target([[20, 70, 75, 120]], [3]),
        make_target(EMPTY, []),
        make_target([[0, 0, 96, 96]], [4]),
    ]


@pytest.mark.parametrize("train_anchors", ["all", "inside"])
def test_the_batch_never_changes_a_loss(train_anchors):
    """Each term of a padded batch is the mean over what was sampled of each image alone."""
    tree = {**TINY, "rpn": {**TINY["rpn"], "train_anchors": train_anchors}}
    detector = with_opinions(build_detector(check(ModelConfig, tree, "test"), 4))
    detector.rpn.sampler = detector.roi_head.sampler = EveryCandidate()
    images = in_batches_of(make_batch(SIZES), (8, 27))
    targets = targets_of_sizes()
    together = detector(images, targets).terms()
    sums = dict.fromkeys(together, 0.0)
    counts = dict.fromkeys(together, 0)
    for n, target in enumerate(targets):
        detector.rpn.sampler.counted.clear()
        for term, value in detector(alone(images, n), [target]).terms().items():
            num = detector.rpn.sampler.counted["rpn" not in term]
            sums[term], counts[term] = sums[term] + value.item() * num, counts[term] + num
    for term, value in together.items():
        assert value > 0
        assert value.item() == pytest.approx(sums[term] / counts[term], rel=1e-4)


class EveryCandidate:
    """A sampler that leaves nothing out; counted: how many there were, call by call."""

    def __init__(self) -> None:
        self.counted: list[int] = []

    def __call__(
        self, matched: torch.Tensor, _generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        positive, negative = (matched >= 0).nonzero()[:, 0], (matched == BELOW).nonzero()[:, 0]
        self.counted.append(len(positive) + len(negative))
        return positive, negative


class Watched(Sampler):
    """The sampler itself; drawn: what it chose, call by call, and the seed it chose by."""

    def __init__(self, of: Sampler) -> None:
        super().__init__(batch_size=of.batch_size, positive_fraction=of.positive_fraction)
        self.drawn: list[tuple[int | None, list[int]]] = []

    def __call__(
        self, matched_idxs: torch.Tensor, generator: torch.Generator | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        seed = None if generator is None else generator.initial_seed()
        rows = super().__call__(matched_idxs, generator)
        self.drawn.append((seed, torch.cat(rows).tolist()))
        return rows


@torch.inference_mode()
def test_what_is_sampled_of_an_image_comes_of_its_seed_alone():
    """Not of the batch it is in, of its place there, or of torch's global generator."""
    tree = {**TINY, "rpn": {**TINY["rpn"], "batch_size": 16}}
    detector = with_opinions(build_detector(check(ModelConfig, tree, "test"), 4))
    samplers = [Watched(part.sampler) for part in (detector.rpn, detector.roi_head)]
    detector.rpn.sampler, detector.roi_head.sampler = samplers
    images, targets = in_batches_of(make_batch(SIZES), (8, 27)), targets_of_sizes()
    chance = itertools.count()

    def learn(batch: ImageBatch, rows: list[int]) -> tuple[Losses, list[tuple]]:
        """Return the losses of images `rows` and, of each, what the two samplers drew."""
        torch.manual_seed(next(chance))
        state = torch.get_rng_state()
        for sampler in samplers:
            sampler.drawn.clear()
        losses = detector(batch, [targets[n] for n in rows])
        assert torch.equal(torch.get_rng_state(), state) == (batch.seeds is not None)
        return losses, list(zip(*(sampler.drawn for sampler in samplers), strict=True))

    seeded = replace(images, seeds=(2**62 + 5, 6, 7, 0))
    shares, draws = [], []
    for n in range(len(SIZES)):
        losses, (drawn,) = learn(alone(seeded, n), [n])
        shares.append(losses)
        draws.append(drawn)
    streams = [seed for of_image in draws for seed, _ in of_image]
    assert len(set(streams)) == len(streams) == 8  # one a sampler and image

    for rows in ([0, 1, 2, 3], [3, 0], [2, 3, 1], [1, 2], [0]):
        losses, drawn = learn(seeded.select(rows), rows)
        assert drawn == [draws[n] for n in rows]
        for name, value in losses.sums.items():
            assert losses.counts[name] == sum(shares[n].counts[name] for n in rows)
            expected = sum(shares[n].sums[name].item() for n in rows)
            assert value.item() == pytest.approx(expected, rel=1e-4)

    # the draw matters: another seed, or chance where there is none, is another loss
    for seeds in ((8, 9, 10, 11), None):
        for n, share in enumerate(shares):
            losses, (drawn,) = learn(alone(replace(images, seeds=seeds), n), [n])
            for (_, before), (_, after) in zip(draws[n], drawn, strict=True):
                assert sorted(before) != sorted(after)
            for name in ("loss_rpn_cls", "loss_roi_cls"):
                assert losses.sums[name].item() != pytest.approx(share.sums[name].item(), rel=1e-3)


def test_the_streams_of_an_image_draw_independently():
    images = replace(make_batch([(32, 32)] * 3), seeds=(4, 5, 4))
    first, *others = (
        [torch.randperm(100, generator=images.generator(n, stream)).tolist() for stream in (0, 1)]
        for n in range(3)
    )
    assert first == others[1]  # the seed decides, not the place, and every time alike
    assert len({str(drawn) for drawn in first + others[0]}) == 4
    assert make_batch([(32, 32)]).generator(0, 1) is None


def test_an_image_of_a_few_pixels_is_no_error(detector):
    batch = pad_images(
        [np.full((3, 90, 3), 200, np.uint8)], original_sizes=[(30, 900)], ids=["strip"]
    )
    with torch.inference_mode():
        (found,) = detector.eval()(batch)
    assert (found.boxes[:, 3] <= 3).all()


def test_frozen_stages_do_not_learn_and_conv5_does():
    frozen = {
        **TINY,
        "backbone": {
            "name": "resnet18",
            "norm": "frozen",
            "freeze_at": 2,
            "weights": "not read here",
        },
    }
    detector = build_detector(check(ModelConfig, frozen, "test"), 4, pretrained=False)
    learning = {name for name, p in detector.named_parameters() if p.requires_grad}
    assert not any(name.startswith(("backbone.conv1", "backbone.layer1")) for name in learning)
    assert any(name.startswith("backbone.layer2") for name in learning)
    assert any(name.startswith("roi_head.box_head.conv5") for name in learning)
    assert not any(".bn" in name for name in learning)


@pytest.fixture(scope="module")
def opinionated():
    """A detector in eval mode whose predictor has opinions, so that it finds something."""
    torch.manual_seed(0)
    return with_opinions(build_detector(check(ModelConfig, TINY, "test"), 4))


def with_opinions(detector: FasterRCNN) -> FasterRCNN:
    torch.nn.init.normal_(detector.rpn.head.objectness.weight, std=0.5)
    torch.nn.init.normal_(detector.rpn.head.deltas.weight, std=0.1)
    torch.nn.init.normal_(detector.roi_head.predictor.cls_score.weight, std=0.5)
    torch.nn.init.normal_(detector.roi_head.predictor.bbox_pred.weight, std=0.05)
    for module in detector.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, 0.5)  # activations of a trained network's size
            torch.nn.init.normal_(module.bias, std=0.1)  # a cell of zeros does not stay zero
    return detector.eval()


def assert_same(first, second) -> None:
    for mine, other in zip(first, second, strict=True):
        torch.testing.assert_close(mine.boxes, other.boxes, rtol=0, atol=0)
        torch.testing.assert_close(mine.scores, other.scores, rtol=0, atol=0)
        assert mine.labels.tolist() == other.labels.tolist()


@torch.inference_mode()
def test_given_proposals_are_detected_as_the_rpns_own(opinionated):
    images = make_batch([(60, 64), (64, 50)])
    proposals, losses = opinionated.rpn(opinionated.features(images), images, None)
    assert losses.terms() == {}
    assert all(len(boxes) for boxes in proposals)
    found = opinionated(images, proposals=proposals)
    assert all(len(each) for each in found)
    assert_same(found, opinionated(images))


def test_losses_of_given_proposals_are_those_of_the_roi_head_alone(opinionated):
    images = make_batch([(60, 64), (64, 50)])
    targets = [make_target([[5, 5, 40, 40]], [3]), make_target(EMPTY, [])]
    torch.manual_seed(3)
    proposals, _ = opinionated.rpn(opinionated.features(images), images, targets)
    losses = opinionated(images, targets, proposals).terms()
    torch.manual_seed(3)
    joint = opinionated(images, targets).terms()
    assert list(losses) == ["loss_roi_cls", "loss_roi_box"]
    assert {name: value.item() for name, value in losses.items()} == {
        name: joint[name].item() for name in losses
    }
    opinionated.zero_grad()
    opinionated(images, targets, proposals).total().backward()
    assert all(p.grad is None for p in opinionated.rpn.parameters())
    assert all(p.grad is not None for p in opinionated.roi_head.parameters())
    opinionated.zero_grad()


@pytest.mark.parametrize("num", [0, 1, 3])
def test_as_many_tensors_of_proposals_as_images_or_an_error(opinionated, num):
    images, given = make_batch([(60, 64), (64, 50)]), [EMPTY] * num
    with pytest.raises(ValueError, match=f"2 images but proposals for {num}"):
        opinionated(images, proposals=given)
    with pytest.raises(ValueError, match=f"2 images but proposals for {num}"):
        opinionated(images, [make_target(EMPTY, [])] * 2, given)
    with pytest.raises(ValueError, match=f"2 images but targets for {num}"):
        opinionated(images, [make_target(EMPTY, [])] * num, [EMPTY] * 2)


def test_no_proposals_are_no_detections(opinionated):
    images = make_batch([(60, 64), (64, 50)])
    with torch.inference_mode():
        none = opinionated(images, proposals=[EMPTY, EMPTY])
        boxes = opinionated.rpn(opinionated.features(images), images, None)[0][1]
        first, second = opinionated(images, proposals=[EMPTY, boxes])
    assert [len(each) for each in none] == [0, 0]
    assert none[0].boxes.shape == (0, 4)
    assert len(first) == 0
    assert len(second) > 0
    without = opinionated(images, [make_target(EMPTY, [])] * 2, [EMPTY, EMPTY]).terms()
    assert [value.item() for value in without.values()] == [0, 0]
    object_alone = opinionated(
        images, [make_target([[5, 5, 40, 40]], [3]), make_target(EMPTY, [])], [EMPTY, EMPTY]
    ).terms()
    assert object_alone["loss_roi_cls"] > 0  # its box joins the proposals


@torch.inference_mode()
def test_scoring_and_then_postprocessing_is_detecting(opinionated):
    images = make_batch([(60, 64), (64, 50)])
    features = opinionated.features(images)
    assert list(features) == ["conv4"]
    proposals, _ = opinionated.rpn(features, images, None)
    logits, deltas = opinionated.roi_head(features, proposals)
    found = opinionated.roi_head.postprocess(logits, deltas, proposals, images.sizes)
    assert all(len(each) for each in found)
    assert_same(found, opinionated(images))


# ---- one half alone ----


@pytest.fixture
def whole():
    """A detector that a test may change, in eval mode."""
    torch.manual_seed(0)
    return with_opinions(build_detector(check(ModelConfig, TINY, "test"), 4))


def test_a_proposal_network_has_the_rpns_losses_and_teaches_it_alone(whole):
    images, targets = make_batch([(64, 96)]), [make_target([[8, 8, 40, 40]], [1])]
    whole.rpn.sampler = whole.roi_head.sampler = EveryCandidate()
    together = whole(images, targets).terms()
    network = ProposalNetwork(whole)
    losses = network(images, targets)
    assert {name: loss.item() for name, loss in losses.terms().items()} == {
        name: loss.item() for name, loss in together.items() if "rpn" in name
    }
    losses.total().backward()
    assert not any(p.requires_grad for p in whole.roi_head.parameters())
    assert all(p.grad is not None for p in whole.rpn.head.parameters())
    assert whole.backbone.conv1.weight.grad is not None


def test_fast_rcnn_looks_at_the_proposals_of_its_images(whole):
    images, targets = make_batch([(64, 96)]), [make_target([[8, 8, 40, 40]], [1])]
    boxes = torch.tensor([[0.0, 0, 30, 30], [10, 10, 60, 60]])
    whole.roi_head.sampler = EveryCandidate()
    expected = whole(images, targets, [boxes]).terms()
    found = whole(images, None, [boxes])
    given = replace(images, proposals=(boxes,))
    fast_rcnn = FastRCNN(whole)
    losses = fast_rcnn(given, targets)
    assert {name: loss.item() for name, loss in losses.terms().items()} == {
        name: loss.item() for name, loss in expected.items()
    }
    assert expected.keys() == {"loss_roi_cls", "loss_roi_box"}
    assert torch.equal(fast_rcnn(given)[0].boxes, found[0].boxes)
    losses.total().backward()
    assert not any(p.requires_grad for p in whole.rpn.parameters())
    assert all(p.grad is not None for p in whole.roi_head.predictor.parameters())
    with pytest.raises(ValueError, match="the images come without proposals"):
        fast_rcnn(images)


def test_a_batch_without_any_region_teaches_nothing_and_does_not_stop_training(whole):
    images, targets = make_batch([(64, 96), (64, 64)]), [make_target([], []), make_target([], [])]
    given = replace(images, proposals=(torch.zeros((0, 4)),) * 2)
    losses = FastRCNN(whole)(given, targets)
    assert [loss.item() for loss in losses.terms().values()] == [0, 0]
    losses.total().backward()
    assert whole.roi_head.predictor.cls_score.weight.grad.abs().sum() == 0


def test_without_a_cut_before_nms_every_box_may_be_proposed(whole):
    images = make_batch([(64, 96)])
    with torch.no_grad():
        ((few, _),) = whole.propose(images, ProposalCounts(3, 100))
        ((all_of_them, logits),) = whole.propose(images, ProposalCounts(None, 100))
        ((large, _),) = whole.propose(images, ProposalCounts(10**6, 100))
    assert len(few) <= 3 < len(all_of_them)
    assert torch.equal(all_of_them, large)
    assert (logits.diff() <= 0).all()

"""The detector rewritten for inference beside the detector."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from detres.config import check
from detres.detection.build import build_detector
from detres.detection.config import ModelConfig
from detres.detection.inference.fast import fast_copy, weights_stamp
from detres.eval_mode import evaluating
from tests.helpers import make_batch

PARTS = {
    "input": {"short_side": 64, "max_side": 128},
    "anchors": {"sizes": [16, 32], "style": "detectron2"},
    "rpn": {"width": 16, "min_size": 2, "test_post_nms_top_n": 60},
    "roi": {"pool": "roi_align", "pool_size": 14, "score_thresh": 0.0, "nms_thresh": 1.0},
}
DETECTORS = {
    "resnet18": {"backbone": {"name": "resnet18"}},
    "resnet50, stride in the 1x1": {
        "backbone": {"name": "resnet50", "stride_placement": "original", "width": 0.25},
    },
    "resnet50, stride in the 3x3, caffe": {
        "backbone": {
            "name": "resnet50",
            "stride_placement": "torchvision",
            "width": 0.25,
            "pool1": "caffe",
        },
    },
    "plain34": {"backbone": {"name": "plain34"}},
    "resnet34, shortcut A": {"backbone": {"name": "resnet34", "shortcut": "A"}},
    "roi_pool": {"backbone": {"name": "resnet50", "width": 0.25}, "roi": {"pool": "roi_pool"}},
    "softmax, several convolutions": {
        "backbone": {"name": "resnet18"},
        "rpn": {"objectness": "softmax", "num_convs": 2},
    },
    "vgg16_bn": {
        "backbone": {"name": "vgg16_bn", "fc_width": 32},
        "roi": {"pool": "roi_pool", "pool_size": 7},
    },
    "vgg16": {
        "backbone": {"name": "vgg16", "fc_width": 32},
        "roi": {"pool": "roi_align", "pool_size": 7},
    },
    "pyramid": {
        "layout": "fpn",
        "backbone": {"name": "resnet18"},
        "anchors": {"sizes": [16, 32, 64, 128, 256]},
        "fpn": {"width": 32},
        "roi": {"pool_size": 7, "fc_width": 64},
    },
    "pyramid, batch norm everywhere": {
        "layout": "fpn",
        "backbone": {"name": "resnet18"},
        "anchors": {"sizes": [16, 32, 64, 128, 256]},
        "fpn": {"width": 32, "norm": "batch"},
        "roi": {"pool_size": 7, "fc_width": 64, "num_convs": 2, "num_fc": 1},
    },
}
IMAGES = [(64, 96), (80, 64), (71, 128)]


def detector_of(tree: dict) -> nn.Module:
    """A detector whose norms and predictors do something."""
    torch.manual_seed(0)
    merged = copy.deepcopy(PARTS)
    for section, values in tree.items():
        given = merged.get(section, {})
        merged[section] = values if isinstance(values, str) else {**given, **values}
    merged["backbone"]["freeze_at"] = 0
    if merged["backbone"]["name"] != "vgg16":
        merged["backbone"]["norm"] = "batch"
    detector = build_detector(check(ModelConfig, merged, "test"), 3)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2.0)
            module.running_mean.normal_(std=0.1)
            with torch.no_grad():
                module.bias.normal_(std=0.1)
    predictor = detector.roi_head.predictor
    for layer in (predictor.cls_score, detector.rpn.head.objectness):
        nn.init.normal_(layer.weight, std=0.5)
    nn.init.normal_(predictor.bbox_pred.weight, std=0.02)
    return detector


def outputs(detector: nn.Module, images):
    """What is made of a batch before anything is sorted or suppressed: maps, logits of anchors and
    of regions, deltas. The regions are the same for all detectors.
    """
    rois = [torch.tensor([[0.0, 0, 40, 40], [5, 9, 63, 70], [-9, 3, 20, 300]])] * len(images)
    with evaluating(detector):
        features = detector.features(images)
        maps = detector.rpn.on_maps(features)
        logits, deltas = detector.roi_head(features, rois)
    values = {name: each.values for name, each in features.items()}
    for number, each in enumerate(maps):
        values[f"objectness {number}"], values[f"deltas {number}"] = each.logits, each.deltas
    return {**values, "logits": logits, "boxes": deltas}


@pytest.mark.parametrize("name", DETECTORS)
def test_every_number_is_the_detectors(name):
    detector = detector_of(DETECTORS[name])
    images = make_batch(IMAGES)
    plain, rewritten = outputs(detector, images), outputs(fast_copy(detector), images)
    assert list(plain) == list(rewritten)
    for what, expected in plain.items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(
            rewritten[what], expected, rtol=0, atol=2e-5 * scale, msg=lambda m, w=what: f"{w}: {m}"
        )


class InFloat64(nn.Module):
    def __init__(self, normalizer: nn.Module) -> None:
        super().__init__()
        self.normalizer = normalizer

    def forward(self, *images):
        return self.normalizer(*images).double()


@pytest.mark.parametrize("name", DETECTORS)
def test_the_plain_operators_do_the_same_to_rounding(name, monkeypatch):
    """Where torch lacks oneDNN's operators; in float64, in which no number is lost."""
    detector = detector_of(DETECTORS[name]).double()
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    detector.normalizer = InFloat64(detector.normalizer)
    images = make_batch(IMAGES)
    plain, rewritten = outputs(detector, images), outputs(fast_copy(detector), images)
    for what, expected in plain.items():
        assert expected.dtype == torch.float64
        torch.testing.assert_close(rewritten[what], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", DETECTORS)
def test_bf16_is_near(name):
    detector, images = detector_of(DETECTORS[name]), make_batch(IMAGES)
    plain = outputs(detector, images)
    half = outputs(fast_copy(detector, "bf16"), images)
    for what, expected in plain.items():
        difference = (half[what].float() - expected).abs().mean() / expected.abs().mean()
        assert 0 < difference < 0.1, (what, float(difference))
    assert half["logits"].dtype == half["boxes"].dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16", "auto"])
def test_the_detector_itself_is_left_as_it_was(precision):
    detector, images = detector_of(DETECTORS["resnet18"]).train(), make_batch(IMAGES)
    state = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    before = outputs(detector, images)
    twin = fast_copy(detector, precision)
    outputs(twin, images)
    assert all(torch.equal(state[name], each) for name, each in detector.state_dict().items())
    after = outputs(detector, images)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert detector.training
    assert all(type(layer).__name__ != "FusedConv2d" for layer in detector.modules())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_cannot_be_rewritten_is_called_as_it_is(precision):
    class Doubled(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    detector, images = detector_of(DETECTORS["resnet18"]).eval(), make_batch(IMAGES)
    block = detector.backbone.layer2[1]
    own = Doubled(128, 128, 3, padding=1, bias=False)
    own.weight = block.conv2.weight
    block.conv2 = own
    with torch.inference_mode():
        expected, found = detector(images), fast_copy(detector, precision)(images)
    for one, other in zip(expected, found, strict=True):
        if precision == "fp32":
            assert torch.equal(one.boxes, other.boxes)
            assert torch.equal(one.scores, other.scores)
        else:
            torch.testing.assert_close(one.scores[:5], other.scores[:5], rtol=0.1, atol=0.1)


def negated(layer: nn.Module) -> None:
    """Make a layer one of another class, which gives what it gave with the sign turned."""

    class Negated(type(layer)):
        def forward(self, *given):
            found = super().forward(*given)
            return (-found[0], *found[1:]) if isinstance(found, tuple) else -found

    layer.__class__ = Negated


def with_lock(detector: nn.Module) -> None:
    detector.lock = threading.Lock()


def with_silu(detector: nn.Module) -> None:
    detector.backbone.relu = nn.SiLU()


def with_leaky_relu(detector: nn.Module) -> None:
    detector.backbone.features[5] = nn.LeakyReLU(0.5)


def with_layer_inside(detector: nn.Module) -> None:
    predictor = detector.roi_head.predictor
    predictor.cls_score = nn.Sequential(predictor.cls_score)


def with_bias(detector: nn.Module) -> None:
    conv = detector.roi_head.box_head.conv5[0].conv1
    conv.bias = nn.Parameter(torch.linspace(-1, 1, conv.out_channels))


C4 = "resnet50, stride in the 1x1"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (C4, lambda detector: negated(detector.rpn.head)),
        (C4, lambda detector: negated(detector.rpn.head.objectness)),
        (C4, lambda detector: negated(detector.roi_head.predictor)),
        (C4, lambda detector: negated(detector.roi_head.predictor.bbox_pred)),
        ("vgg16", lambda detector: negated(detector.roi_head.box_head.layers[0])),
        (C4, with_lock),
        (C4, with_silu),
        ("vgg16_bn", with_leaky_relu),
        (C4, with_layer_inside),
        (C4, with_bias),
    ],
)
def test_layers_of_ones_own_keep_their_numbers(name, change):
    detector, images = detector_of(DETECTORS[name]), make_batch(IMAGES)
    before = outputs(detector, images)
    change(detector)
    plain, rewritten = outputs(detector, images), outputs(fast_copy(detector), images)
    for what, expected in plain.items():
        atol = 2e-5 * float(expected.abs().max())
        torch.testing.assert_close(rewritten[what], expected, rtol=0, atol=atol)
    changed = any(not torch.equal(plain[what], before[what]) for what in plain)
    assert changed == (change is not with_lock and change is not with_layer_inside)


class Collector:
    def __init__(self) -> None:
        self.shapes = []

    def note(self, _module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        self.shapes.append(output.shape[1])


def test_hooks_are_called():
    """Those of an object too, which a copy of the model would have a copy of."""
    detector, images = detector_of(DETECTORS["resnet18"]).eval(), make_batch(IMAGES)
    collector, called = Collector(), []
    conv = detector.backbone.layer3[0].conv2
    conv.register_forward_hook(lambda *_: called.append(1))
    conv.register_forward_hook(collector.note)
    with torch.inference_mode():
        fast_copy(detector)(images)
    assert called == [1]
    assert collector.shapes == [256]


def test_threads_that_use_it_first_at_once_get_the_same():
    detector, images = detector_of(DETECTORS[C4]).eval(), make_batch([(64, 64)])
    barrier = threading.Barrier(4, timeout=60)

    def first(twin: nn.Module) -> torch.Tensor:
        barrier.wait()
        with torch.inference_mode():
            return twin(images)[0].scores

    with ThreadPoolExecutor(4) as threads:
        for _ in range(3):
            twin = fast_copy(detector)
            one, *others = threads.map(first, [twin] * 4)
            assert all(torch.allclose(one, other, atol=1e-5) for other in others)


def test_a_model_of_another_kind_comes_back():
    model = nn.Linear(3, 3)
    assert fast_copy(model) is model


def test_no_region_and_no_image():
    detector = fast_copy(detector_of(DETECTORS["resnet50, stride in the 1x1"]))
    with torch.inference_mode():
        features = detector.features(make_batch([(64, 64)]))
        logits, deltas = detector.roi_head(features, [torch.zeros((0, 4))])
    assert logits.shape == (0, 4)
    assert deltas.shape == (0, 3, 4)


def test_a_stamp_tells_of_every_change():
    detector = detector_of(DETECTORS["resnet18"])
    stamps = [weights_stamp(detector)]
    assert weights_stamp(detector) == stamps[0]
    with torch.no_grad():
        detector.rpn.head.conv.bias.add_(1)
    stamps.append(weights_stamp(detector))
    detector.backbone.bn1.running_mean.add_(1)
    stamps.append(weights_stamp(detector))
    detector.load_state_dict(detector.state_dict())
    stamps.append(weights_stamp(detector))
    detector.roi_head.predictor.cls_score.weight = nn.Parameter(torch.zeros((4, 512)))
    stamps.append(weights_stamp(detector))
    detector.backbone.layer1.register_forward_hook(lambda *_: None)
    stamps.append(weights_stamp(detector))
    detector.backbone.layer1.register_forward_pre_hook(lambda *_: None)
    stamps.append(weights_stamp(detector))
    assert len(set(stamps)) == 7

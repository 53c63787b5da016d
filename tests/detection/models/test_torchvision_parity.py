"""The whole detector against one made of torchvision's parts, same weights, on real photographs."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from torch import nn

from backbones.norm import FrozenBatchNorm2d
from detres.benchmarks.torchvision_parts import TorchvisionParts
from detres.boxes import clip_boxes, large_enough
from detres.config import check
from detres.detection.build import build_detector, eval_loader
from detres.detection.config import ModelConfig
from detres.detection.data.coco import read_coco
from detres.detection.data.loader import DetectionDataset
from detres.detection.data.transforms import EvalTransform
from detres.detection.models.matcher import BELOW
from detres.detection.structures import ImageBatch, Target

TOLERANCE = 1e-4


def torchvision_config(name: str, width: int) -> ModelConfig:
    tree = {
        "backbone": {"name": name, "stride_placement": "torchvision", "norm": "batch",
        "freeze_at": 0},
        "input": {"short_side": 320, "max_side": 500},
        "anchors": {"style": "torchvision", "sizes": [32, 64, 128, 256]},
        "rpn": {"width": width, "objectness": "sigmoid", "train_anchors": "all", "min_size": 1e-3,
        "test_post_nms_top_n": 100,
                "train_pre_nms_top_n": 2000, "train_post_nms_top_n": 200},
        "roi": {"pool": "roi_align", "pool_size": 7, "sampling_ratio": 2, "smooth_l1_beta": 1 / 9,
        "nms_thresh": 0.5,
                "score_thresh": 0.02, "batch_size": 32},
    }  # fmt: skip
    return check(ModelConfig, json.loads(json.dumps(tree)), "test")


def vgg_config() -> ModelConfig:
    tree = torchvision_config("resnet18", 256).model_dump(mode="json")
    tree["backbone"] = {"name": "vgg16", "freeze_at": 0}
    tree["rpn"]["width"] = 512
    tree["roi"].update(pool="roi_pool", dropout=0)
    return check(ModelConfig, tree, "test")


def settle(detector: nn.Module) -> None:
    """Give the random network sane activations and the predictor opinions, so that there is
    something to compare.
    """
    generator = torch.Generator().manual_seed(1)
    for module in detector.modules():
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            module.running_var.uniform_(0.8, 1.2, generator=generator)
            module.running_mean.normal_(0, 0.05, generator=generator)
            with torch.no_grad():
                module.weight.uniform_(0.4, 0.6, generator=generator)
    for module in detector.backbone.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.02, generator=generator)
    with torch.no_grad():
        for layer, std in (
            (detector.rpn.head.objectness, 0.05),
            (detector.rpn.head.deltas, 0.01),
            (detector.roi_head.predictor.cls_score, 0.3),
            (detector.roi_head.predictor.bbox_pred, 0.05),
        ):
            layer.weight.normal_(0, std, generator=generator)


class FirstOnes:
    """A sampler without chance: the first candidates of each kind."""

    def __init__(self, batch_size: int, positive_fraction: float) -> None:
        self.batch_size = batch_size
        self.positive_fraction = positive_fraction

    def __call__(self, matched, _generator=None):
        if isinstance(matched, list):  # torchvision: labels of all images -> masks
            masks = []
            for labels in matched:
                positive, negative = self._choose(
                    (labels >= 1).nonzero().flatten(), (labels == 0).nonzero().flatten()
                )
                mask = torch.zeros((2, len(labels)), dtype=torch.bool)
                mask[0, positive] = True
                mask[1, negative] = True
                masks.append(mask)
            return [mask[0] for mask in masks], [mask[1] for mask in masks]
        return self._choose(
            (matched >= 0).nonzero().flatten(), (matched == BELOW).nonzero().flatten()
        )

    def _choose(self, positive, negative):
        positive = positive[: round(self.batch_size * self.positive_fraction)]
        return positive, negative[: self.batch_size - len(positive)]


def assert_same_set(mine: torch.Tensor, reference: torch.Tensor) -> None:
    """Every row has its counterpart; two proposals of equal score to rounding may come in either
    order.
    """
    assert mine.shape == reference.shape
    distance = (mine[:, None] - reference[None]).abs().amax(dim=2) / reference.abs().amax()
    assert distance.amin(dim=0).max() < TOLERANCE
    assert distance.amin(dim=1).max() < TOLERANCE


@pytest.fixture(scope="module")
def batches(shared_data):
    root = shared_data("coco_mini")
    annotations = read_coco(root / "annotations/instances_val2017.json", root / "val2017")
    dataset = DetectionDataset(annotations, EvalTransform(short_side=320, max_side=500))
    batches = list(itertools.islice(eval_loader(dataset, batch_size=1, num_workers=0), 2))
    batches = [cropped(images, targets) for images, targets in batches]
    assert all(len(target) for _, targets in batches for target in targets)
    return batches


def cropped(images: ImageBatch, targets: list[Target]) -> tuple[ImageBatch, list[Target]]:
    """Return one image cut to sides of multiples of 32, which torchvision does not pad."""
    height, width = (side // 32 * 32 for side in images.sizes[0])
    (target,) = targets
    boxes = clip_boxes(target.boxes, (height, width))
    keep = large_enough(boxes, 8)
    flags = torch.zeros(int(keep.sum()), dtype=torch.bool)
    size = ((height, width),)
    return (
        ImageBatch(images.pixels[:, :, :height, :width], size, size, images.ids),
        [Target(target.image_id, boxes[keep], target.labels[keep], flags, flags)],
    )


@pytest.mark.parametrize(
    "config",
    [
        torchvision_config("resnet18", 256),
        pytest.param(torchvision_config("resnet50", 1024), marks=pytest.mark.slow),
        vgg_config(),
    ],
    ids=lambda config: config.backbone.name,
)
def test_same_proposals_detections_and_losses(config, batches):
    """Image by image: torchvision computes in the padding of a batch of several sizes."""
    ours = build_detector(config, 80)
    settle(ours)
    theirs = TorchvisionParts(config, 80)
    theirs.copy_weights(ours)
    ours.eval()
    theirs.eval()
    captured = {}
    theirs.model.rpn.register_forward_hook(
        lambda _module, _inputs, outputs: captured.update(proposals=outputs[0])
    )
    for images, _ in batches:
        with torch.no_grad():
            ((proposals,), _) = ours.rpn(ours.features(images), images, None)
            (mine,), (reference,) = ours(images), theirs(images)
        assert len(proposals) > 20
        assert_same_set(proposals, captured["proposals"][0])
        assert len(mine) > 5
        assert mine.labels.tolist() == reference.labels.tolist()
        torch.testing.assert_close(mine.scores, reference.scores, rtol=0, atol=TOLERANCE)
        torch.testing.assert_close(mine.boxes, reference.boxes, rtol=TOLERANCE, atol=TOLERANCE * 10)

    sampler = FirstOnes(config.rpn.batch_size, config.rpn.positive_fraction)
    ours.rpn.sampler = theirs.model.rpn.fg_bg_sampler = sampler
    sampler = FirstOnes(config.roi.batch_size, config.roi.positive_fraction)
    ours.roi_head.sampler = theirs.model.roi_heads.fg_bg_sampler = sampler
    for model in (
        ours,
        theirs,
        # torchvision gives losses in train mode only; batch statistics would hide nothing but
        # differ
    ):
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    for images, targets in batches:
        mine, reference = ours(images, targets).terms(), theirs(images, targets).terms()
        for term, value in mine.items():
            torch.testing.assert_close(value, reference[term], rtol=TOLERANCE, atol=TOLERANCE)
            assert value > 1e-3

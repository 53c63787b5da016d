"""The detector and its parts against one made of torchvision's."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torchvision import ops

from backbones import FrozenBatchNorm2d
from detres.benchmarks.timing import Timing
from detres.config import check
from detres.detection.build import build_detector
from detres.detection.config import ModelConfig
from detres.detection.data.batch import pad_images
from detres.detection.data.shapes import draw_shapes_image
from detres.detection.models.roi_pool import roi_align
from detres.detection.structures import ImageBatch, Target
from detres.images.resize import resize_image, resized_size

NUM_CLASSES = 80
MIXED_SHAPES = ((1, 4 / 3),) * 3 + ((1, 3 / 2),) * 2 + ((4 / 3, 1),) * 2 + ((1, 1),)
"""Height and width over the short side of 8 images, most of them landscape as in COCO and VOC."""


def benchmark_padding(timing: Timing, backbone: str, short_side: int, num_rois: int) -> None:
    """Time a C4 detector on a batch of 8 images of several shapes, and on the same pixels taken
    for images that fill the batch: what it costs that the padding changes no detection.
    """
    device, config = timing.device, model_config(backbone, short_side, num_rois)
    detector = build_detector(config, NUM_CLASSES)
    settle(detector)
    detector = detector.to(device).eval()
    pixels, _ = draw_shapes_image(0, "val", 0)
    sizes = [(round(short_side * y), round(short_side * x)) for y, x in MIXED_SHAPES]
    images = pad_images(
        [resize_image(pixels, size) for size in sizes], original_sizes=sizes, ids=range(len(sizes))
    ).to(device)
    whole = (tuple(images.pixels.shape[2:]),) * len(images)
    unmasked = ImageBatch(images.pixels, whole, whole, images.ids)
    flags = torch.zeros(1, dtype=torch.bool)
    target = Target(1, torch.tensor([[20.0, 20.0, 220.0, 180.0]]), torch.tensor([1]), flags, flags)
    targets = [target.to(device)] * len(images)

    def inference(batch: ImageBatch) -> None:
        with torch.inference_mode():
            detector(batch)

    def step(batch: ImageBatch) -> None:
        detector(batch, targets).total().backward()
        detector.zero_grad(set_to_none=True)

    job = f"{len(images)} images of {short_side} px, {num_rois} RoIs, batch {whole[0]}"
    names = ("masked", "not masked")
    timing.row(f"inference, {job}", lambda: inference(images), lambda: inference(unmasked), names)
    job = job.replace(f" {num_rois} RoIs,", "")
    timing.row(f"training, {job}", lambda: step(images), lambda: step(unmasked), names)


def model_config(backbone: str, short_side: int, num_rois: int) -> ModelConfig:
    """Return the C4 model that torchvision's parts can express too; the long side is at most 5 / 3
    of the short one.
    """
    tree = {
        "backbone": {
            "name": backbone,
            "stride_placement": "torchvision",
            "norm": "batch",
            "freeze_at": 0,
        },
        "input": {"short_side": short_side, "max_side": short_side * 5 // 3},
        "anchors": {"style": "torchvision", "sizes": [64, 128, 256, 512]},
        "rpn": {
            "width": 1024 if backbone in ("resnet50", "resnet101") else 256,
            "objectness": "sigmoid",
            "train_anchors": "all",
            "min_size": 0.001,
            "test_post_nms_top_n": num_rois,
        },
        "roi": {"pool": "roi_align", "smooth_l1_beta": 1 / 9},
    }
    return check(ModelConfig, tree, "benchmark")


def settle(detector: nn.Module) -> None:
    """Scale the random weights so that activations and scores are of a trained network's size."""
    for module in detector.modules():
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            module.weight.data.fill_(0.5)
    nn.init.normal_(detector.rpn.head.objectness.weight, std=0.05)


def shapes_batch(config: ModelConfig) -> tuple[ImageBatch, list[Target]]:
    """Return one drawn image at the model's input size, and its objects."""
    pixels, objects = draw_shapes_image(0, "val", 0)
    given = config.input
    size = resized_size(*pixels.shape[:2], short_side=given.short_side, max_side=given.max_side)
    scale = size[0] / pixels.shape[0]
    boxes = [[float(edge) * scale for edge in box_of(item.mask)] for item in objects]
    flags = torch.zeros(len(boxes), dtype=torch.bool)
    labels = torch.tensor([item.label for item in objects])
    target = Target(1, torch.tensor(boxes).view(-1, 4), labels, flags, flags)
    resized = resize_image(pixels, size)
    return pad_images([resized], original_sizes=[pixels.shape[:2]], ids=[1]), [target]


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Return the xyxy box around the pixels of `mask` (H, W) bool."""
    ys, xs = mask.nonzero()
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


def random_rois(num: int, device: torch.device) -> Tensor:
    """Return (num, 5) RoIs of image 0 within 600 x 900 px."""
    corners = torch.rand((num, 2)) * torch.tensor([700.0, 400.0])
    sides = 30 + torch.rand((num, 2)) * 170
    return torch.cat((torch.zeros((num, 1)), corners, corners + sides), dim=1).to(device)


def pool_ours(feature: Tensor, rois: Tensor, size: int, scale: float) -> None:
    """RoIAlign as a gather-sum, and its gradient, of `feature` (N, C, H, W) and rois (R, 5)."""
    leaf = feature.detach().requires_grad_()
    roi_align(
        leaf, rois, output_size=size, spatial_scale=scale, sampling_ratio=2, aligned=False
    ).sum().backward()


def pool_theirs(feature: Tensor, rois: Tensor, size: int, scale: float) -> None:
    """torchvision's operator, and its gradient, of `feature` (N, C, H, W) and rois (R, 5)."""
    leaf = feature.detach().requires_grad_()
    ops.roi_align(leaf, rois, size, scale, 2).sum().backward()

"""However a step is divided among processes and parts, its losses and gradients are the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from detres.config import check
from detres.detection.build import build_detector
from detres.detection.config import ModelConfig
from detres.detection.data.batch import pad_images
from detres.detection.structures import ImageBatch, Target
from detres.engine.batches import Share
from detres.engine.distributed import Group
from detres.engine.step import GradientStep
from tests.processes import alone, together

K, IMAGES = 3, 8
MODEL = {
    "backbone": {"name": "resnet18", "freeze_at": 0, "norm": "sync", "width": 0.5},
    "input": {"short_side": 64, "max_side": 128},
    "anchors": {"sizes": [16, 32], "aspect_ratios": [1.0]},
    "rpn": {"width": 16, "batch_size": 16, "train_pre_nms_top_n": 40, "train_post_nms_top_n": 12},
    "roi": {"pool": "roi_align", "pool_size": 4, "batch_size": 8, "sampling_ratio": 1},
}


def make_images(objects: list[int]) -> tuple[list[Tensor], list[Target]]:
    """Images of several sizes with as many objects as said."""
    generator = torch.Generator().manual_seed(2)
    images, targets = [], []
    for n, number in enumerate(objects):
        height, width = (int(side) for side in torch.randint(64, 100, (2,), generator=generator))
        images.append(torch.randint(0, 256, (height, width, 3), generator=generator).byte().numpy())
        corner = torch.rand((number, 2), generator=generator) * 30
        boxes = torch.cat(
            (corner, corner + 12 + 20 * torch.rand((number, 2), generator=generator)), 1
        )
        nothing = torch.zeros(number, dtype=torch.bool)
        labels = torch.randint(1, K + 1, (number,), generator=generator)
        targets.append(Target(n, boxes, labels, nothing, nothing))
    return images, targets


def batch_of(images: list, targets: list[Target], rows: list[int]) -> tuple[ImageBatch, list]:
    sizes = [images[row].shape[:2] for row in rows]
    batch = pad_images([images[row] for row in rows], original_sizes=sizes, ids=rows)
    return replace(batch, seeds=tuple(1000 + row for row in rows)), [targets[row] for row in rows]


def step(
    group: Group,
    parts: int,
    norm: str,
    objects: list[int],
    dtype: torch.dtype,
    min_size: float = 4,
    sampled: int = 8,
):
    """Terms and gradients of one step of all images, as this group divides them.

    objects: how many each image has. min_size: px of a proposal. sampled: RoIs an image.
    """
    torch.manual_seed(0)
    settings = {
        **MODEL,
        "backbone": {**MODEL["backbone"], "norm": norm},
        "rpn": {**MODEL["rpn"], "min_size": min_size},
        "roi": {**MODEL["roi"], "batch_size": sampled},
    }
    model = build_detector(check(ModelConfig, settings, "test"), K, pretrained=False)
    model = model.to(dtype).train()
    with pytest.MonkeyPatch.context() as patch:
        if dtype == torch.float64:
            patch.setattr(torch.Tensor, "float", torch.Tensor.double)
            model.normalizer.register_forward_hook(lambda _m, _i, pixels: pixels.double())
        images, targets = make_images(objects)
        rows = Share(group.rank, group.size, parts).of(list(range(len(objects))))
        gradients = GradientStep(model, group.wrapped(model), group, torch.device("cpu"), "fp32")
        _, terms = gradients.take([batch_of(images, targets, each) for each in rows], seed=7)
    return (
        {name: value.double() for name, value in terms.items()},
        {name: p.grad.double() for name, p in model.named_parameters()},
    )


def require_equal(found, wanted, tolerance: float) -> None:
    for name, value in wanted[0].items():
        torch.testing.assert_close(found[0][name], value, rtol=tolerance, atol=tolerance, msg=name)
    scale = max(float(value.abs().max()) for value in wanted[1].values())
    for name, value in wanted[1].items():
        off = float((found[1][name] - value).abs().max())
        assert off <= tolerance * scale, (name, off, scale)


MANY = [3, 1, 2, 4, 1, 2, 3, 2]


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("size", "parts", "norm"),
    [
        (2, 1, "sync"),
        pytest.param(4, 1, "sync", marks=SLOW),
        pytest.param(2, 1, "group", marks=SLOW),
        pytest.param(4, 1, "group", marks=SLOW),
        (2, 2, "group"),
    ],
)
def test_processes_and_parts_make_no_difference(size: int, parts: int, norm: str) -> None:
    wanted = alone(step, 1, norm, MANY, torch.float64)
    for found in together(size, step, parts, norm, MANY, torch.float64):
        require_equal(found, wanted, 1e-9)


NONE, FEW = [0] * 8, [0, 0, 0, 0, 3, 1, 2, 4]


@pytest.mark.parametrize(
    ("size", "parts"), [(1, 2), pytest.param(2, 1, marks=SLOW), pytest.param(2, 2, marks=SLOW)]
)
@pytest.mark.parametrize(
    ("objects", "min_size", "sampled"),
    [
        (MANY, 4, 64),  # fewer regions than are to be sampled, another number in every image
        (NONE, 4, 8),
        (FEW, 4, 8),  # none in one process, or in one part
        (FEW, 1000, 8),  # no proposal: in one process no region at all
        (NONE, 1000, 8),  # in none
    ],
)
def test_images_without_objects_or_regions_make_no_difference(
    size: int, parts: int, objects: list[int], min_size: float, sampled: int
) -> None:
    arguments = ("group", objects, torch.float64, min_size, sampled)
    wanted = alone(step, 1, *arguments)
    if objects == NONE and min_size == 1000:
        assert wanted[0]["loss_roi_cls"] == 0
    found = (
        together(size, step, parts, *arguments) if size > 1 else [alone(step, parts, *arguments)]
    )
    for each in found:
        require_equal(each, wanted, 1e-9)


def trained(group: Group, objects: list[int]) -> str:
    """What becomes of a step in which a process has no region to learn from."""
    _, gradients = step(group, 1, "group", objects, torch.float32, 1000)
    return "all" if all(gradient.isfinite().all() for gradient in gradients.values()) else "some"


def test_a_process_without_a_region_keeps_nobody_waiting() -> None:
    assert together(2, trained, FEW, waits_s=60) == ["all", "all"]

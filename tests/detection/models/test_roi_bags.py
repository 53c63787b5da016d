from __future__ import annotations

import pytest
import torch
from torchvision import ops

from detres.detection.models.roi_bags import align_bags, max_bags
from tests.helpers import random_boxes


def regions(num: int, *, images: int, size: float, seed: int = 0) -> torch.Tensor:
    """(num, 5) RoIs, some of which reach over the border of images of `size` px."""
    boxes = random_boxes(num, size, seed=seed) * 1.3 - size * 0.15
    return torch.cat(((torch.arange(num) % images)[:, None].float(), boxes), dim=1)


def bags_of(kind, rois, shape, *, size, sampling_ratio=2, sizes=None):
    given = {"output_size": size, "spatial_scale": 1 / 16, "sizes": sizes}
    if kind == "max":
        return max_bags(rois, shape, **given)
    return align_bags(rois, shape, **given, sampling_ratio=sampling_ratio, aligned=False)


def test_a_maximum_by_hand():
    # Corners 1.5 and -0.5 of cells go away from 0, to 2 and -1; both belong to the region.
    feature = torch.arange(20.0).view(1, 1, 4, 5)
    rois = torch.tensor([[0.0, 24, -8, 48, 16], [0, 160, 160, 200, 200]])
    pooled = max_bags(rois, (1, 4, 5), output_size=2, spatial_scale=1 / 16).pool(feature)
    # columns 2..3, lines -1..1: bins of 1.5 lines are lines (-1, 0) and (0, 1) and of columns 1
    assert pooled[0, 0].tolist() == [[2.0, 3.0], [7.0, 8.0]]
    assert pooled[1, 0].tolist() == [[0.0, 0.0], [0.0, 0.0]]  # beyond the map: no cell


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("size", [1, 3, 7, 14])
def test_maxima_are_torchvisions_with_their_gradient(size, seed):
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randint(0, 9, (3, 5, 11, 13), generator=generator).double()  # equal ones
    feature = feature.to(memory_format=torch.channels_last).requires_grad_()
    rois = regions(40, images=3, size=200, seed=seed).double()
    rois[0, 1:] = torch.tensor([-500.0, -400.0, 700.0, 900.0])
    rois[1, 1:] = torch.tensor([-90.0, -90.0, -40.0, -40.0])  # beyond the map
    rois[2, 1:] = torch.tensor([24.0, 40.0, 24.0, 40.0])  # halves of a cell, no extent
    rois[3, 1:] = torch.tensor([80.0, 80.0, 20.0, 20.0])  # inside out
    ours = max_bags(rois, (3, 11, 13), output_size=size, spatial_scale=1 / 16).pool(feature)
    theirs = ops.roi_pool(feature.contiguous(), rois, size, 1 / 16)
    assert torch.equal(ours, theirs)
    upstream = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    (mine,) = torch.autograd.grad(ours, feature, upstream)
    (reference,) = torch.autograd.grad(theirs, feature, upstream)
    torch.testing.assert_close(mine, reference)


def test_maxima_of_more_cells_than_a_byte_counts_have_their_gradient():
    feature = torch.randn((1, 3, 40, 50), requires_grad=True)
    rois = torch.tensor([[0.0, 0, 0, 800, 640], [0, 16, 16, 300, 200]])  # bins of 20 x 25 cells
    ours = max_bags(rois, (1, 40, 50), output_size=2, spatial_scale=1 / 16).pool(feature)
    theirs = ops.roi_pool(feature, rois, 2, 1 / 16)
    assert torch.equal(ours, theirs)
    upstream = torch.randn(ours.shape)
    (mine,) = torch.autograd.grad(ours, feature, upstream)
    (reference,) = torch.autograd.grad(theirs, feature, upstream)
    torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize(
    ("sampling_ratio", "aligned"),
    [(0, False), (1, False), (2, False), (1, True), (2, True), (4, True)],
)
def test_regions_inside_out_are_torchvisions(sampling_ratio, aligned):
    feature = torch.randn((1, 3, 30, 30), dtype=torch.float64)
    rois = torch.tensor([[0.0, 300, 200, 100, 90], [0, 90, 300, 200, 100], [0, 50, 50, 99, 150]])
    given = {"spatial_scale": 1 / 16, "sampling_ratio": sampling_ratio, "aligned": aligned}
    ours = align_bags(rois.double(), (1, 30, 30), output_size=7, **given).pool(feature)
    theirs = ops.roi_align(feature, rois.double(), output_size=7, **given)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", ["max", "align"])
def test_a_maximum_or_a_sum_in_bf16_is_near_that_in_float32(kind):
    feature = torch.randn((2, 8, 10, 10))
    bags = bags_of(kind, regions(20, images=2, size=160), (2, 10, 10), size=7)
    pooled = bags.pool(feature.bfloat16())
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.float(), bags.pool(feature), rtol=0.03, atol=0.03)


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 4])
@pytest.mark.parametrize("kind", ["max", "align"])
@pytest.mark.parametrize("step", [2, 3])
def test_every_second_bin_is_that_of_all_bins(kind, sampling_ratio, step):
    feature = torch.randn((2, 4, 12, 9))
    rois = regions(30, images=2, size=180)
    bags = bags_of(kind, rois, (2, 12, 9), size=7, sampling_ratio=sampling_ratio)
    assert torch.equal(bags.every(step).pool(feature), bags.pool(feature)[:, :, ::step, ::step])
    assert bags.every(1).pool(feature).shape == (30, 4, 7, 7)


def test_bins_at_most_two_cells_wide_read_nine_cells_and_wider_ones_sixteen():
    rois = torch.tensor([[0.0, 0, 0, 14 * 32, 14 * 32], [0, 0, 0, 14 * 33, 14 * 32]])
    narrow, wide = (
        bags_of("align", each[None], (1, 40, 40), size=14).parts[0].index.shape[-1] for each in rois
    )
    assert (narrow, wide) == (9, 12)


@pytest.mark.parametrize("kind", ["max", "align"])
def test_without_regions(kind):
    feature = torch.randn((1, 4, 6, 6), requires_grad=True)
    pooled = bags_of(kind, torch.zeros((0, 5)), (1, 6, 6), size=3).pool(feature)
    assert pooled.shape == (0, 4, 3, 3)
    pooled.sum().backward()
    assert feature.grad.abs().sum() == 0


@pytest.mark.parametrize("kind", ["max", "align"])
def test_cells_of_the_padding_are_never_read(kind):
    sizes = ((5, 8), (9, 4))
    feature = torch.full((2, 3, 9, 8), torch.nan)
    for n, (height, width) in enumerate(sizes):
        feature[n, :, :height, :width] = 1.0
    rois = regions(40, images=2, size=150)
    pooled = bags_of(kind, rois, (2, 9, 8), size=5, sizes=sizes).pool(feature)
    assert not pooled.isnan().any()


@pytest.mark.parametrize("kind", ["max", "align"])
def test_the_gradient_of_a_bf16_map_is_a_sum_over_all_regions(kind):
    """Of 400 regions on the same cells; bf16 would stop adding at 256."""
    feature = torch.randn((1, 4, 6, 6)).bfloat16().requires_grad_()
    rois = torch.tensor([[0.0, 0, 0, 96, 96]]).expand(400, 5)
    pooled = bags_of(kind, rois, (1, 6, 6), size=2).pool(feature)
    pooled.sum().backward()
    one = feature.detach().double().requires_grad_()
    bags_of(kind, rois[:1].double(), (1, 6, 6), size=2).pool(one).sum().backward()
    torch.testing.assert_close(feature.grad.double(), 400 * one.grad, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("kind", ["max", "align"])
def test_regions_of_many_kinds_are_each_by_itself(kind):
    """Whose bins read from one cell to hundreds; in any order, with their gradient."""
    torch.manual_seed(0)
    feature = torch.randn((2, 3, 30, 40), dtype=torch.double, requires_grad=True)
    sides = torch.tensor([4.0, 600, 30, 250, 90, 4, 430, 30])
    rois = torch.stack(
        (torch.arange(8) % 2, torch.full((8,), 9.0), torch.full((8,), 7.0), sides, sides * 0.7), 1
    ).double()
    bags = bags_of(kind, rois, (2, 30, 40), size=3, sampling_ratio=0)
    assert len(bags.parts) > 3
    together = bags.pool(feature)
    each = [
        bags_of(kind, roi[None], (2, 30, 40), size=3, sampling_ratio=0).pool(feature)
        for roi in rois
    ]
    torch.testing.assert_close(together, torch.cat(each), rtol=0, atol=1e-12)
    down = torch.randn_like(together)
    (mine,) = torch.autograd.grad(together, feature, down)
    (its,) = torch.autograd.grad(torch.cat(each), feature, down)
    torch.testing.assert_close(mine, its, rtol=0, atol=1e-12)

from __future__ import annotations

import pytest
import torch
from torchvision import ops
from torchvision.ops import MultiScaleRoIAlign

from detres.detection.models.roi_pool import RoIPooler, roi_align
from detres.detection.structures import FeatureMap
from tests.helpers import random_boxes, whole_map


def indexed(num: int, images: int, size: float, seed: int = 0) -> torch.Tensor:
    boxes = random_boxes(num, size, seed=seed) * 1.2 - size * 0.1  # some reach over the border
    return torch.cat(((torch.arange(num) % images)[:, None].float(), boxes), dim=1)


def make_pooler(*, kind="roi_align", output_size=3, sampling_ratio=2) -> RoIPooler:
    return RoIPooler(
        strides={"conv4": 16},
        kind=kind,
        output_size=output_size,
        sampling_ratio=sampling_ratio,
    )


def test_constant_map_gives_the_constant():
    feature = torch.full((1, 2, 8, 8), 3.0)
    pooled = make_pooler(output_size=4)(
        {"conv4": whole_map(feature)}, [torch.tensor([[16.0, 16, 80, 80]])]
    )
    assert pooled.shape == (1, 2, 4, 4)
    torch.testing.assert_close(pooled, torch.full((1, 2, 4, 4), 3.0))


def test_ramp_by_hand():
    # On a map whose value is its column, a bin's average is the x of its centre (samples are
    # symmetric about it).
    feature = torch.arange(8.0).view(1, 1, 1, 8).expand(1, 1, 8, 8)
    pooled = roi_align(
        feature,
        torch.tensor([[0.0, 1, 1, 5, 5]]),
        output_size=2,
        spatial_scale=1.0,
        sampling_ratio=2,
        aligned=False,
    )
    assert pooled[0, 0].tolist() == [[2.0, 4.0], [2.0, 4.0]]
    aligned = roi_align(
        feature,
        torch.tensor([[0.0, 1, 1, 5, 5]]),
        output_size=2,
        spatial_scale=1.0,
        sampling_ratio=2,
        aligned=True,
    )
    assert aligned[0, 0].tolist() == [[1.5, 3.5], [1.5, 3.5]]


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
def test_gather_sum_is_torchvisions_roi_align_with_its_gradient(aligned, sampling_ratio):
    feature = (
        torch.randn((3, 5, 11, 13), dtype=torch.float64)
        .to(memory_format=torch.channels_last)
        .requires_grad_()
    )
    rois = indexed(25, 3, 200.0).double()
    rois[0, 1:] = torch.tensor([40.0, 30.0, 40.0, 90.0])  # without extent
    rois[1, 1:] = torch.tensor([-300.0, -200.0, 500.0, 500.0])  # of several cells a bin
    ours = roi_align(
        feature,
        rois,
        output_size=7,
        spatial_scale=1 / 16,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
    )
    theirs = ops.roi_align(feature, rois, 7, 1 / 16, sampling_ratio, aligned)
    torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(ours)
    (mine,) = torch.autograd.grad(ours, feature, upstream)
    (reference,) = torch.autograd.grad(theirs, feature, upstream)
    torch.testing.assert_close(mine, reference)


def test_roi_pool_is_torchvisions():
    feature = torch.randn((2, 4, 10, 10))
    rois = indexed(12, 2, 160.0)
    lists = [rois[rois[:, 0] == n][:, 1:] for n in range(2)]
    ordered = torch.cat([rois[rois[:, 0] == n] for n in range(2)])
    pooled = make_pooler(kind="roi_pool", sampling_ratio=0)({"conv4": whole_map(feature)}, lists)
    torch.testing.assert_close(pooled, ops.roi_pool(feature, ordered, 3, 1 / 16))


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("kind", ["roi_pool", "roi_align", "roi_align_aligned"])
def test_a_padded_map_is_pooled_from_each_images_own_cells(kind, sampling_ratio):
    sizes = ((10, 7), (6, 12), (10, 12))
    values = torch.full((3, 4, 10, 12), torch.nan)
    for n, (height, width) in enumerate(sizes):
        values[n, :, :height, :width] = torch.randn((4, height, width))
    values.requires_grad_()
    rois = [random_boxes(count, 200) for count in (9, 0, 7)]
    pooler = make_pooler(kind=kind, sampling_ratio=sampling_ratio)
    together = pooler({"conv4": FeatureMap(values, sizes)}, rois)
    alone = [
        pooler({"conv4": whole_map(values[n : n + 1, :, :height, :width])}, [rois[n]])
        for n, (height, width) in enumerate(sizes)
    ]
    assert together.shape == (16, 4, 3, 3)
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=0)
    upstream = torch.randn_like(together)
    (gradient,) = torch.autograd.grad(together, values, upstream)
    (expected,) = torch.autograd.grad(torch.cat(alone), values, upstream)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("bins", [1, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_adaptive_sampling_of_regions_of_all_sizes(bins, seed):
    """Sides that are whole numbers of cells a bin, where rounding decides how many samples there
    are, among them.
    """
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn((2, 3, 40, 50), generator=generator)
    start = torch.rand((60, 2), generator=generator) * 30 - 3
    whole = torch.randint(0, 6, (60, 2), generator=generator).float() * bins
    sides = torch.where(torch.rand((60, 2), generator=generator) < 0.5, whole, whole * 0.77)
    start = torch.where(torch.rand((60, 2), generator=generator) < 0.3, start.round(), start)
    rois = torch.cat(((torch.arange(60) % 2)[:, None], start, start + sides), dim=1)
    for aligned in (False, True):
        given = {"output_size": bins, "spatial_scale": 1.0, "sampling_ratio": 0}
        ours = roi_align(feature, rois, **given, aligned=aligned)
        theirs = ops.roi_align(feature, rois, **given, aligned=aligned)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


LEVELS = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}


def pyramid_of(sizes, generator: torch.Generator, height=160, width=192):
    """Maps of a pyramid, 0 in the padding, of images of `sizes` px."""
    found = {}
    for level, stride in LEVELS.items():
        values = torch.zeros((len(sizes), 3, height // stride, width // stride))
        own = tuple((-(-h // stride), -(-w // stride)) for h, w in sizes)
        for row, (h, w) in zip(values, own, strict=True):
            row[:, :h, :w] = torch.randn((3, h, w), generator=generator)
        found[level] = FeatureMap(values, own)
    return found


def regions(num: int, generator: torch.Generator) -> torch.Tensor:
    corners = torch.rand((num, 2), generator=generator) * 60
    sides = torch.rand((num, 2), generator=generator) ** 2 * 600 + 2
    return torch.cat((corners, corners + sides), dim=1)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_every_region_of_a_pyramid_from_its_own_level_as_torchvision_does(sampling_ratio):
    generator = torch.Generator().manual_seed(2)
    features = pyramid_of([(160, 192)] * 2, generator)
    for each in features.values():
        each.values.requires_grad_()
    rois = [regions(40, generator), regions(25, generator)]
    pooler = RoIPooler(
        strides=LEVELS, kind="roi_align", output_size=7, sampling_ratio=sampling_ratio
    )
    theirs = MultiScaleRoIAlign(list(LEVELS), 7, sampling_ratio)
    wanted = theirs({k: v.values for k, v in features.items()}, rois, [(160, 192)] * 2)
    pooled = pooler(features, rois)
    torch.testing.assert_close(pooled, wanted, rtol=0, atol=1e-5)
    upstream = torch.randn(pooled.shape, generator=generator)
    maps = [each.values for each in features.values()]
    mine, reference = (torch.autograd.grad(each, maps, upstream) for each in (pooled, wanted))
    for got, expected in zip(mine, reference, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_a_padded_pyramid_is_pooled_from_each_images_own_cells():
    generator = torch.Generator().manual_seed(4)
    sizes = [(160, 100), (90, 192)]
    features = pyramid_of(sizes, generator)
    rois = [regions(20, generator), regions(30, generator)]
    pooler = RoIPooler(strides=LEVELS, kind="roi_align_aligned", output_size=3, sampling_ratio=0)
    together = pooler(features, rois)
    alone = [
        pooler(
            {
                level: whole_map(each.values[n : n + 1, :, : each.sizes[n][0], : each.sizes[n][1]])
                for level, each in features.items()
            },
            [rois[n]],
        )
        for n in range(2)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-6)


def test_a_pyramid_without_regions_and_with_those_of_one_level_alone():
    features = pyramid_of([(160, 192)], torch.Generator().manual_seed(0))
    pooler = RoIPooler(strides=LEVELS, kind="roi_align", output_size=2, sampling_ratio=2)
    assert pooler(features, [torch.zeros((0, 4))]).shape == (0, 3, 2, 2)
    for side, level in ((20.0, "p2"), (900.0, "p5")):
        box = torch.tensor([[5.0, 6.0, 5.0 + side, 6.0 + side]])
        one = RoIPooler(
            strides={level: LEVELS[level]}, kind="roi_align", output_size=2, sampling_ratio=2
        )
        torch.testing.assert_close(pooler(features, [box]), one(features, [box]))


@pytest.mark.parametrize("kind", ["roi_pool", "roi_align"])
def test_no_rois_and_an_image_without(kind):
    features = {"conv4": whole_map(torch.randn((2, 4, 10, 10)))}
    pooler = make_pooler(kind=kind)
    assert pooler(features, [torch.zeros((0, 4)), torch.zeros((0, 4))]).shape == (0, 4, 3, 3)
    boxes = random_boxes(3, 150)
    torch.testing.assert_close(
        pooler(features, [torch.zeros((0, 4)), boxes]),
        pooler({"conv4": whole_map(features["conv4"].values[1:])}, [boxes]),
    )


def test_bf16_map():
    feature = torch.randn((1, 8, 10, 10)).bfloat16()
    pooled = make_pooler()({"conv4": whole_map(feature)}, [random_boxes(4, 150)])
    assert pooled.dtype == torch.bfloat16


def test_the_map_of_its_stage_is_pooled():
    boxes = [random_boxes(4, 150)]
    features = {
        "conv3": whole_map(torch.randn((1, 4, 20, 20))),
        "conv4": whole_map(torch.randn((1, 4, 10, 10))),
    }
    pooler = make_pooler()
    torch.testing.assert_close(
        pooler(features, boxes), pooler({"conv4": features["conv4"]}, boxes), rtol=0, atol=0
    )
    with pytest.raises(KeyError, match="conv4"):
        pooler({"conv3": features["conv3"]}, boxes)


@pytest.mark.parametrize(
    ("box", "value"),
    [
        ((3, 0, 5, 2), 7.0),  # one sample at x = 4, y = 1: up to the map's side, the nearest cell
        ((3.5, 0, 5, 2), 0.0),  # x = 4.25: nothing
        ((0, 3, 2, 5), 13.0),
        ((0, 3.5, 2, 5), 0.0),
        ((-2, 0, 0, 2), 4.0),  # x = -1
        ((-1.5, 0, 0.5, 2), 4.0),  # x = -0.5
        ((-2.5, 0, 0, 2), 0.0),  # x = -1.25
        ((0, -2.5, 2, 0), 0.0),
        ((2, 1, 4, 2), 9.0),  # x = 3, y = 1.5: between 7 and 11
    ],
)
@pytest.mark.parametrize("sampling", ["ours", "operator"])
def test_samples_at_and_beyond_the_border_by_hand(box, value, sampling):
    feature = torch.arange(16.0).view(1, 1, 4, 4)
    rois = torch.tensor([[0.0, *box]])
    if sampling == "ours":
        pooled = roi_align(
            feature, rois, output_size=1, spatial_scale=1.0, sampling_ratio=1, aligned=False
        )
    else:
        pooled = ops.roi_align(feature, rois, 1, 1.0, 1, False)
    assert pooled.item() == value

"""The feature pyramid: by hand, beside torchvision's, and with padded batches."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper

from detres.detection.models.fpn import FPN, levels_of, twice
from detres.detection.structures import FeatureMap

CHANNELS = {"conv2": 4, "conv3": 6, "conv4": 5, "conv5": 7}
STRIDES = {"conv1": 2, "conv2": 4, "conv3": 8, "conv4": 16, "conv5": 32}


def halved(size: tuple[int, int], times: int) -> tuple[int, int]:
    for _ in range(times):
        size = (-(-size[0] // 2), -(-size[1] // 2))
    return size


def maps_of(
    sizes: list[tuple[int, int]], generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> dict[str, FeatureMap]:
    """Random maps of images whose conv2 maps are of these sizes, in one padded batch."""
    found = {}
    for times, (stage, channels) in enumerate(CHANNELS.items()):
        own = [halved(size, times) for size in sizes]
        height, width = (max(size[axis] for size in own) for axis in (0, 1))
        values = torch.zeros((len(sizes), channels, height, width), dtype=dtype)
        for row, (h, w) in zip(values, own, strict=True):
            row[:, :h, :w] = torch.randn((channels, h, w), generator=generator, dtype=dtype)
        found[stage] = FeatureMap(values, tuple(own))
    return found


def make(width: int = 3, *, batch_norm: bool = False, seed: int = 0) -> FPN:
    torch.manual_seed(seed)
    fpn = FPN(in_channels=CHANNELS, strides=STRIDES, width=width, batch_norm=batch_norm)
    for parameter in fpn.parameters():
        nn.init.normal_(parameter, std=0.5)
    return fpn.double()


def test_by_hand() -> None:
    """Two stages of one channel: lateral layers double, output layers take the cell itself."""
    fpn = FPN(in_channels={"conv2": 1, "conv3": 1}, strides=STRIDES, width=1)
    for layer in fpn.lateral.values():
        nn.init.constant_(layer.conv.weight, 2.0)
        nn.init.constant_(layer.conv.bias, 1.0)
    for layer in fpn.output.values():
        nn.init.zeros_(layer.conv.weight)
        layer.conv.weight.data[0, 0, 1, 1] = 1.0
    fine = torch.tensor([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]]])
    coarse = torch.tensor([[[[10.0, 20.0], [30.0, 40.0]]]])
    made = fpn({"conv2": FeatureMap(fine, ((3, 3),)), "conv3": FeatureMap(coarse, ((2, 2),))})
    assert list(made) == ["p2", "p3", "p4"] == list(fpn.levels)
    assert fpn.levels == {"p2": 4, "p3": 8, "p4": 16}
    assert made["p3"].values.tolist() == [[[[21.0, 41.0], [61.0, 81.0]]]]
    assert made["p2"].values.tolist() == [
        [[[24.0, 26.0, 48.0], [30.0, 32.0, 54.0], [76.0, 78.0, 100.0]]]
    ]
    assert made["p4"].values.tolist() == [[[[21.0]]]]
    assert [made[level].sizes for level in made] == [((3, 3),), ((2, 2),), ((1, 1),)]


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("size", [(32, 48), (24, 40)])
def test_equal_to_torchvisions_with_its_gradients(size, batch_norm) -> None:
    """Where every map is exactly half the one before; torchvision stretches others otherwise."""
    generator = torch.Generator().manual_seed(3)
    ours = make(batch_norm=batch_norm)
    theirs = FeaturePyramidNetwork(
        list(CHANNELS.values()),
        3,
        extra_blocks=LastLevelMaxPool(),
        norm_layer=nn.BatchNorm2d if batch_norm else None,
    ).double()
    for number, stage in enumerate(CHANNELS):
        for blocks, layers in (
            (theirs.inner_blocks, ours.lateral),
            (theirs.layer_blocks, ours.output),
        ):
            blocks[number][0].load_state_dict(layers[stage].conv.state_dict())
            if batch_norm:
                blocks[number][1].load_state_dict(layers[stage].norm.state_dict())
    features = maps_of([size, size], generator)
    made = ours(features)
    wanted = theirs(OrderedDict((stage, each.values) for stage, each in features.items()))
    weights = {
        level: torch.randn(each.values.shape, generator=generator, dtype=torch.float64)
        for level, each in made.items()
    }
    for (level, each), other in zip(made.items(), wanted.values(), strict=True):
        torch.testing.assert_close(each.values, other, rtol=0, atol=1e-10, msg=level)
    sum((each.values * weights[level]).sum() for level, each in made.items()).backward()
    pairs = zip(wanted.values(), weights.values(), strict=True)
    sum((each * weight).sum() for each, weight in pairs).backward()
    for number, stage in enumerate(CHANNELS):
        for blocks, layers in (
            (theirs.inner_blocks, ours.lateral),
            (theirs.layer_blocks, ours.output),
        ):
            torch.testing.assert_close(
                layers[stage].conv.weight.grad, blocks[number][0].weight.grad, rtol=0, atol=1e-9
            )


@pytest.mark.parametrize("seed", range(4))
def test_a_padded_batch_is_each_image_alone(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    sizes = [tuple(torch.randint(8, 40, (2,), generator=generator).tolist()) for _ in range(3)]
    fpn, features = make(seed=seed), maps_of(sizes, generator)
    together = fpn(features)
    for n, size in enumerate(sizes):
        alone = fpn(
            {
                stage: FeatureMap(
                    each.values[n : n + 1, :, : each.sizes[n][0], : each.sizes[n][1]],
                    (each.sizes[n],),
                )
                for stage, each in features.items()
            }
        )
        for number, (level, each) in enumerate(alone.items()):
            height, width = each.values.shape[2:]
            assert each.sizes == ((height, width),) == (halved(size, number),)
            assert together[level].sizes[n] == (height, width)
            if each.spans is not None:
                assert together[level].spans[n] == each.spans[0]
            own = together[level].values[n, :, :height, :width]
            torch.testing.assert_close(own, each.values[0], rtol=0, atol=1e-12)
            rest = together[level].values[n].clone()
            rest[:, :height, :width] = 0
            assert not rest.any(), (level, n)


def test_batch_norm_counts_the_cells_of_images_alone() -> None:
    """Two images, one of which fills half of the batch: as if its padding were not there."""
    generator = torch.Generator().manual_seed(5)
    fpn, features = make(batch_norm=True), maps_of([(16, 16), (16, 8)], generator)
    fpn.train()
    fpn(features)
    norm, conv = fpn.lateral["conv5"].norm, fpn.lateral["conv5"].conv
    cells = [
        conv(features["conv5"].values[n : n + 1, :, : size[0], : size[1]]).flatten(2)[0]
        for n, size in enumerate(features["conv5"].sizes)
    ]
    mean = torch.cat(cells, dim=1).mean(dim=1)
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)


def test_twice_cuts_to_the_size_that_is_asked_for() -> None:
    x = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    assert twice(x, (3, 4)).tolist() == [[[[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4]]]]


def square(side: float) -> list[float]:
    return [10.0, 20.0, 10.0 + side, 20.0 + side]


def test_levels_by_hand() -> None:
    boxes = torch.tensor(
        [square(side) for side in (1, 55, 56, 111, 112, 223, 224, 447, 448, 900, 1e5)]
        + [[0.0, 0.0, 448.0, 112.0], [0.0, 0.0, 0.0, 5.0]]
    )
    found = levels_of(boxes, finest=2, coarsest=5)
    assert found.tolist() == [2, 2, 2, 2, 3, 3, 4, 4, 5, 5, 5, 4, 2]
    assert levels_of(boxes, finest=3, coarsest=4).unique().tolist() == [3, 4]
    halved = levels_of(boxes / 2, finest=2, coarsest=5, canonical_side=112.0)
    assert halved.tolist() == found.tolist()
    assert levels_of(torch.zeros((0, 4)), finest=2, coarsest=5).shape == (0,)


def test_levels_are_torchvisions() -> None:
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand((500, 2), generator=generator) * 900
    sides = torch.rand((500, 2), generator=generator) ** 3 * 1200 + 1
    boxes = torch.cat((corners, corners + sides), dim=1)
    wanted = LevelMapper(2, 5, 224, 4)([boxes]) + 2
    found = levels_of(boxes, finest=2, coarsest=5)
    assert torch.equal(found, wanted)
    assert found.unique().tolist() == [2, 3, 4, 5]

"""A batch of several sizes: what a network makes of an image does not depend on its padding."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones import (
    Backbone,
    fold_batch_norm,
    plain18,
    resnet18,
    resnet50,
    resnet_cifar,
    vgg16,
    vgg16_bn,
)
from backbones.norm import conv_norm, make_norm
from backbones.padding import Padding, zero_padding_

SIZES = ((48, 80), (70, 51), (33, 64))
"""Px, of both orientations; odd ones, and one that ends in the middle of a cell of stride 32."""


def unsettled(net: Backbone) -> Backbone:
    """Norms that shift a lot, so that a cell of zeros does not stay zero."""
    for module in net.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)):
            nn.init.normal_(module.bias, std=0.5)
        elif hasattr(module, "running_mean"):
            module.bias.normal_(std=0.5)
    return net


def padded(images: list[Tensor], extra: tuple[int, int] = (0, 0)) -> Tensor:
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    batch = torch.zeros((len(images), images[0].shape[0], height + extra[0], width + extra[1]))
    for row, image in zip(batch, images, strict=True):
        row[:, : image.shape[1], : image.shape[2]] = image
    return batch


NETWORKS: dict[str, Callable[[], Backbone]] = {
    "resnet18": lambda: resnet18(num_classes=0),
    "resnet18, frozen": lambda: resnet18(num_classes=0, norm="frozen"),
    "resnet18, group": lambda: resnet18(num_classes=0, norm="group"),
    "resnet18, A": lambda: resnet18(num_classes=0, shortcut="A"),
    "resnet18, C": lambda: resnet18(num_classes=0, shortcut="C"),
    "plain18": lambda: plain18(num_classes=0),
    "resnet50, 3x3": lambda: resnet50(num_classes=0, stride_placement="torchvision"),
    "resnet50, 1x1": lambda: resnet50(num_classes=0, stride_placement="original"),
    "resnet50, group": lambda: resnet50(num_classes=0, norm="group"),
    "resnet18, pool1 of Caffe": lambda: resnet18(num_classes=0, pool1="caffe"),
    "resnet50, half": lambda: resnet50(
        num_classes=0, width=0.5, pool1="caffe", stride_placement="original"
    ),
    "resnet_cifar": lambda: resnet_cifar(20, num_classes=0),
    "vgg16_bn": lambda: vgg16_bn(num_classes=0),
    "vgg16": lambda: vgg16(num_classes=0),
    "resnet50, folded": lambda: fold_batch_norm(unsettled(resnet50(num_classes=0))),
    "resnet18, recomputed": lambda: resnet18(num_classes=0).checkpoint_activations(
        ("conv2", "conv3")
    ),
}
LARGE = {"vgg16", "resnet50, 3x3", "resnet50, half"}
"""What others have the like of."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in LARGE else ()) for name in NETWORKS],
)
@pytest.mark.parametrize("extra", [(0, 0), (26, 32)])
def test_an_images_cells_are_those_it_has_alone(name, extra):
    net = unsettled(NETWORKS[name]()).eval().requires_grad_(False)
    images = [torch.randn((3, *size)) for size in SIZES]
    stages = tuple(net.channels)
    together = net.feature_maps(padded(images, extra), stages, SIZES)
    for n, image in enumerate(images):
        alone = net.feature_maps(image[None], stages)
        for stage, expected in alone.items():
            height, width = net.map_size(stage, SIZES[n])
            assert expected.shape[2:] == (height, width)
            found = together[stage][n]
            scale = float(expected.abs().max())
            assert scale > 0
            torch.testing.assert_close(
                found[:, :height, :width], expected[0], rtol=0, atol=1e-5 * scale
            )
            assert found[:, height:].abs().sum() + found[:, :, width:].abs().sum() == 0


@pytest.mark.parametrize("name", ["resnet18", "resnet50, 3x3", "resnet50, 1x1"])
def test_batch_statistics_count_no_padding(name):
    """In train mode the statistics are of the images' cells alone: more padding changes nothing.

    In double precision, for rounding grows through a network in train mode.
    """
    images = [torch.randn((3, *size)) for size in SIZES]
    net = unsettled(NETWORKS[name]()).double().train()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    seen = []
    for extra in ((0, 0), (32, 64)):
        net.load_state_dict(before)
        net.zero_grad()
        maps = net.feature_maps(padded(images, extra).double(), ("conv4",), SIZES)["conv4"]
        height, width = net.map_size("conv4", (70, 80))
        maps[..., :height, :width].square().mean().backward()
        gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        state = {key: tensor.clone() for key, tensor in net.state_dict().items()}
        seen.append((maps[..., :height, :width].detach(), state, gradients))
    (maps, state, gradients), (more_maps, more_state, more_gradients) = seen
    torch.testing.assert_close(maps, more_maps, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(state, more_state, rtol=1e-9, atol=1e-9)
    assert len(gradients) > 10
    for gradient, other in zip(gradients, more_gradients, strict=True):
        scale = float(gradient.abs().max())
        torch.testing.assert_close(gradient, other, rtol=0, atol=1e-8 * scale)


@pytest.mark.parametrize("kind", ["batch", "sync"])
def test_statistics_of_one_layer_by_hand(kind):
    conv, norm = nn.Conv2d(2, 3, 1, bias=False), make_norm(kind, 3).train()
    x = torch.randn((2, 2, 3, 4))
    padding = Padding.of([(3, 2), (1, 4)], (3, 4), x.device)
    y = conv_norm(conv, norm, x, padding)
    raw = conv(x).detach()
    cells = torch.cat([raw[0, :, :3, :2].flatten(1), raw[1, :, :1].flatten(1)], dim=1)  # (3, 10)
    mean, var = cells.mean(dim=1), cells.var(dim=1, unbiased=False)
    expected = (raw - mean.view(3, 1, 1)) / (var.view(3, 1, 1) + norm.eps).sqrt()
    torch.testing.assert_close(y[0, :, :3, :2], expected[0, :, :3, :2])
    torch.testing.assert_close(y[1, :, :1], expected[1, :, :1])
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * cells.var(dim=1, unbiased=True))
    assert norm.num_batches_tracked == 1


def test_a_norm_that_keeps_no_statistics_takes_those_of_the_images_in_eval_mode_too():
    conv, norm = nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3, track_running_stats=False).eval()
    x = torch.randn((1, 2, 3, 4))
    y = conv_norm(conv, norm, x, Padding.of([(3, 2)], (3, 4), x.device))
    torch.testing.assert_close(y[..., :2], norm(conv(x[..., :2])))


def test_group_norm_of_a_padded_image_is_that_of_the_image():
    conv, norm = nn.Conv2d(2, 64, 1, bias=False), make_norm("group", 64)
    nn.init.normal_(norm.weight)
    x = torch.randn((2, 2, 3, 4))
    y = conv_norm(conv, norm, x, Padding.of([(3, 2), (1, 4)], (3, 4), x.device))
    torch.testing.assert_close(y[:1, :, :, :2], norm(conv(x[:1, :, :, :2])))
    torch.testing.assert_close(y[1:, :, :1], norm(conv(x[1:, :, :1])))
    y.sum().backward()
    assert norm.weight.grad.abs().sum() > 0


def test_no_padding_costs_nothing():
    """A batch of equal sizes runs the very operations of one whose sizes nobody gave."""
    net, x = resnet18(num_classes=0).eval(), torch.randn((2, 3, 64, 96))
    plain, sized = (net.feature_maps(x, sizes=sizes)["conv4"] for sizes in (None, [(64, 96)] * 2))
    assert torch.equal(plain, sized)
    names = []
    for sizes in (None, [(64, 96)] * 2):
        with torch.profiler.profile() as profile:
            net.feature_maps(x, sizes=sizes)
        names.append([event.name for event in profile.events()])
    assert names[0] == names[1]


def test_padding_by_hand():
    padding = Padding.of([(1, 2), (2, 1)], (2, 3), torch.device("cpu"))
    assert padding.keep.tolist() == [
        [[[True, True, False], [False, False, False]]],
        [[[True, False, False], [True, False, False]]],
    ]
    x = torch.arange(1.0, 13.0).view(2, 1, 2, 3)
    assert [part.tolist() for part in padding.images(x)] == [[[[[1, 2]]]], [[[[7], [10]]]]]
    assert zero_padding_(x.clone(), None).tolist() == x.tolist()
    zero_padding_(x, padding)
    assert x.tolist() == [[[[1, 2, 0], [0, 0, 0]]], [[[7, 0, 0], [10, 0, 0]]]]


@pytest.mark.parametrize("size", [(1, 1), (31, 64), (32, 33), (63, 65), (600, 1000), (599, 901)])
def test_map_size_is_the_size_of_the_map(size):
    """By torch's own arithmetic, layer after layer."""
    side = torch.empty((1, 1, *size))
    halves = {"conv1": side[..., ::2, ::2]}
    for number in range(2, 6):
        earlier = halves[f"conv{number - 1}"]
        halves[f"conv{number}"] = (
            F.max_pool2d(earlier, 3, 2, 1) if number == 2 else earlier[..., ::2, ::2]
        )
    with torch.device("meta"):
        resnet, vgg = resnet18(num_classes=0), vgg16(num_classes=0)
    for stage, map_ in halves.items():
        assert resnet.map_size(stage, size) == tuple(map_.shape[2:])
    if min(size) < 32:
        return
    for number in range(2, 6):
        side = F.max_pool2d(side, 2)
        assert vgg.map_size(f"conv{number}", size) == tuple(side.shape[2:])


def test_sizes_that_do_not_belong_to_the_batch():
    net, x = resnet18(num_classes=0), torch.zeros((2, 3, 64, 64))
    for sizes in ([(64, 64)], [(64, 64), (65, 64)], [(64, 64), (64, 70)], []):
        with pytest.raises(ValueError, match="do not fit images"):
            net.feature_maps(x, sizes=sizes)


@pytest.mark.parametrize("name", ["resnet18", "resnet18, pool1 of Caffe", "vgg16"])
def test_an_image_below_a_cell_has_one_which_does_not_depend_on_the_batch(name):
    net = unsettled(NETWORKS[name]()).eval().requires_grad_(False)
    small, stages = torch.randn((3, 1, 40)), tuple(net.channels)
    with_one = net.feature_maps(
        padded([small, torch.randn((3, 32, 48))]), stages, [(1, 40), (32, 48)]
    )
    with_other = net.feature_maps(
        padded([small, torch.randn((3, 64, 64))]), stages, [(1, 40), (64, 64)]
    )
    for stage in stages:
        height, width = net.map_size(stage, (1, 40))
        assert min(height, width) >= 1
        torch.testing.assert_close(
            with_one[stage][0, :, :height, :width], with_other[stage][0, :, :height, :width]
        )


@pytest.mark.parametrize("momentum", [0.1, 0.0, None])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_of_images_is_that_of_their_cells_with_its_gradient(momentum, training):
    """Against torch's own on the gathered cells, in double precision, twice, so that its averages
    have moved.
    """
    sizes = ((5, 7), (6, 4), (1, 1))
    padding = Padding.of(sizes, (6, 7), torch.device("cpu"))
    own = nn.BatchNorm2d(8, momentum=momentum, track_running_stats=training).double()
    nn.init.uniform_(own.weight)
    nn.init.uniform_(own.bias)
    witness = copy.deepcopy(own)
    own.train(training)
    witness.train(training)
    keep = padding.keep[:, 0]
    for _ in range(2):
        x = (torch.randn((3, 8, 6, 7), dtype=torch.float64) * 2 + 3).requires_grad_()
        conv = nn.Conv2d(8, 8, 1).double().requires_grad_(False)
        found = conv_norm(conv, own, x, padding).permute(0, 2, 3, 1)[keep]
        cells = conv(x).permute(0, 2, 3, 1)[keep]  # (N, C, H, W) -> (cells, C)
        expected = witness(cells[:, :, None, None])[:, :, 0, 0]
        torch.testing.assert_close(found, expected)
        upstream = torch.randn_like(found)
        wanted = (x, own.weight, own.bias)
        gradients = torch.autograd.grad(found, wanted, upstream)
        wanted = (x, witness.weight, witness.bias)
        for mine, reference in zip(
            gradients, torch.autograd.grad(expected, wanted, upstream), strict=True
        ):
            torch.testing.assert_close(mine, reference)
    for name, value in witness.state_dict().items():
        torch.testing.assert_close(own.state_dict()[name], value)


def test_what_comes_back_in_the_padding_is_no_gradient():
    padding = Padding.of(((2, 2), (3, 3)), (3, 3), torch.device("cpu"))
    norm, x = nn.BatchNorm2d(4), torch.randn((2, 4, 3, 3), requires_grad=True)
    found = conv_norm(nn.Conv2d(4, 4, 1, bias=False), norm, x, padding)
    garbage = torch.where(padding.keep, 1.0, 1e6).expand_as(found)
    (gradient,) = torch.autograd.grad(found, x, garbage, retain_graph=True)
    (clean,) = torch.autograd.grad(found, x, padding.keep.float().expand_as(found))
    torch.testing.assert_close(gradient, clean)

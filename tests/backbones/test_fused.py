from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from backbones import create_backbone
from backbones.fused import FusedConv2d, FusedLinear, fuse_blocks_, fuse_network_
from backbones.norm import FoldError
from tests.backbones.nets import randomise_norms


def conv_and_norm(stride=1, groups=1):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride, padding=1, bias=False, groups=groups)
    return conv, randomise_norms(nn.Sequential(nn.BatchNorm2d(6))).eval()[0]


def test_a_convolution_its_norm_and_its_relu_by_hand():
    conv, norm = nn.Conv2d(1, 1, 1, bias=False), nn.BatchNorm2d(1, eps=0.0).eval()
    nn.init.constant_(conv.weight, 3.0)
    norm.load_state_dict(
        {
            **norm.state_dict(),
            "weight": torch.tensor([2.0]),
            "bias": torch.tensor([1.0]),
            "running_mean": torch.tensor([6.0]),
            "running_var": torch.tensor([4.0]),
        }
    )
    x = torch.tensor([[[[0.0, 1.0, 4.0]]]])  # 3x, less 6, divided by 2, times 2, plus 1
    with torch.inference_mode():
        plain = FusedConv2d(conv, norm, torch.float32, relu=False)(x)
        relu = FusedConv2d(conv, norm, torch.float32, relu=True)
        added = relu.add_(x, torch.tensor([[[[9.0, 1.0, 0.5]]]]))
    assert plain.flatten().tolist() == [-5.0, -2.0, 7.0]
    assert relu(x).flatten().tolist() == [0.0, 0.0, 7.0]
    assert added.flatten().tolist() == [4.0, 0.0, 7.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (1, 2)])
def test_a_fused_convolution_is_the_layers_one_by_one(stride, groups, dtype):
    conv, norm = conv_and_norm(stride, groups)
    x = torch.randn((2, 4, 9, 7))
    with torch.inference_mode():
        expected = norm(conv(x))
        fused = FusedConv2d(conv, norm, dtype, relu=False)
        without = FusedConv2d(conv, norm, dtype, relu=False, with_bias=False)
        into = torch.randn_like(expected).contiguous(memory_format=torch.channels_last).to(dtype)
        summed = (into.to(expected) + expected).relu()
        bias = fused.bias.view(1, 6, 1, 1).to(expected)
        torch.testing.assert_close(fused(x).to(expected), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(without(x) + bias, expected.to(dtype), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(fused.add_(x, into).to(expected), summed, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(into.to(expected), summed, rtol=1e-5, atol=1e-5)  # in place
        assert fused(x[:0]).shape == (0, *expected.shape[1:])


@pytest.mark.parametrize("relu", [False, True])
def test_a_fused_linear_layer(relu):
    layer, x = nn.Linear(5, 3), torch.randn((7, 5))
    fused = FusedLinear(layer.weight, layer.bias, torch.float32, relu=relu)
    with torch.inference_mode():
        expected = layer(x).relu() if relu else layer(x)
        torch.testing.assert_close(fused(x), expected)
        assert fused(x[:0]).shape == (0, 3)
    assert (fused.in_features, fused.out_features) == (5, 3)


@pytest.mark.parametrize("placement", ["original", "torchvision"])
def test_what_a_bottleneck_does_first_and_then_is_the_block(placement):
    """Both 1x1 convolutions on every cell, the cells that are read, what is left of the norms."""
    torch.manual_seed(0)
    net = create_backbone("resnet50", width=0.125, stride_placement=placement, num_classes=0)
    block = randomise_norms(net).eval().layer2[0].double()
    fused = fuse_blocks_(nn.Sequential(copy.deepcopy(block)), torch.float64)[0]
    x = torch.randn((2, 32, 10, 8), dtype=torch.float64)
    with torch.inference_mode():
        expected = block(x)
        for each in (block, fused):
            entry = each.entry()
            steps = (entry.main, entry.main_stride), (entry.shortcut, entry.shortcut_stride)
            y, shortcut = (
                way.finish(way.mix(x)[:, :, ::stride, ::stride].clone()) for way, stride in steps
            )
            assert [way.channels for way, _ in steps] == [y.shape[1], shortcut.shape[1]]
            torch.testing.assert_close(each.forward_rest(y, shortcut), expected)
        torch.testing.assert_close(fused(x.clone()), expected)


@pytest.mark.parametrize("name", ["resnet18", "plain18", "resnet50", "vgg16_bn", "vgg16"])
@pytest.mark.parametrize("sizes", [None, [(64, 96), (50, 70)]])
def test_maps_are_the_networks(name, sizes):
    torch.manual_seed(0)
    net = randomise_norms(create_backbone(name, num_classes=0)).eval().double()
    x = torch.randn((2, 3, 64, 96), dtype=torch.float64)
    if sizes is not None:
        x[1, :, 50:] = 0
        x[1, :, :, 70:] = 0
    stages = ("conv2", "conv3", "conv4", "conv5")
    with torch.inference_mode():
        expected = net.feature_maps(x, stages, sizes)
        found = fuse_network_(copy.deepcopy(net), torch.float64).feature_maps(x, stages, sizes)
    for stage in stages:
        torch.testing.assert_close(found[stage], expected[stage], rtol=1e-9, atol=1e-9)


def test_what_cannot_be_fused_is_said():
    conv, norm = conv_and_norm()
    with pytest.raises(FoldError, match=r"statistics of .* are not fixed"):
        FusedConv2d(conv, norm.train(), torch.float32, relu=False)
    conv.register_forward_hook(lambda *_: None)
    with pytest.raises(FoldError, match="has hooks"):
        FusedConv2d(conv, norm.eval(), torch.float32, relu=False)
    with pytest.raises(FoldError, match="no block of a ResNet"):
        fuse_blocks_(nn.Sequential(nn.Linear(2, 2)), torch.float32)
    with pytest.raises(FoldError, match="neither a ResNet nor a VGG"):
        fuse_network_(nn.Linear(2, 2), torch.float32)

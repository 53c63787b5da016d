from __future__ import annotations

import pytest
import torch
from torch import nn

from backbones import BACKBONES, FrozenBatchNorm2d, vgg16, vgg16_bn
from tests.backbones.nets import torchvision_net

NAMES = (
    "vgg16_bn",
    pytest.param("vgg16", marks=pytest.mark.slow),
    pytest.param("vgg19", marks=pytest.mark.slow),
    pytest.param("vgg19_bn", marks=pytest.mark.slow),
)


@pytest.mark.parametrize("name", NAMES)
def test_logits_and_state_agree_with_torchvision(name):
    theirs = torchvision_net(name, num_classes=10)
    ours = BACKBONES[name](num_classes=10).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = theirs(x)
        torch.testing.assert_close(
            ours(x), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item()
        )
        torch.testing.assert_close(
            ours.forward_features(x), theirs.features[:-1](x), rtol=1e-4, atol=1e-4
        )


@pytest.mark.slow
def test_gradients_agree_with_torchvision():
    """In eval mode, since the dropouts of the two draw apart; batch norm statistics are fixed
    then.
    """
    theirs = torchvision_net("vgg16_bn", num_classes=3)
    ours = vgg16_bn(num_classes=3).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 32, 32)
    for net in (theirs, ours):
        net(x).square().sum().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        scale = expected[name].grad.abs().max().item()
        torch.testing.assert_close(
            parameter.grad, expected[name].grad, rtol=1e-3, atol=1e-4 * scale + 1e-9
        )


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return vgg16(num_classes=5).eval()


def test_stages_end_before_their_pooling(net):
    maps = net.feature_maps(torch.randn(1, 3, 64, 48), stages=tuple(net.channels))
    assert net.strides == {"conv1": 1, "conv2": 2, "conv3": 4, "conv4": 8, "conv5": 16}
    for stage, found in maps.items():
        stride = net.strides[stage]
        assert found.shape == (1, net.channels[stage], 64 // stride, 48 // stride)


def test_fc6_and_fc7_are_within_reach(net):
    assert net.fc6.weight.shape == (4096, 512 * 49)
    assert net.fc7.weight.shape == (4096, 4096)
    assert net.get_classifier().out_features == 5
    x = torch.randn(1, 512, 14, 14)
    hidden = net.forward_head(x, pre_logits=True)
    assert hidden.shape == (1, net.num_features)
    torch.testing.assert_close(net.get_classifier()(hidden), net.forward_head(x))


def test_linear_layers_start_small(net):
    for layer in (net.fc6, net.fc7, net.get_classifier()):
        assert layer.weight[:64].std().item() == pytest.approx(0.01, rel=0.03)
        assert (layer.bias == 0).all()


def test_without_classifier_a_new_one_and_popping_the_head():
    net = vgg16(num_classes=0).eval()
    assert net.get_classifier() is None
    x = torch.randn(1, 3, 32, 32)
    hidden, last = net(x), net.forward_features(x)
    assert hidden.shape == (1, 4096)
    net.reset_classifier(3)
    assert net(x).shape == (1, 3)
    pooled = net.avgpool(net.features[-1](last)).flatten(1)
    head = net.pop_head()
    torch.testing.assert_close(head(pooled), hidden)
    torch.testing.assert_close(net.forward_features(x), last)
    assert not [name for name in net.state_dict() if name.startswith("classifier")]
    for ask in (net.pop_head, lambda: net(x), lambda: net.fc6, lambda: net.reset_classifier(3)):
        with pytest.raises(ValueError, match="were taken out"):
            ask()


def test_norms_of_vgg_bn():
    with torch.device("meta"):
        frozen = vgg16_bn(norm="frozen", num_classes=0)
    assert sum(isinstance(module, FrozenBatchNorm2d) for module in frozen.modules()) == 13
    with torch.device("meta"), pytest.raises(ValueError, match="unknown norm 'layer'"):
        vgg16_bn(norm="layer")


def test_freezing_conv1_and_conv2_as_faster_rcnn_does():
    with torch.device("meta"):
        net = vgg16_bn(num_classes=0, freeze_at=2).train()
    frozen = {name for name, parameter in net.named_parameters() if not parameter.requires_grad}
    assert frozen == {
        name
        for name, _ in net.named_parameters()
        if name.startswith("features.") and int(name.split(".")[1]) < 14
    }
    assert not net.features[1].training
    assert net.features[15].training


def test_too_small(net):
    with pytest.raises(ValueError, match="conv5 has a stride of 16"):
        net(torch.randn(1, 3, 15, 32))
    for size in ((16, 16), (31, 40), (40, 31)):
        with pytest.raises(ValueError, match="give images of at least 32x32 px"):
            net(torch.randn(1, 3, *size))
        assert net.forward_features(torch.randn(1, 3, *size)).shape[2:] == (
            size[0] // 16,
            size[1] // 16,
        )

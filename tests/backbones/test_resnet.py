from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from backbones import BACKBONES, FrozenBatchNorm2d, ResNet, create_backbone, list_backbones, resnet18, resnet50
from backbones.resnet import STAGES
from tests.backbones.nets import batch_norm, randomise_norms, torchvision_net

FAST = ("resnet18", "resnet50")
SLOW = tuple(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet34", "resnet101", "resnet152"))

# Table 1 with projections (shortcut B): learnable parameters at 1000 classes, entries of the state dict.
COUNTS = {
    "resnet18": (11_689_512, 122),
    "resnet34": (21_797_672, 218),
    "resnet50": (25_557_032, 320),
    "resnet101": (44_549_160, 626),
    "resnet152": (60_192_808, 932),
}
CHANNELS = {
    "resnet18": {"conv1": 64, "conv2": 64, "conv3": 128, "conv4": 256, "conv5": 512},
    "resnet50": {"conv1": 64, "conv2": 256, "conv3": 512, "conv4": 1024, "conv5": 2048},
}


@pytest.mark.parametrize("name", list(COUNTS))
def test_counts_of_parameters_and_of_state(name):
    with torch.device("meta"):
        net = BACKBONES[name]()
    assert sum(p.numel() for p in net.parameters()) == COUNTS[name][0]
    assert len(net.state_dict()) == COUNTS[name][1]


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_logits_and_state_agree_with_torchvision_both_ways(name):
    theirs = torchvision_net(name, num_classes=10)
    ours = BACKBONES[name](num_classes=10).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = theirs(x)
        assert expected.std() > 1e-3  # a dead network would agree with anything
        torch.testing.assert_close(ours(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())

    other = torchvision_net(name, num_classes=10)
    source = randomise_norms(BACKBONES[name](num_classes=10), seed=1).eval()
    other.load_state_dict(source.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(source(x), other(x), rtol=1e-4, atol=1e-4 * other(x).abs().max().item())


def test_training_step_agrees_with_torchvision():
    theirs = torchvision_net("resnet18", num_classes=10).double().train()
    ours = resnet18(num_classes=10).double().train()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    for net in (theirs, ours):
        F.cross_entropy(net(x), torch.tensor([0, 3, 3, 9])).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-8, atol=1e-10)
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, theirs.get_buffer(name))


def naive_features(state: dict[str, Tensor], net: ResNet, x: Tensor, depths: tuple[int, ...], *, stride_in_1x1: bool) -> dict[str, Tensor]:
    """A residual network written as functions of its state dict, in the order of the paper's figure 5."""

    def conv_bn(x: Tensor, conv: str, norm: str, stride: int) -> Tensor:
        weight = state[f"{conv}.weight"]
        return batch_norm(F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2), net.get_submodule(norm))

    x = conv_bn(x, "conv1", "bn1", 2).relu()
    found = {"conv1": x}
    x = F.max_pool2d(x, 3, 2, 1)
    for number, depth in enumerate(depths, start=1):
        for index in range(depth):
            name = f"layer{number}.{index}"
            stride = 2 if number > 1 and index == 0 else 1
            strides = (stride, 1, 1) if stride_in_1x1 else (1, stride, 1)
            shortcut = conv_bn(x, f"{name}.downsample.0", f"{name}.downsample.1", stride) if index == 0 else x
            for position, step in enumerate(strides, start=1):
                x = conv_bn(x, f"{name}.conv{position}", f"{name}.bn{position}", step)
                x = x.relu() if position < 3 else (x + shortcut).relu()
        found[f"conv{number + 1}"] = x
    return found


@pytest.mark.parametrize("placement", ["original", "torchvision"])
def test_stride_placement_against_a_functional_network(placement):
    net = randomise_norms(resnet50(stride_placement=placement, num_classes=0, norm="frozen")).double()
    x = torch.randn(1, 3, 65, 50, dtype=torch.float64)
    with torch.no_grad():
        found = net.features(x, stages=STAGES)
        expected = naive_features(net.state_dict(), net, x, (3, 4, 6, 3), stride_in_1x1=placement == "original")
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_placements_differ_in_bottlenecks_only():
    x = torch.randn(1, 3, 64, 64)
    for name, same in (("resnet18", True), ("resnet50", False)):
        original = BACKBONES[name](stride_placement="original", num_classes=0, norm="frozen")
        other = BACKBONES[name](stride_placement="torchvision", num_classes=0, norm="frozen")
        other.load_state_dict(original.state_dict())
        assert torch.allclose(original(x), other(x)) is same


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
@pytest.mark.parametrize("name", FAST)
def test_channels_and_strides_are_those_of_the_maps(name, norm):
    net = BACKBONES[name](norm=norm, num_classes=0).eval()
    assert net.channels == CHANNELS[name]
    assert net.strides == {"conv1": 2, "conv2": 4, "conv3": 8, "conv4": 16, "conv5": 32}
    with torch.no_grad():
        maps = net.features(torch.randn(2, 3, 64, 96), stages=STAGES)
    for stage, found in maps.items():
        stride = net.strides[stage]
        assert found.shape == (2, net.channels[stage], 64 // stride, 96 // stride)


def test_features_come_in_network_order_and_stop_at_the_last_one():
    net = resnet18(num_classes=0).eval()
    ran = []
    for number in range(1, 5):
        net.get_submodule(f"layer{number}").register_forward_hook(lambda module, *_: ran.append(module))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found = net.features(x, stages=("conv3", "conv1"))
        assert list(found) == ["conv1", "conv3"]
        assert ran == [net.layer1, net.layer2]
        assert list(net.features(x)) == ["conv4"]
        torch.testing.assert_close(found["conv1"], net.bn1(net.conv1(x)).relu())  # after its ReLU, before the pooling


def test_a_returned_map_is_not_changed_by_the_stages_after_it():
    net = resnet18(num_classes=0).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        together = net.features(x, stages=STAGES)
        for stage in STAGES:
            assert torch.equal(together[stage], net.features(x, stages=(stage,))[stage])


@pytest.mark.parametrize("size", [(1, 1), (5, 33)])
def test_small_images_and_no_images(size):
    net = resnet18(num_classes=7).eval()
    with torch.no_grad():
        assert net(torch.randn(2, 3, *size)).shape == (2, 7)
        assert net(torch.randn(0, 3, *size)).shape == (0, 7)


def test_input_that_does_not_fit():
    net = resnet18(in_channels=1, num_classes=2).eval()
    assert net(torch.randn(1, 1, 32, 32)).shape == (1, 2)
    with pytest.raises(ValueError, match=r"expected images \(N, 1, H, W\), got \(1, 3, 32, 32\)"):
        net(torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"expected images \(N, 1, H, W\), got \(1, 32, 32\)"):
        net(torch.randn(1, 32, 32))
    with pytest.raises(ValueError, match=r"at least 1x1 px, got \(1, 1, 0, 32\)"):
        net(torch.randn(1, 1, 0, 32))
    with pytest.raises(ValueError, match="no stage conv6, this network has conv1, conv2"):
        net.features(torch.randn(1, 1, 32, 32), stages=("conv4", "conv6"))
    with pytest.raises(ValueError, match="none asked for"):
        net.features(torch.randn(1, 1, 32, 32), stages=())


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("name", FAST)
def test_every_parameter_gets_a_gradient(name, norm):
    net = BACKBONES[name](norm=norm, num_classes=5).train()
    net(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert not [name for name, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()]


def test_convolutions_start_from_he_normal_fan_out():
    net = resnet50()
    for name, out_fan in (("conv1", 64 * 49), ("layer3.0.conv2", 256 * 9), ("layer4.0.conv3", 2048)):
        weight = net.get_submodule(name).weight
        expected = (2 / out_fan) ** 0.5
        assert weight.std().item() == pytest.approx(expected, rel=0.03)
        assert abs(weight.mean().item()) < 0.03 * expected
        assert weight.abs().max() > 3 * expected  # normal, not uniform


def test_create_backbone_passes_every_argument_on():
    net = create_backbone("resnet50", stride_placement="original", norm="frozen", in_channels=1, num_classes=4, freeze_at=2)
    assert net.layer2[0].conv1.stride == (2, 2)
    assert net.layer2[0].conv2.stride == (1, 1)
    assert isinstance(net.bn1, FrozenBatchNorm2d)
    assert net.conv1.in_channels == 1
    assert net.fc.out_features == 4
    assert net.frozen_stages == 2
    with pytest.raises(ValueError, match=r"no weights file nowhere\.pth"):
        create_backbone("resnet18", weights="nowhere.pth")


def test_names():
    assert list_backbones() == ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"]
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet-50', did you mean resnet50"):
        create_backbone("resnet-50")
    with pytest.raises(ValueError, match=r"unknown backbone 'vit', known: resnet18, resnet34"):
        create_backbone("vit")
    with pytest.raises(ValueError, match="unknown stride_placement 'caffe'"):
        create_backbone("resnet18", stride_placement="caffe")
    with pytest.raises(ValueError, match="unknown norm 'layer'"):
        create_backbone("resnet18", norm="layer")

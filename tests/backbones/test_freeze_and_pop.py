from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from backbones import ResNet, resnet18, resnet50
from backbones.resnet import STAGES
from tests.backbones.nets import randomise_norms


@pytest.mark.parametrize("up_to", [0, 1, 2, 5])
def test_freeze_stops_gradients_and_statistics_of_the_leading_stages(up_to):
    net = resnet18(num_classes=3, freeze_at=up_to).train()
    frozen = {"conv1.", "bn1."} if up_to else set()
    frozen |= {f"layer{stage - 1}." for stage in range(2, up_to + 1)}
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net(torch.randn(2, 3, 64, 64)).square().sum().backward()
    for name, parameter in net.named_parameters():
        is_frozen = name.startswith(tuple(frozen))
        assert parameter.requires_grad is not is_frozen
        assert (parameter.grad is None) is is_frozen
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, before[name]) is name.startswith(tuple(frozen))


def test_train_never_unfreezes_and_neither_does_a_smaller_freeze():
    net = resnet18(num_classes=0).freeze(3)
    net.freeze(1)
    outer = nn.Sequential(net)
    outer.train()
    assert net.training
    assert not any(
        module.training for part in (net.bn1, net.layer1, net.layer2) for module in part.modules()
    )
    assert all(module.training for part in (net.layer3, net.layer4) for module in part.modules())
    assert not net.layer2[0].conv1.weight.requires_grad
    outer.eval()
    assert not any(module.training for module in net.modules())


def saved_maps(net: ResNet, x: Tensor) -> list[tuple[int, ...]]:
    """The shapes of what a training forward keeps for the backward, one entry a storage."""
    kept = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net.train().feature_maps(x)
    return [tuple(tensor.shape) for tensor in kept.values()]


def test_frozen_stages_save_no_activations():
    x = torch.randn(1, 3, 128, 128)
    conv1_map, conv2_map = (1, 64, 64, 64), (1, 64, 32, 32)
    free = saved_maps(resnet18(num_classes=0), x)
    assert free.count(conv1_map) >= 2
    assert free.count(conv2_map) >= 5
    frozen = saved_maps(resnet18(num_classes=0, freeze_at=2), x)
    assert frozen.count(conv1_map) == 0
    assert frozen.count(conv2_map) == 1  # the input of conv3, which learns
    assert (
        saved_maps(resnet18(num_classes=0, freeze_at=4), x.requires_grad_()) == []
    )  # not even for an input that wants a gradient


@pytest.mark.parametrize("up_to", [-1, 6])
def test_freezing_stages_that_are_not_there(up_to):
    with pytest.raises(
        ValueError, match=f"cannot freeze {up_to} stages: this network has 5, conv1"
    ):
        resnet18(freeze_at=up_to)


def test_pop_stage_splits_the_network():
    net = randomise_norms(resnet50(norm="frozen"))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = net.feature_maps(x, stages=("conv5",))["conv5"]
        conv5 = net.pop_stage("conv5")
        assert torch.equal(conv5(net.feature_maps(x)["conv4"]), expected)
    assert isinstance(conv5, nn.Sequential)
    assert list(net.channels) == list(net.strides) == ["conv1", "conv2", "conv3", "conv4"]
    assert not [name for name in net.state_dict() if name.startswith(("layer4", "fc"))]
    for stage in (
        lambda: net(x),
        lambda: net.feature_maps(x, stages=("conv5",)),
        lambda: net.feature_maps(x, stages=("conv2", "conv5")),
    ):
        with pytest.raises(
            ValueError, match="no stage conv5, this network has conv1, conv2, conv3, conv4"
        ):
            stage()


def test_a_network_without_conv5_copies_and_freezes():
    net = resnet18(num_classes=0)
    net.pop_stage("conv5")
    twin = copy.deepcopy(net)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(
        twin.eval().feature_maps(x)["conv4"], net.eval().feature_maps(x)["conv4"]
    )
    net.pop_stage("conv4")
    assert "conv4" in twin.channels  # the copy is its own
    twin.load_state_dict(twin.state_dict())
    assert not twin.freeze(4).train().feature_maps(x)["conv4"].requires_grad
    with pytest.raises(ValueError, match="cannot freeze 4 stages"):
        net.freeze(4)


def test_pop_stage_takes_the_last_one_only():
    net = resnet18()
    with pytest.raises(
        ValueError, match="cannot take out conv4: the last stage of this network is conv5"
    ):
        net.pop_stage("conv4")
    for stage in reversed(STAGES[1:]):
        net.pop_stage(stage)
    with pytest.raises(ValueError, match="cannot take out conv1"):
        net.pop_stage("conv1")

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from backbones import plain_cifar, resnet_cifar
from tests.backbones.nets import naive_maps, randomise_norms


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({}, {"shortcut": "A"}),
        ({"shortcut_padding": "both"}, {"shortcut": "A", "zeros_before": 0.5}),
        ({"shortcut": "B"}, {"shortcut": "B"}),
        ({"shortcut": "C"}, {"shortcut": "C"}),
        ({"shortcut": "none"}, {"shortcut": "none"}),
    ],
)
def test_logits_against_a_functional_network(options, how):
    net = randomise_norms(resnet_cifar(20, **options)).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    maps = naive_maps(net, x, **how)
    torch.testing.assert_close(net.feature_maps(x, stages=tuple(maps)), maps, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        net(x),
        F.linear(maps["conv4"].mean((2, 3)), net.fc.weight, net.fc.bias),
        rtol=1e-9,
        atol=1e-9,
    )


def test_the_paddings_are_two_networks():
    ends, both = (resnet_cifar(8, shortcut_padding=side).eval() for side in ("end", "both"))
    both.load_state_dict(ends.state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(ends(x), both(x))
    assert ends.traits == {"shortcut": "A", "shortcut_padding": "end"}
    assert plain_cifar(8).traits == {"shortcut": "none"}
    assert resnet_cifar(8, shortcut="B").traits == {}


def test_plain_is_residual_without_its_shortcuts():
    plain, residual = plain_cifar(20).eval(), resnet_cifar(20).eval()
    plain.load_state_dict(residual.state_dict())
    x = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(plain(x), residual(x))
    torch.testing.assert_close(
        plain.feature_maps(x)["conv4"],
        naive_maps(residual, x, shortcut="none")["conv4"],
        rtol=1e-4,
        atol=1e-5,
    )


def test_channels_strides_and_sizes():
    net = resnet_cifar(20).eval()
    assert net.channels == {"conv1": 16, "conv2": 16, "conv3": 32, "conv4": 64}
    assert net.strides == {"conv1": 1, "conv2": 1, "conv3": 2, "conv4": 4}
    maps = net.feature_maps(torch.randn(1, 3, 32, 32), stages=tuple(net.channels))
    assert [tuple(found.shape[1:]) for found in maps.values()] == [
        (16, 32, 32),
        (16, 32, 32),
        (32, 16, 16),
        (64, 8, 8),
    ]
    assert [len(layer) for layer in (net.layer1, net.layer2, net.layer3)] == [3, 3, 3]
    assert net.input_spec.crop_side == 32


@pytest.mark.parametrize("depth", [2, 7, 18, 34, -4])
def test_a_depth_that_is_not_6n_plus_2(depth):
    with pytest.raises(
        ValueError,
        match=rf"no CIFAR network of {depth} layers: the depth is 6n \+ 2, such as 20, 32",
    ):
        resnet_cifar(depth)


def test_every_parameter_gets_a_gradient_and_frozen_stages_none():
    net = resnet_cifar(14, freeze_at=2).train()
    net(torch.randn(2, 3, 32, 32)).square().sum().backward()
    for name, parameter in net.named_parameters():
        frozen = name.startswith(("conv1", "bn1", "layer1"))
        assert (parameter.grad is None) is frozen, name


def test_group_norm_does_not_divide_16_channels():
    with pytest.raises(
        ValueError, match="norm 'group' has 32 groups, which do not divide 16 channels"
    ):
        resnet_cifar(20, norm="group")


@pytest.mark.slow
def test_1202_layers_train_in_little_memory():
    """One step at the paper's batch of 128 in a process of its own, whose peak memory is then
    known.

    glibc keeps freed blocks, at random up to three times of what is needed, unless told to give
    them back.
    """
    code = """
import resource, torch
from backbones import create_backbone
torch.manual_seed(0)
net = create_backbone("resnet1202").to(memory_format=torch.channels_last)
net.checkpoint_activations(("conv2", "conv3", "conv4"))
before = net.layer3[199].conv2.weight.detach().clone()
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
loss = torch.nn.functional.cross_entropy(net(torch.randn(128, 3, 32, 32)), torch.arange(128) % 10)
loss.backward()
optimizer.step()
assert loss.isfinite() and not torch.equal(before, net.layer3[199].conv2.weight)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert float(done.stdout) < 2

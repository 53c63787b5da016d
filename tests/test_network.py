from __future__ import annotations

import pytest
import torch
from torch import nn

from backbones import WeightsError, create_backbone
from detres.classification.config import LearningNetworkConfig
from detres.config import ConfigError, check
from detres.detection.config import BackboneConfig
from detres.network import NetworkConfig, build_network


def test_the_defaults_are_the_networks_own():
    assert NetworkConfig().model_dump() == {
        "name": "resnet50",
        "shortcut": None,
        "shortcut_padding": None,
        "stride_placement": None,
        "width": None,
        "pool1": None,
        "fc_width": None,
        "norm": None,
        "zero_init_residual": None,
        "weights": None,
    }


def test_a_network_that_learns_to_classify_has_the_same_defaults():
    assert LearningNetworkConfig().model_dump() == NetworkConfig().model_dump()


def test_the_detectors_network_has_the_papers_defaults():
    settings = BackboneConfig(weights="torchvision/resnet101.v1")
    assert settings.model_dump() == {
        "name": "resnet101",
        "shortcut": None,
        "shortcut_padding": None,
        "stride_placement": "original",
        "width": None,
        "pool1": None,
        "fc_width": None,
        "norm": "frozen",
        "zero_init_residual": None,
        "weights": "torchvision/resnet101.v1",
        "freeze_at": 2,
    }


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (LearningNetworkConfig, {"norm": "frozen"}, "norm: .* got 'frozen'"),
        (BackboneConfig, {"norm": "layer", "weights": "w.pth"}, "norm: .* got 'layer'"),
        (BackboneConfig, {"stride_placement": None, "weights": "w"}, "stride_placement: "),
        (BackboneConfig, {"norm": None, "weights": "w"}, "norm: resnet101 has one"),
        (BackboneConfig, {"name": "vgg16_bn", "norm": None, "weights": "w"}, "norm: vgg16_bn has"),
        (BackboneConfig, {}, "cannot be frozen"),
        (NetworkConfig, {"width": 0}, "width: "),
        (NetworkConfig, {"pool1": "ceil"}, "pool1: .* got 'ceil'"),
        (NetworkConfig, {"depth": 50}, "unknown key 'depth'"),
        (NetworkConfig, {"shortcut": "D"}, "shortcut: .* got 'D'"),
    ],
)
def test_what_a_wing_does_not_take(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        check(kind, settings, "tree")


def test_without_settings_it_is_the_network_of_the_name():
    with torch.device("meta"):
        net = build_network(NetworkConfig(), num_classes=None)
        expected = create_backbone("resnet50")
    assert net.traits == expected.traits
    shapes = {name: tensor.shape for name, tensor in expected.state_dict().items()}
    assert {name: tensor.shape for name, tensor in net.state_dict().items()} == shapes
    assert net.get_classifier().out_features == 1000


def test_every_setting_reaches_the_network():
    settings = NetworkConfig(
        name="resnet50", shortcut="C", stride_placement="original", norm="group"
    )
    with torch.device("meta"):
        net = build_network(settings, num_classes=3, freeze_at=1)
    assert net.get_classifier().out_features == 3
    assert net.get_submodule("layer1.1").downsample is not None  # C: projections everywhere
    assert net.get_submodule("layer2.0.conv1").stride == (2, 2)
    assert net.get_submodule("layer2.0.conv2").stride == (1, 1)
    assert isinstance(net.get_submodule("bn1"), nn.GroupNorm)
    assert not any(parameter.requires_grad for parameter in net.conv1.parameters())
    assert all(parameter.requires_grad for parameter in net.layer1.parameters())
    half = build_network(NetworkConfig(width=0.5, pool1="caffe"), num_classes=0)
    assert (half.channels["conv5"], half.get_submodule("maxpool").ceil_mode) == (1024, True)
    vgg = build_network(NetworkConfig(name="vgg16", fc_width=8), num_classes=0)
    assert vgg.num_features == 8
    quiet = build_network(NetworkConfig(name="resnet18", zero_init_residual=True), num_classes=0)
    assert quiet.get_submodule("layer1.0.bn2").weight.abs().max() == 0
    usual = build_network(NetworkConfig(name="resnet18"), num_classes=0)
    assert usual.get_submodule("layer1.0.bn2").weight.min() == 1


def test_the_padding_of_parameter_free_shortcuts_reaches_the_network():
    x = torch.ones(1, 16, 4, 4)
    for padding, occupied in (("end", slice(0, 16)), ("both", slice(8, 24))):
        settings = NetworkConfig(name="resnet20", shortcut="A", shortcut_padding=padding)
        net = build_network(settings, num_classes=0)
        found = net.get_submodule("layer2.0").downsample(x)[0, :, 0, 0]
        expected = torch.zeros(32)
        expected[occupied] = 1
        assert torch.equal(found, expected)


def test_the_weights_are_those_that_are_given_and_not_of_the_settings(tmp_path):
    donor = create_backbone("resnet20")
    torch.save(donor.state_dict(), tmp_path / "w.pth")
    settings = NetworkConfig(name="resnet20", weights=str(tmp_path / "gone.pth"))
    net = build_network(settings, num_classes=10)
    assert net.load_report is None
    assert not torch.equal(net.conv1.weight, donor.conv1.weight)
    loaded = build_network(settings, num_classes=10, weights=tmp_path / "w.pth")
    assert torch.equal(loaded.conv1.weight, donor.conv1.weight)
    with pytest.raises(WeightsError, match=r"gone\.pth"):
        build_network(settings, num_classes=10, weights=settings.weights)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "resnet19"}, "unknown backbone 'resnet19', did you mean"),
        ({"name": "x" * 9999}, "unknown backbone 'xxx.{50,60}, known: plain18"),
        ({"name": "plain18", "shortcut": "B"}, "plain18 has no shortcut"),
    ],
)
def test_a_network_that_is_not_there(settings, message):
    with pytest.raises(ValueError, match=message):
        build_network(NetworkConfig(**settings), num_classes=10)

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from backbones import (
    BACKBONES,
    FrozenBatchNorm2d,
    WeightsError,
    create_backbone,
    list_backbones,
    resnet18,
    resnet50,
    save_weights,
)
from backbones.resnet import STAGES
from tests.backbones.nets import naive_maps, randomise_norms, torchvision_net

FAST = ("resnet18", "resnet50")
SLOW = tuple(
    pytest.param(name, marks=pytest.mark.slow) for name in ("resnet34", "resnet101", "resnet152")
)

STATE_ENTRIES = {
    "resnet18": 122,
    "resnet34": 218,
    "resnet50": 320,
    "resnet101": 626,
    "resnet152": 932,
}
CHANNELS = {
    "resnet18": {"conv1": 64, "conv2": 64, "conv3": 128, "conv4": 256, "conv5": 512},
    "resnet50": {"conv1": 64, "conv2": 256, "conv3": 512, "conv4": 1024, "conv5": 2048},
}


@pytest.mark.parametrize("name", list(STATE_ENTRIES))
def test_entries_of_the_state_dict(name):
    with torch.device("meta"):
        assert len(BACKBONES[name]().state_dict()) == STATE_ENTRIES[name]


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_logits_and_state_agree_with_torchvision_both_ways(name):
    theirs = torchvision_net(name, num_classes=10)
    ours = BACKBONES[name](num_classes=10).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = theirs(x)
        assert expected.std() > 1e-3  # a dead network would agree with anything
        torch.testing.assert_close(
            ours(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item()
        )

    other = torchvision_net(name, num_classes=10)
    source = randomise_norms(BACKBONES[name](num_classes=10), seed=1).eval()
    other.load_state_dict(source.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(
            source(x), other(x), rtol=1e-4, atol=1e-4 * other(x).abs().max().item()
        )


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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet50", {"stride_placement": "original"}),
        ("resnet50", {"stride_placement": "torchvision"}),
        ("resnet18", {"shortcut": "A"}),
        ("resnet18", {"shortcut": "C"}),
        ("resnet50", {"shortcut": "A"}),
        ("resnet50", {"shortcut": "C", "stride_placement": "original"}),
        ("plain18", {}),
        ("plain34", {}),
        ("resnet34", {"shortcut": "C"}),
    ],
)
def test_maps_and_gradients_against_a_functional_network(name, options):
    net = randomise_norms(BACKBONES[name](num_classes=0, norm="frozen", **options)).double()
    x = torch.randn(1, 3, 65, 50, dtype=torch.float64, requires_grad=True)
    how = (
        {"shortcut": "none"}
        if name.startswith("plain")
        else {"shortcut": options.get("shortcut", "B")}
    )
    found = net.feature_maps(x, stages=STAGES)
    expected = naive_maps(
        net, x, stride_in_1x1=options.get("stride_placement") == "original", **how
    )
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    cotangent = torch.randn_like(found["conv5"])
    ours, theirs = (
        torch.autograd.grad(maps["conv5"], x, cotangent)[0] for maps in (found, expected)
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8 * theirs.abs().max().item())


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
        maps = net.feature_maps(torch.randn(2, 3, 64, 96), stages=STAGES)
    for stage, found in maps.items():
        stride = net.strides[stage]
        assert found.shape == (2, net.channels[stage], 64 // stride, 96 // stride)


def test_features_come_in_network_order_and_stop_at_the_last_one():
    net = resnet18(num_classes=0).eval()
    ran = []
    for number in range(1, 5):
        net.get_submodule(f"layer{number}").register_forward_hook(
            lambda module, *_: ran.append(module)
        )
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found = net.feature_maps(x, stages=("conv3", "conv1"))
        assert list(found) == ["conv1", "conv3"]
        assert ran == [net.layer1, net.layer2]
        assert list(net.feature_maps(x)) == ["conv4"]
        torch.testing.assert_close(
            found["conv1"], net.bn1(net.conv1(x)).relu()
        )  # after its ReLU, before the pooling


def test_a_returned_map_is_not_changed_by_the_stages_after_it():
    net = resnet18(num_classes=0).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        together = net.feature_maps(x, stages=STAGES)
        for stage in STAGES:
            assert torch.equal(together[stage], net.feature_maps(x, stages=(stage,))[stage])


def test_the_smallest_images_and_no_images():
    net = resnet18(num_classes=7).eval()
    with torch.no_grad():
        assert net(torch.randn(2, 3, 32, 33)).shape == (2, 7)
        assert net(torch.randn(0, 3, 32, 32)).shape == (0, 7)
        assert net.feature_maps(torch.randn(1, 3, 4, 5), stages=("conv2",))["conv2"].shape == (
            1,
            64,
            1,
            2,
        )


def test_input_that_does_not_fit():
    net = resnet18(in_channels=1, num_classes=2).eval()
    assert net(torch.randn(1, 1, 32, 32)).shape == (1, 2)
    with pytest.raises(ValueError, match=r"expected images \(N, 1, H, W\), got \(1, 3, 32, 32\)"):
        net(torch.randn(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"expected images \(N, 1, H, W\), got \(1, 32, 32\)"):
        net(torch.randn(1, 32, 32))
    with pytest.raises(
        ValueError,
        match=r"images \(1, 1, 64, 31\) are too small: conv5 has a stride of 32, give at least "
        r"32x32 px",
    ):
        net(torch.randn(1, 1, 64, 31))
    with pytest.raises(ValueError, match="conv2 has a stride of 4"):
        net.feature_maps(torch.randn(1, 1, 0, 32), stages=("conv2",))
    with pytest.raises(ValueError, match="no stage conv6, this network has conv1, conv2"):
        net.feature_maps(torch.randn(1, 1, 32, 32), stages=("conv4", "conv6"))
    with pytest.raises(ValueError, match="none asked for"):
        net.feature_maps(torch.randn(1, 1, 32, 32), stages=())


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("name", FAST)
def test_every_parameter_gets_a_gradient(name, norm):
    net = BACKBONES[name](norm=norm, num_classes=5).train()
    net(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert not [
        name
        for name, parameter in net.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]


def test_convolutions_start_from_he_normal_fan_out():
    net = resnet50()
    for name, out_fan in (
        ("conv1", 64 * 49),
        ("layer3.0.conv2", 256 * 9),
        ("layer4.0.conv3", 2048),
    ):
        weight = net.get_submodule(name).weight
        expected = (2 / out_fan) ** 0.5
        assert weight.std().item() == pytest.approx(expected, rel=0.03)
        assert abs(weight.mean().item()) < 0.03 * expected
        assert weight.abs().max() > 3 * expected  # normal, not uniform


def test_zero_init_residual_starts_every_block_as_its_shortcut():
    net = resnet50(zero_init_residual=True, shortcut="A", num_classes=0)
    assert not any(
        block.bn3.weight.any()
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4)
        for block in layer
    )
    x = torch.randn(2, 64, 16, 16).relu()
    out = net.layer1(x)
    torch.testing.assert_close(out, torch.cat((x, torch.zeros(2, 192, 16, 16)), 1))
    assert resnet50().layer1[0].bn3.weight.all()  # the paper has none, so it is off
    with pytest.raises(ValueError, match="zero_init_residual needs a norm that learns"):
        resnet18(zero_init_residual=True, norm="frozen")
    with pytest.raises(ValueError, match="a plain net would give nothing but zeros"):
        resnet18(zero_init_residual=True, shortcut="none")


def test_create_backbone_passes_every_argument_on():
    net = create_backbone(
        "resnet50",
        stride_placement="original",
        norm="frozen",
        in_channels=1,
        num_classes=4,
        freeze_at=2,
    )
    assert net.layer2[0].conv1.stride == (2, 2)
    assert net.layer2[0].conv2.stride == (1, 1)
    assert isinstance(net.bn1, FrozenBatchNorm2d)
    assert net.conv1.in_channels == 1
    assert net.fc.out_features == 4
    assert net.frozen_stages == 2
    with pytest.raises(ValueError, match=r"no weights file nowhere\.pth"):
        create_backbone("resnet18", weights="nowhere.pth")


def test_names():
    assert list_backbones("resnet5") == ["resnet50", "resnet56"]
    assert {"resnet18", "plain34", "vgg16_bn", "resnet1202", "plain110"} < set(list_backbones())
    with pytest.raises(
        ValueError,
        match=r"vgg16 has no shortcut, norm; it takes fc_width, in_channels, num_classes, freeze_at",
    ):
        create_backbone("vgg16", shortcut="A", norm="batch")
    with pytest.raises(ValueError, match="unknown shortcut 'D', expected A, B, C or none"):
        create_backbone("resnet18", shortcut="D")
    with pytest.raises(ValueError, match="no plain net of bottlenecks"):
        create_backbone("resnet50", shortcut="none")
    with pytest.raises(ValueError, match=r"unknown backbone 'resnet-50', did you mean resnet50"):
        create_backbone("resnet-50")
    with pytest.raises(
        ValueError, match=r"unknown backbone 'vit', known: plain18, plain34, resnet18"
    ):
        create_backbone("vit")
    with pytest.raises(ValueError, match="unknown stride_placement 'caffe'"):
        create_backbone("resnet18", stride_placement="caffe")
    with pytest.raises(ValueError, match="unknown norm 'layer'"):
        create_backbone("resnet18", norm="layer")


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("width", [0.5, 1.5])
def test_another_width_is_the_same_network_with_other_channels(name, width):
    net = randomise_norms(create_backbone(name, width=width, num_classes=0)).eval()
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found, expected = net.feature_maps(x, STAGES), naive_maps(net, x)
    assert {stage: found[stage].shape[1] for stage in STAGES} == {
        stage: channels if stage == "conv1" else channels * width
        for stage, channels in CHANNELS[name].items()
    }
    for stage in STAGES:
        torch.testing.assert_close(found[stage], expected[stage], rtol=1e-4, atol=1e-4)


def test_pool1_of_caffe_by_hand():
    """Without padding, rounded up: windows of 3 at 0, 2, 4, ..., the last one cut at the border."""
    net = resnet18(pool1="caffe", num_classes=0)
    rows = torch.arange(8.0).view(1, 1, 8, 1)
    assert net.maxpool(rows.expand(1, 1, 8, 3))[0, 0].flatten().tolist() == [2, 4, 6, 7]
    assert net.maxpool(rows[:, :, :7].expand(1, 1, 7, 3))[0, 0].flatten().tolist() == [2, 4, 6]
    torch_rows = resnet18(num_classes=0).maxpool(rows.expand(1, 1, 8, 3))
    assert torch_rows[0, 0, :, 0].tolist() == [1, 3, 5, 7]


@pytest.mark.parametrize("side", [*range(32, 100, 3), 224, 225, 600, 601, 602, 603])
def test_the_cells_of_a_map_are_known_before_it_is_made(side):
    x = torch.empty((1, 3, side, 64), device="meta")
    for pool1 in ("torch", "caffe"):
        with torch.device("meta"):
            net = resnet18(num_classes=0, pool1=pool1)
        for stage, found in net.feature_maps(x, STAGES).items():
            assert tuple(found.shape[2:]) == net.map_size(stage, (side, 64))


def test_weights_of_the_other_pooling_are_refused(tmp_path):
    save_weights(resnet18(pool1="caffe"), tmp_path / "caffe.safetensors")
    with pytest.raises(WeightsError, match="Build it with pool1='caffe'") as error:
        resnet18(weights=tmp_path / "caffe.safetensors")
    assert error.value.settings == {"pool1": "caffe"}
    with pytest.raises(WeightsError, match="Build it with pool1='torch'"):
        resnet18(pool1="caffe", weights="torchvision/resnet18.v1")
    with pytest.raises(ValueError, match="unknown pool1 'none', expected torch or caffe"):
        resnet18(pool1="none")

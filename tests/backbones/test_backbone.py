"""What every network can do, over networks of every family."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.feature_extraction import create_feature_extractor

from backbones import Backbone, InputSpec, create_backbone, resnet18, resnet_cifar
from backbones.backbone import _StatisticsHeld
from backbones.norm import SyncBatchNorm2d
from tests.backbones.nets import randomise_norms, torchvision_net

FAMILIES = [("resnet18", {}), ("plain18", {}), ("resnet20", {}), ("vgg16_bn", {"num_classes": 0})]


@pytest.fixture(scope="module", params=FAMILIES, ids=[name for name, _ in FAMILIES])
def net(request) -> Backbone:
    name, options = request.param
    return randomise_norms(create_backbone(name, **{"num_classes": 10, **options})).eval()


def images(number: int = 2) -> torch.Tensor:
    return torch.randn(number, 3, 32, 64)


def test_forward_is_features_then_head(net):
    x = images()
    with torch.no_grad():
        last = net.forward_features(x)
        assert last.shape[1] == net.channels[net.last_stage]
        assert torch.equal(net.forward_head(last), net(x))
        hidden = net.forward_head(last, pre_logits=True)
        assert hidden.shape == (2, net.num_features)
        if net.get_classifier() is not None:
            assert torch.equal(net.get_classifier()(hidden), net(x))


def test_feature_info_is_what_the_maps_are(net):
    x = images()
    maps = net.feature_maps(x, stages=tuple(net.channels))
    seen = {}
    twin = copy.deepcopy(net)
    for record in twin.feature_info:
        module = twin.get_submodule(record["module"])
        module.register_forward_hook(
            lambda _module, _inputs, output, stage=record["stage"]: seen.setdefault(
                stage, output.clone()
            )
        )
    twin(x)
    for record, (stage, found) in zip(net.feature_info, maps.items(), strict=True):
        assert (record["stage"], record["num_chs"], record["reduction"]) == (
            stage,
            found.shape[1],
            64 // found.shape[3],
        )
        torch.testing.assert_close(seen[stage], found)


def test_copies_channels_last_and_bfloat16_give_the_same(net):
    x = images()
    twin = copy.deepcopy(net)
    with torch.no_grad():
        expected = net(x)
        scale = expected.abs().max().item()
        assert torch.equal(twin(x), expected)
        last = twin.to(memory_format=torch.channels_last)(
            x.contiguous(memory_format=torch.channels_last)
        )
        torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4 * scale)
        half = twin.to(torch.bfloat16)(x.bfloat16())
        assert half.dtype == torch.bfloat16
        assert (half.float() - expected).abs().max() < 0.1 * scale
    assert twin.channels is not net.channels


@pytest.mark.parametrize("name", ["resnet18", "resnet20", "plain20"])
def test_reset_classifier(name):
    net = create_backbone(name, num_classes=0).eval()
    x = torch.randn(1, 3, 32, 32)
    assert net.get_classifier() is None
    assert net(x).shape == (1, net.num_features)
    net.reset_classifier(7)
    assert net(x).shape == (1, 7)
    assert net.get_classifier() is net.fc
    net.reset_classifier(0)
    assert torch.equal(net(x), net.forward_head(net.forward_features(x), pre_logits=True))


# ---- activation checkpointing ----


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet20", pytest.param("vgg16_bn", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_checkpointing_changes_neither_outputs_gradients_nor_statistics(name, norm):
    plain = create_backbone(name, num_classes=0, norm=norm).train()
    checkpointed = copy.deepcopy(plain)
    assert checkpointed.checkpoint_activations(tuple(plain.channels)) is checkpointed
    x = torch.randn(2, 3, 32, 32)
    maps = [net.forward_features(x) for net in (plain, checkpointed)]
    assert torch.equal(*maps)
    for found in maps:
        found.square().sum().backward()
    for (key, ours), theirs in zip(
        checkpointed.named_parameters(), plain.parameters(), strict=True
    ):
        assert (ours.grad is None) is (theirs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=key)
    for ours, theirs in zip(checkpointed.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert all(
        norm.momentum == 0.1 for norm in checkpointed.modules() if isinstance(norm, nn.BatchNorm2d)
    )


def test_a_checkpointed_graph_can_be_walked_twice():
    plain = resnet_cifar(8).train()
    checkpointed = copy.deepcopy(plain).checkpoint_activations(("conv2", "conv3"))
    gradients = []
    for net in (plain, checkpointed):
        x = torch.ones(2, 3, 32, 32, requires_grad=True)
        (first,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
        first.square().sum().backward()
        gradients.append(net.layer1[0].conv1.weight.grad)
    torch.testing.assert_close(*gradients)
    for ours, theirs in zip(checkpointed.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_checkpointing_holds_the_statistics_of_synchronised_norms():
    """In eval mode: on a CPU they cannot train; what the repetition does to the norms is the
    same.
    """
    norm = nn.SyncBatchNorm(4)
    counter = norm.num_batches_tracked
    with _StatisticsHeld([norm]):
        assert norm.momentum == 0.0
        norm.num_batches_tracked.add_(1)
    assert norm.momentum == 0.1
    assert norm.num_batches_tracked is counter
    assert counter == 0


def test_checkpointing_keeps_fewer_activations():
    def kept(net: nn.Module) -> int:
        storages = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = net.train()(torch.randn(4, 3, 32, 32))
        del result
        return sum(storages.values())

    weights = sum(parameter.nbytes for parameter in resnet_cifar(32).parameters())
    plain = kept(resnet_cifar(32)) - weights
    checkpointed = kept(resnet_cifar(32).checkpoint_activations(("conv2", "conv3", "conv4")))
    assert checkpointed < plain / 2.5


def test_checkpointing_a_stage_that_is_not_there():
    with pytest.raises(
        ValueError, match="no stage layer1, this network has conv1, conv2, conv3, conv4"
    ):
        resnet_cifar(8).checkpoint_activations(("layer1",))


# ---- other people's tools ----


def test_a_drop_in_for_torchvisions_fpn_and_for_hooks():
    theirs = torchvision_net("resnet18")
    ours = resnet18().eval()
    ours.load_state_dict(theirs.state_dict())
    layers = {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}
    expected, found = (
        BackboneWithFPN(net, layers, [64, 128, 256, 512], 32).eval() for net in (theirs, ours)
    )
    found.fpn.load_state_dict(expected.fpn.state_dict())
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for level, tensor in expected(x).items():
            torch.testing.assert_close(found(x)[level], tensor, rtol=1e-4, atol=1e-4)
        seen = []
        ours.layer4.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        ours(x)
        assert torch.equal(seen[0], ours.forward_features(x))


def test_the_children_run_in_torchvisions_order():
    """Cutting layers off the end of list(net.children()) is a common idiom."""
    theirs = torchvision_net("resnet18")
    ours = resnet18().eval()
    ours.load_state_dict(theirs.state_dict())
    assert [name for name, _ in ours.named_children()] == [
        name for name, _ in theirs.named_children()
    ]
    x = torch.randn(1, 3, 64, 64)
    for cut in (-1, -2, -3):
        expected, found = (nn.Sequential(*list(net.children())[:cut])(x) for net in (theirs, ours))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_torchvisions_feature_extractor():
    net = resnet18(num_classes=0).eval()
    x = torch.randn(1, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # that train and eval graphs differ, as they do for any batch norm
        extractor = create_feature_extractor(net, {"layer3": "found"})
    torch.testing.assert_close(extractor(x)["found"], net.feature_maps(x)["conv4"])


def test_frozen_stages_stay_frozen_wherever_they_are_moved():
    net = resnet18(num_classes=0, freeze_at=5)
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    twin = copy.deepcopy(net)
    fpn = BackboneWithFPN(net, {"layer2": "0", "layer4": "1"}, [128, 512], 16).train()
    fpn(torch.randn(2, 3, 64, 64))
    twin.pop_stage("conv5").train()(torch.randn(2, 256, 4, 4))
    copy.deepcopy(fpn).train()(torch.randn(2, 3, 64, 64))
    for one in (net, twin):
        assert all(torch.equal(buffer, before[name]) for name, buffer in one.named_buffers())


def test_layers_that_were_wrapped_or_hooked_are_called_as_they_are():
    class Doubled(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    net = randomise_norms(resnet_cifar(8, norm="frozen")).eval()
    x = torch.randn(1, 3, 32, 32)
    seen = []
    net.bn1.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    expected = net.bn1(2 * net.conv1(x)).relu()
    doubled = Doubled(3, 16, 3, padding=1, bias=False)
    doubled.load_state_dict(net.conv1.state_dict())
    net.conv1 = doubled
    torch.testing.assert_close(net.feature_maps(x, ("conv1",))["conv1"], expected)
    assert len(seen) == 2
    reflecting = nn.Conv2d(3, 16, 3, padding=1, bias=False, padding_mode="reflect")
    net.conv1 = reflecting
    torch.testing.assert_close(
        net.feature_maps(x, ("conv1",))["conv1"], net.bn1(reflecting(x)).relu()
    )


def test_the_graph_is_captured_whole():
    """By torch.compile, of a training step with frozen stages; the default backend, minutes on a
    CPU, is not needed for that.
    """
    net = randomise_norms(resnet18(num_classes=3, freeze_at=2)).train()
    twin = copy.deepcopy(net)
    x = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    for run in (compiled, twin):
        run(x).square().sum().backward()
    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        assert (ours.grad is None) is (theirs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)


def test_export_with_a_free_batch_size(net):
    exported = torch.export.export(
        net, (images(),), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},)
    )
    x = images(3)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x), net(x))


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        net = resnet_cifar(8, freeze_at=1).train()
        twin = copy.deepcopy(net)
        x = torch.randn(2, 3, 32, 32)
        for run in (nn.parallel.DistributedDataParallel(net), twin):
            run(x).square().sum().backward()
        for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
            assert ours.grad is theirs.grad is None or torch.allclose(ours.grad, theirs.grad)
    finally:
        torch.distributed.destroy_process_group()


def test_sync_batch_norm_is_batch_norm_for_one_process():
    net = randomise_norms(create_backbone("resnet20", norm="sync")).eval()
    assert isinstance(net.bn1, SyncBatchNorm2d)
    plain = create_backbone("resnet20").eval()
    plain.load_state_dict(net.state_dict())
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(net(x), plain(x))


# ---- input ----


def test_input_that_is_no_batch_of_colour_images():
    for shape in ((3, 8, 8), (1, 1, 8, 8)):
        with pytest.raises(ValueError, match=r"expected RGB images \(N, 3, H, W\), got"):
            InputSpec().normalize(torch.zeros(shape))


def test_arguments_that_make_no_sense():
    net = resnet_cifar(8)
    with pytest.raises(ValueError, match=r"stages is a sequence of names, such as \('conv4',\)"):
        net.feature_maps(torch.zeros(1, 3, 32, 32), stages="conv4")
    with pytest.raises(TypeError, match=r"whole number of stages to freeze, got 2\.0"):
        net.freeze(2.0)
    assert net.frozen_stages == 0
    with pytest.raises(ValueError, match="num_classes is -1"):
        net.reset_classifier(-1)
    popped = resnet18(num_classes=0)
    popped.pop_stage("conv5")
    with pytest.raises(ValueError, match="conv5, which a classifier reads, was taken out"):
        popped.reset_classifier(3)


def test_a_new_classifier_is_of_the_networks_type():
    net = resnet_cifar(8).to(torch.bfloat16).eval()
    net.reset_classifier(3)
    assert net(torch.zeros(1, 3, 32, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_input_spec_normalises_as_torchvision_does(dtype):
    pixels = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    transform = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(
        InputSpec().normalize(pixels.to(dtype)), transform(pixels / 255), rtol=1e-5, atol=1e-5
    )


def test_input_spec_of_caffe_turns_the_channels_round():
    spec = InputSpec("bgr", (1.0, 2.0, 3.0), (1.0, 1.0, 2.0))
    red_green_blue = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
    assert spec.normalize(red_green_blue).flatten().tolist() == [29.0, 18.0, 3.5]
    assert spec.normalize(torch.zeros(0, 3, 2, 2, dtype=torch.uint8)).shape == (0, 3, 2, 2)
    assert InputSpec.from_json(spec.to_json()) == spec

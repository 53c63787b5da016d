"""What every network can do, over networks of every family."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from backbones import Backbone, InputSpec, create_backbone, resnet18, resnet_cifar
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
    maps = net.feature_maps(images(), stages=tuple(net.channels))
    for record, (stage, found) in zip(net.feature_info, maps.items(), strict=True):
        assert record == {"module": stage, "num_chs": found.shape[1], "reduction": 64 // found.shape[3]}


def test_copies_channels_last_and_bfloat16_give_the_same(net):
    x = images()
    twin = copy.deepcopy(net)
    with torch.no_grad():
        expected = net(x)
        scale = expected.abs().max().item()
        assert torch.equal(twin(x), expected)
        last = twin.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
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


@pytest.mark.parametrize("name", ["resnet18", "resnet20", pytest.param("vgg16_bn", marks=pytest.mark.slow)])
def test_checkpointing_changes_neither_outputs_gradients_nor_statistics(name):
    plain = create_backbone(name, num_classes=0).train()
    checkpointed = copy.deepcopy(plain)
    assert checkpointed.checkpoint_activations(tuple(plain.channels)) is checkpointed
    x = torch.randn(2, 3, 32, 32)
    maps = [net.forward_features(x) for net in (plain, checkpointed)]
    assert torch.equal(*maps)
    for found in maps:
        found.square().sum().backward()
    for (key, ours), theirs in zip(checkpointed.named_parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) is (theirs.grad is None)
        if ours.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=key)
    for ours, theirs in zip(checkpointed.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert all(norm.momentum == 0.1 for norm in checkpointed.modules() if isinstance(norm, nn.BatchNorm2d))


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
    with pytest.raises(ValueError, match="no stage layer1, this network has conv1, conv2, conv3, conv4"):
        resnet_cifar(8).checkpoint_activations(("layer1",))


# ---- other people's tools ----


def test_a_drop_in_for_torchvisions_fpn_and_for_hooks():
    theirs = torchvision_net("resnet18")
    ours = resnet18().eval()
    ours.load_state_dict(theirs.state_dict())
    layers = {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}
    expected, found = (BackboneWithFPN(net, layers, [64, 128, 256, 512], 32).eval() for net in (theirs, ours))
    found.fpn.load_state_dict(expected.fpn.state_dict())
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for level, tensor in expected(x).items():
            torch.testing.assert_close(found(x)[level], tensor, rtol=1e-4, atol=1e-4)
        seen = []
        ours.layer4.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        ours(x)
        assert torch.equal(seen[0], ours.forward_features(x))


def test_the_graph_is_captured_whole():
    """By torch.compile, of a training step with frozen stages; the default backend, minutes on a CPU, is not needed for that."""
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
    exported = torch.export.export(net, (images(),), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},))
    x = images(3)
    with torch.no_grad():
        torch.testing.assert_close(exported.module()(x), net(x))


def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
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
    assert isinstance(net.bn1, nn.SyncBatchNorm)
    plain = create_backbone("resnet20").eval()
    plain.load_state_dict(net.state_dict())
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(net(x), plain(x))


# ---- input ----


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_input_spec_normalises_as_torchvision_does(dtype):
    pixels = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    transform = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    torch.testing.assert_close(InputSpec().normalize(pixels.to(dtype)), transform(pixels / 255), rtol=1e-5, atol=1e-5)


def test_input_spec_of_caffe_turns_the_channels_round():
    spec = InputSpec("bgr", (1.0, 2.0, 3.0), (1.0, 1.0, 2.0))
    red_green_blue = torch.tensor([10, 20, 30], dtype=torch.uint8).view(1, 3, 1, 1)
    assert spec.normalize(red_green_blue).flatten().tolist() == [29.0, 18.0, 3.5]
    assert spec.normalize(torch.zeros(0, 3, 2, 2, dtype=torch.uint8)).shape == (0, 3, 2, 2)
    assert InputSpec.from_json(spec.to_json()) == spec

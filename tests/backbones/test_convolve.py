"""How convolutions are called: in tiles or as one product where that is faster, unnoticed."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from backbones import create_backbone
from backbones.convolve import call
from backbones.fused import FusedConv2d
from backbones.onednn import has_onednn
from backbones.winograd import Tiles, tiles_of
from tests.backbones.nets import LOST, REGIONS, lost, needs_onednn, torchs


class _Count:
    """How often tiles were found."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
        self.found = 0

        def counted(*given: object, **named: object) -> Tiles | None:
            tiles = tiles_of(*given, **named)
            self.found += tiles is not None
            return tiles

        monkeypatch.setattr(f"backbones.{module}.tiles_of", counted)


@needs_onednn
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_layer_is_called_in_tiles(
    monkeypatch: pytest.MonkeyPatch, memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    count = _Count(monkeypatch, "convolve")
    conv = nn.Conv2d(512, 512, 3, padding=1)
    x = torch.randn(REGIONS).to(memory_format=memory_format)
    with torch.inference_mode():
        assert lost(call(conv, x), torchs(conv, x)) < LOST[torch.float32]
    assert count.found == 1
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(conv, x)
    assert counter.get_total_flops() == 2 * 100 * 49 * 9 * 512 * 512  # as the layer is written
    assert count.found == 1


@needs_onednn
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("larger_first", [False, True])
def test_the_fused_layer_is_the_same_in_tiles(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, larger_first: bool
) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(512, 512, 3, padding=1, bias=False), nn.BatchNorm2d(512).eval()
    norm.running_mean.normal_()
    layer = FusedConv2d(conv, norm, dtype, relu=True)
    if not layer.fused:
        pytest.skip("oneDNN has no operators for this precision here")
    count = _Count(monkeypatch, "fused")
    shapes = [(3, 7, 7), (40, 7, 7), (1, 40, 32)]
    with torch.inference_mode():
        for n, *cells in shapes if larger_first else shapes[::-1]:
            x = torch.randn(n, 512, *cells)
            into = torch.randn(n, 512, *cells).to(memory_format=torch.channels_last)
            expected = norm(conv(x))
            assert lost(layer(x), expected.relu()) < LOST[dtype]
            added = into.to(dtype, copy=True)
            assert layer.add_(x, added).data_ptr() == added.data_ptr()
            assert lost(added, (into + expected).relu()) < LOST[dtype]
    assert count.found == 4


@needs_onednn
@pytest.mark.parametrize("autocast", [False, True])
def test_the_last_stage_of_a_network_is_in_tiles(
    monkeypatch: pytest.MonkeyPatch, autocast: bool
) -> None:
    """A ResNet-18 on 200 images of 112 px, whose last maps are 4x4; torch's convolutions beside."""
    torch.manual_seed(0)
    net = create_backbone("resnet18", num_classes=5, norm="frozen").train()
    x = torch.randn(200, 3, 112, 112)
    if not has_onednn(torch.zeros(1, dtype=torch.bfloat16)):
        pytest.skip("without oneDNN's bf16 convolutions are torch's")
    count = _Count(monkeypatch, "convolve")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = net(x)
        assert count.found >= 3  # those of stride 1, from 512 channels to 512
        monkeypatch.setattr("backbones.convolve.tiles_of", lambda *_: None)
        assert lost(ours, net(x)) < LOST[torch.bfloat16 if autocast else torch.float32]


@needs_onednn
def test_the_rpn_of_one_image_is_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    count = _Count(monkeypatch, "convolve")
    conv = nn.Conv2d(1024, 1024, 3, padding=1)
    x = torch.randn(1, 1024, 40, 80)
    with torch.no_grad():
        assert lost(call(conv, x), torchs(conv, x)) < LOST[torch.float32]
    assert count.found == 1


@needs_onednn
def test_settings_may_be_single_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    count = _Count(monkeypatch, "convolve")
    conv = nn.Conv2d(512, 512, 3, padding=1)
    conv.stride, conv.padding, conv.dilation = 1, 1, 1
    with torch.no_grad():
        for images in (1, 100):
            x = torch.randn(images, 512, 7, 7)
            assert lost(call(conv, x), torchs(conv, x)) < LOST[torch.float32]
        x = torch.randn(40, 512, 2, 2)  # one product
        assert lost(call(conv, x), torchs(conv, x)) < LOST[torch.float32]
    assert count.found == 1


@needs_onednn
@pytest.mark.parametrize("of_map", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("of_kernel", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(100, 512, 7, 7), (40, 512, 2, 2)])
def test_results_lie_as_torch_s_and_are_no_views(
    of_map: torch.memory_format, of_kernel: torch.memory_format, shape: tuple[int, ...]
) -> None:
    conv = nn.Conv2d(512, 512, 3, padding=1).to(memory_format=of_kernel)
    x = torch.randn(shape).to(memory_format=of_map)
    with torch.no_grad():
        y = call(conv, x)
        assert y.stride() == conv(x).stride()
    y.add_(torch.zeros(1, requires_grad=True))  # which views made without a gradient refuse
    assert y.requires_grad


@needs_onednn
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_default_device_has_no_part_in_it(device: str) -> None:
    """Neither then nor later."""
    conv = nn.Conv2d(512, 512, 3, padding=1)
    layer = FusedConv2d(conv, None, torch.float32, relu=False)
    x = torch.randn(REGIONS)
    with torch.no_grad():
        expected = torchs(conv, x)
        with torch.device(device):
            inside = call(conv, x), layer(x)
        for found in (*inside, call(conv, x), layer(x)):
            assert lost(found, expected) < LOST[torch.float32]
    conv.weight.grad = None
    with torch.device(device):
        call(conv, x).sum().backward()
    theirs = torch.autograd.grad(torchs(conv, x).sum(), conv.weight)[0]
    assert lost(conv.weight.grad, theirs) < LOST[torch.float32]


class _Fused(nn.Module):
    """A network of one fused layer."""

    def __init__(self) -> None:
        super().__init__()
        conv = nn.Conv2d(512, 512, 3, padding=1)
        self.layer = FusedConv2d(conv, None, torch.float32, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@needs_onednn
@pytest.mark.parametrize("warm", [False, True])
def test_a_fused_layer_goes_on_after_it_was_captured(warm: bool) -> None:
    """Whether it can be: oneDNN's layout of a weight cannot."""
    net, x = _Fused().eval(), torch.randn(REGIONS)
    with torch.no_grad():
        if warm:
            net(x), net.layer.by_library(x)
        with contextlib.suppress(Exception):
            torch.export.export(net, (x,), strict=False)
        found = net(x)
        assert type(found) is Tensor
        assert lost(found, net.layer.by_library(x)) < LOST[torch.float32]
        compiled = torch.compile(net, backend="eager", fullgraph=True)(x)
        assert torch.equal(compiled, net.layer.by_library(x))


@needs_onednn
@pytest.mark.parametrize("dtype", list(LOST))
def test_a_fused_layer_keeps_its_precision_under_autocast(dtype: torch.dtype) -> None:
    conv, x = nn.Conv2d(512, 512, 3, padding=1), torch.randn(REGIONS)
    layer = FusedConv2d(conv, None, dtype, relu=False)
    if not layer.fused:
        pytest.skip("oneDNN has no operators for this precision here")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        inside = layer(x)
    assert inside.dtype == dtype
    with torch.inference_mode():
        assert torch.equal(inside, layer(x))
        assert lost(inside, torchs(conv, x)) < LOST[dtype]


@needs_onednn
def test_what_torch_refuses_is_refused_in_its_words() -> None:
    conv, x = nn.Conv2d(512, 512, 3, padding=1), torch.randn(REGIONS)
    conv.bias = nn.Parameter(torch.zeros(1))
    with pytest.raises(RuntimeError, match=r"bias of size 512|bias.*512"):
        call(conv, x)
    conv.bias = nn.Parameter(torch.zeros(512, dtype=torch.double))
    with pytest.raises(RuntimeError, match="type"):
        call(conv, x)


@needs_onednn
def test_forward_mode_and_fx_see_a_convolution() -> None:
    conv, x = nn.Conv2d(512, 512, 3, padding=1), torch.randn(REGIONS)
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(call(conv, dual)).tangent
        expected = F.conv2d(torch.ones_like(x), conv.weight, padding=1)
    assert lost(tangent, expected) < LOST[torch.float32]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv

        def forward(self, x: Tensor) -> Tensor:
            return call(self.conv, x)

    operations = [node.op for node in torch.fx.symbolic_trace(Net()).graph.nodes]
    assert operations == ["placeholder", "call_module", "output"]


@needs_onednn
def test_who_watches_the_operators_sees_a_convolution() -> None:
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    seen: list[str] = []
    conv, x = nn.Conv2d(512, 512, 3, padding=1), torch.randn(REGIONS)
    with torch.no_grad(), Watch():
        call(conv, x)
    assert seen == ["aten.convolution.default"]

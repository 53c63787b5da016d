"""Convolutions of very small grids as one matrix product: what torch's convolution gives."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones import convolve, create_backbone
from backbones.fused import FusedConv2d
from backbones.norm import conv_norm
from backbones.small_grid import FEWEST, AllPairs, SmallGrid, Windows, small_grid_of
from tests.backbones.nets import check_gradients


def grid_for(conv: nn.Conv2d, *cells: int) -> SmallGrid | None:
    how = conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups
    return small_grid_of((40, conv.in_channels, *cells), *how)


def conv2d(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As conv_norm calls it."""
    return convolve.convolve(conv, x, weight, bias)


def test_a_grid_of_four_cells_by_hand() -> None:
    conv = nn.Conv2d(1, 1, 3, padding=1)
    weight = torch.arange(1.0, 10).view(1, 1, 3, 3)
    x = torch.tensor([[1.0, 2], [3, 4]]).expand(32, 1, 2, 2)
    bias = torch.tensor([0.5])
    expected = torch.tensor([[77.0, 67], [47, 37]])  # 5 + 12 + 24 + 36, 4 + 10 + 21 + 32, ...
    assert torch.equal(conv2d(conv, x, weight, None), expected.expand(32, 1, 2, 2))
    assert torch.equal(conv2d(conv, x, weight, bias), expected.expand(32, 1, 2, 2) + 0.5)
    matrix = grid_for(conv, 2, 2).matrix(weight, torch.float32)
    by_hand = [[5, 6, 8, 9], [4, 5, 7, 8], [2, 3, 5, 6], [1, 2, 4, 5]]
    assert torch.equal(matrix, torch.tensor(by_hand, dtype=torch.float32))


def test_the_gradient_of_the_kernel_by_hand() -> None:
    grid = AllPairs((2, 2), (3, 3), (1, 1), (1, 1))
    above, rows = torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[5.0, 6, 7, 8]])
    # the middle tap reads each cell for itself; the first one the first cell, for the last result
    expected = [[4 * 5, 3 * 5 + 4 * 6, 3 * 6], [2 * 5 + 4 * 7, 70, 1 * 6 + 3 * 8], [14, 23, 8]]
    gradient = grid.kernel_gradient(above, rows, (1, 1, 3, 3))
    assert torch.equal(gradient, torch.tensor(expected, dtype=torch.float32)[None, None])


def test_windows_by_hand() -> None:
    grid = Windows((3, 3), (2, 2), (2, 2), (1, 1))
    assert grid.out_cells == (2, 2)
    x = torch.arange(1.0, 10).view(1, 1, 3, 3)
    rows = torch.tensor([[0.0, 0, 0, 1], [0, 0, 2, 3], [0, 4, 0, 7], [5, 6, 8, 9]])
    assert torch.equal(grid.rows(x), rows)
    assert torch.equal(
        grid.matrix(torch.arange(4.0).view(1, 1, 2, 2), torch.float32)[0],
        rows[0] * 0 + torch.arange(4.0),
    )
    back = torch.tensor([[1.0, 3, 4], [7, 13, 14], [10, 15, 16]])  # each where it was read
    taken = torch.tensor([[9.0, 9, 9, 1], [9, 9, 3, 4], [9, 7, 9, 10], [13, 14, 15, 16]])
    assert torch.equal(grid.input_gradient(taken), back[None, None])


CASES = [
    (cells, kernel, stride, padding)
    for cells, kernel, stride, padding in itertools.product(
        [(1, 1), (2, 2), (1, 2), (2, 1), (1, 4), (3, 1), (3, 4), (4, 4), (5, 3)],
        [(1, 1), (3, 3), (5, 5), (3, 1), (1, 7), (4, 2)],
        [(1, 1), (2, 1), (2, 2), (3, 3)],
        [(0, 0), (1, 1), (2, 0), (2, 3)],
    )
    if grid_for(nn.Conv2d(2, 2, kernel, stride, padding), *cells) is not None
]


def test_there_are_cases_of_every_kind() -> None:
    kinds = [type(grid_for(nn.Conv2d(2, 2, *case), *cells)) for cells, *case in CASES]
    assert min(kinds.count(AllPairs), kinds.count(Windows)) > 100
    assert ((3, 4), (5, 5), (1, 1), (1, 1)) in CASES
    assert ((4, 4), (3, 3), (2, 2), (1, 1)) in CASES
    assert ((4, 4), (1, 1), (2, 2), (0, 0)) in CASES


@pytest.mark.parametrize(("cells", "kernel", "stride", "padding"), CASES)
def test_values_and_gradients_are_those_of_torch_s_convolution(
    cells: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple
) -> None:
    torch.manual_seed(sum(cells) + sum(kernel))
    conv = nn.Conv2d(5, 3, kernel, stride, padding).double()
    x = torch.randn(33, 5, *cells, dtype=torch.double, requires_grad=True)
    found, expected = conv2d(conv, x, conv.weight, conv.bias), conv(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert found.is_contiguous() == expected.is_contiguous()
    wanted = x, conv.weight, conv.bias
    check_gradients(found, expected, wanted, atol=1e-11)


def test_gradients_that_nobody_asks_for_are_not_made() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1, bias=False).double()
    x = torch.randn(32, 4, 2, 2, dtype=torch.double)
    conv2d(conv, x, conv.weight, None).sum().backward()
    assert conv.weight.grad is not None
    conv.weight.requires_grad_(False).grad = None
    x.requires_grad_()
    conv2d(conv, x, conv.weight, None).sum().backward()
    assert x.grad is not None
    assert conv.weight.grad is None


@pytest.mark.parametrize(
    ("conv", "cells"),
    [
        (nn.Conv2d(1, 1, 3, padding=1), (2, 3)),  # 12 of 9 taps, and 6 results
        (nn.Conv2d(1, 1, 1), (2, 2)),  # which is a product already
        (nn.Conv2d(1, 1, 1, stride=2), (4, 6)),
        (nn.Conv2d(1, 1, 3, padding=2, dilation=2), (2, 2)),
        (nn.Conv2d(2, 2, 3, padding=1, groups=2), (2, 2)),
        (nn.Conv2d(1, 1, 3, padding="same"), (2, 2)),
        (nn.Conv2d(1, 1, 3), (2, 2)),  # gives no cell at all
        (nn.Conv2d(1, 1, 3, padding=1), (0, 2)),
    ],
)
def test_others_are_left_to_torch(conv: nn.Conv2d, cells: tuple[int, int]) -> None:
    assert grid_for(conv, *cells) is None


def test_few_images_are_left_to_torch_to_the_last_bit() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 64, 3, padding=1)
    for number in (0, 1, 31):
        x = torch.randn(number, 64, 2, 2)
        assert torch.equal(conv2d(conv, x, conv.weight, conv.bias), conv(x))
    assert FEWEST == 32
    x = torch.randn(32, 64, 2, 2).to(memory_format=torch.channels_last)
    made_by = conv2d(conv, x, conv.weight, None).grad_fn  # which lays out the rows of a product
    ((viewed, _),) = made_by.next_functions
    assert viewed.next_functions[0][0].name() == "_SmallGridConv2dBackward"


def test_other_types_are_refused_as_torch_refuses_them() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1)
    with pytest.raises(RuntimeError, match=r"(?i)type"):
        conv2d(conv, torch.randn(40, 4, 2, 2).double(), conv.weight, None)


def test_under_autocast_it_is_as_exact_as_torch_s_and_keeps_the_weight_s_gradient_whole() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(96, 80, 3, padding=1, bias=False)
    x = torch.randn(64, 96, 2, 2)
    down = torch.randn(64, 80, 2, 2)

    def made(call, wanted: tuple[Tensor, ...]) -> list[Tensor]:
        result = call()
        return [result, *torch.autograd.grad(result, wanted, down.to(result.dtype))]

    exact = [
        each.double()
        for each in made(
            lambda: F.conv2d(x.double(), conv.weight.double(), padding=1), (conv.weight,)
        )
    ]
    with torch.autocast("cpu", torch.bfloat16):
        torchs = made(lambda: conv(x), (conv.weight,))
        ours = made(lambda: conv2d(conv, x, conv.weight, None), (conv.weight,))
    assert [each.dtype for each in ours] == [torch.bfloat16, torch.float32]
    for mine, its, true in zip(ours, torchs, exact, strict=True):
        error, peer = ((each.double() - true).abs().max() for each in (mine, its))
        assert error <= 1.5 * peer


def test_rows_of_all_pairs_are_a_view_of_what_is_channels_last() -> None:
    x = torch.randn(3, 5, 2, 2).to(memory_format=torch.channels_last)
    grid = AllPairs((2, 2), (3, 3), (1, 1), (1, 1))
    rows = grid.rows(x)
    assert rows.data_ptr() == x.data_ptr()
    assert torch.equal(rows[1].view(2, 2, 5)[0, 1], x[1, :, 0, 1])
    assert torch.equal(grid.input_gradient(rows), x)
    assert torch.equal(grid.rows(x.contiguous()), rows)


@pytest.mark.parametrize("training", [True, False])
def test_conv_norm_is_the_same_on_a_small_grid(training: bool) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(16, 24, 3, padding=1, bias=False).double()
    norm = nn.BatchNorm2d(24).double().train(training)
    x = torch.randn(40, 16, 2, 2, dtype=torch.double)
    norm.running_mean.normal_()
    torch.testing.assert_close(conv_norm(conv, norm, x), norm(conv(x)), rtol=0, atol=1e-12)


def test_the_last_stage_of_a_network_learns_the_same_on_small_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A ResNet-18 on 64 px, whose last maps are 2x2, in float64; torch's convolutions beside it."""
    torch.manual_seed(0)
    net = create_backbone("resnet18", num_classes=5, norm="batch").double().train()
    x = torch.randn(32, 3, 64, 64, dtype=torch.double)

    def gradients() -> dict[str, Tensor]:
        net.zero_grad()
        F.cross_entropy(net(x), torch.arange(32) % 5).backward()
        return {name: each.grad.clone() for name, each in net.named_parameters()}

    ours = gradients()
    calls = []

    def torchs(shape: tuple[int, ...], *_: object) -> None:
        calls.append(shape[-2:])

    monkeypatch.setattr("backbones.convolve.small_grid_of", torchs)
    expected = gradients()
    assert (2, 2) in calls
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-8, atol=1e-11, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("larger_first", [False, True])
def test_the_fused_layer_is_the_same_on_small_grids(dtype: torch.dtype, larger_first: bool) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(32, 48, 3, padding=1, bias=False), nn.BatchNorm2d(48).eval()
    norm.running_mean.normal_()
    layer = FusedConv2d(conv, norm, dtype, relu=True)
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float64: 1e-6}[dtype]
    sizes = [(5, 6), (2, 2), (1, 2), (4, 1), (2, 2)]
    with torch.inference_mode():
        for cells in sizes if larger_first else sizes[1:] + sizes[:1] + sizes[1:]:
            x = torch.randn(3, 32, *cells)
            into = torch.randn(3, 48, *cells).to(memory_format=torch.channels_last)
            expected = norm(conv(x))
            found = layer(x).float()
            torch.testing.assert_close(found, expected.relu(), rtol=tolerance, atol=tolerance)
            added = into.to(dtype, copy=True)
            assert layer.add_(x, added).data_ptr() == added.data_ptr()
            total = (into + expected).relu()
            torch.testing.assert_close(added.float(), total, rtol=tolerance, atol=tolerance)
        assert layer(torch.randn(0, 32, 2, 2)).shape == (0, 48, 2, 2)


def test_compiled_it_is_the_same() -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
    x = torch.randn(40, 8, 2, 2)
    compiled = torch.compile(lambda x: conv_norm(conv, norm, x), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), conv_norm(conv, norm, x))


def test_torch_func_goes_through_it() -> None:
    conv = nn.Conv2d(4, 4, 3, padding=1).double()
    x = torch.randn(40, 4, 2, 2, dtype=torch.double)

    def total(weight: Tensor) -> Tensor:
        return conv2d(conv, x, weight, None).sum()

    found = torch.func.grad(total)(conv.weight.detach())
    torch.testing.assert_close(found, torch.autograd.grad(total(conv.weight), conv.weight)[0])


def test_its_result_may_be_changed_in_place_as_padding_is() -> None:
    """A batch of images of several sizes, whose padding is kept out of a batch norm that learns."""
    torch.manual_seed(0)
    net = create_backbone("resnet18", norm="batch", num_classes=0).double().train()
    x = torch.zeros(32, 3, 64, 64, dtype=torch.double)
    x[:, :, :33] = torch.randn(32, 3, 33, 64)
    maps = net.feature_maps(x, ("conv5",), sizes=[(33, 64)] * 32)
    maps["conv5"].square().sum().backward()
    assert net.layer4[1].conv2.weight.grad.isfinite().all()


def test_who_waits_for_a_convolution_sees_it_called() -> None:
    net = create_backbone("resnet18", norm="batch", num_classes=0).train()
    x = torch.randn(32, 3, 64, 64)
    seen = []
    last = net.layer4[1].conv2
    own = last.forward

    def forward(x: Tensor) -> Tensor:
        seen.append("own")
        return own(x)

    last.forward = forward
    net(x)
    assert seen == ["own"]
    del last.forward
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, *_: seen.append("hook") if module is last else None
    )
    net(x)
    hook.remove()
    assert seen == ["own", "hook"]


def test_gradients_of_gradients_are_torch_s() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1, bias=False).double()
    x = torch.randn(32, 3, 2, 2, dtype=torch.double, requires_grad=True)

    def second(y: Tensor) -> tuple[Tensor, ...]:
        (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), (x, conv.weight))

    for mine, its in zip(second(conv2d(conv, x, conv.weight, None)), second(conv(x)), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=1e-9)


def test_autocast_leaves_float64_and_is_not_taken_up_in_the_backward() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    x = torch.randn(40, 8, 2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert conv2d(conv.double(), x.double(), conv.weight, None).dtype == torch.float64
        conv.float()
        with pytest.raises(RuntimeError, match=r"(?i)type"):
            conv2d(conv, x.double(), conv.weight, None)
    y, expected = conv2d(conv, x, conv.weight, None), conv(x)
    with torch.autocast("cpu", torch.bfloat16):
        (mine,) = torch.autograd.grad(y.sum(), conv.weight)
    (its,) = torch.autograd.grad(expected.sum(), conv.weight)
    torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-4)


def test_wrong_channels_are_refused_in_torch_s_words() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1)
    with pytest.raises(RuntimeError, match="expected input"):
        conv2d(conv, torch.randn(40, 6, 2, 2), conv.weight, None)

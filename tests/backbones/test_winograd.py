"""3x3 convolutions in tiles: what torch's convolution gives."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones import create_backbone, winograd
from backbones.onednn import has_onednn
from backbones.winograd import (
    Tiles,
    keeps_its_size,
    spread_kernel,
    tiles_of,
    winograd_conv2d,
)
from tests.backbones.nets import LOST, REGIONS, check_gradients, lost, needs_onednn, torchs

SIZES = [(1, 1), (1, 9), (2, 3), (4, 4), (5, 4), (7, 7), (8, 13), (17, 6)]


def test_six_products_are_the_twelve() -> None:
    """Result i is the sum over taps j of cell i + j, for every pair exactly once."""
    for result, tap, cell in itertools.product(range(4), range(3), range(6)):
        total = sum(
            winograd._RESULTS[result][product]
            * winograd._TAPS[product][tap]
            * winograd._CELLS[product][cell]
            for product in range(6)
        )
        assert total == pytest.approx(float(cell == result + tap), abs=1e-15)


def test_the_sums_of_cells_and_of_results_lose_nothing_in_bf16() -> None:
    for matrix in (winograd._CELLS, winograd._RESULTS):
        exact = torch.tensor(matrix)
        assert torch.equal(exact.bfloat16().float(), exact)


def test_a_map_of_four_cells_by_hand() -> None:
    weight = torch.arange(1.0, 10).view(1, 1, 3, 3).double()
    x = torch.tensor([[1.0, 2], [3, 4]]).view(1, 1, 2, 2).double()
    found = winograd_conv2d(x, weight, torch.tensor([0.5]).double(), Tiles((2, 2)))
    expected = torch.tensor([[77.5, 67.5], [47.5, 37.5]]).double()  # 5 + 12 + 24 + 36 and a half
    torch.testing.assert_close(found[0, 0], expected, rtol=0, atol=1e-12)


def test_tiles_are_counted_to_the_border() -> None:
    assert [Tiles(cells).number for cells in ((4, 4), (5, 4), (7, 7), (38, 41))] == [1, 2, 4, 110]


@pytest.mark.parametrize("cells", SIZES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_are_those_of_torch_s_convolution(
    cells: tuple[int, int], with_bias: bool
) -> None:
    torch.manual_seed(sum(cells))
    conv = nn.Conv2d(5, 3, 3, padding=1, bias=with_bias).double()
    x = torch.randn(3, 5, *cells, dtype=torch.double, requires_grad=True)
    found = winograd_conv2d(x, conv.weight, conv.bias, Tiles(cells))
    expected = torchs(conv, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert found.is_contiguous(memory_format=torch.channels_last)
    wanted = (x, *conv.parameters())
    check_gradients(found, expected, wanted, atol=1e-11)


@pytest.mark.parametrize("dtype", list(LOST))
def test_values_and_gradients_in_the_precisions_that_networks_have(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(96, 64, 3, 3) * 0.06
    weight.requires_grad_()
    x = torch.randn(20, 64, 7, 7).relu().to(dtype).requires_grad_()
    down = torch.randn(20, 96, 7, 7).to(dtype)

    def made(result: Tensor, wanted: tuple[Tensor, Tensor]) -> list[Tensor]:
        return [result, *torch.autograd.grad(result, wanted, down.to(result.dtype))]

    wide = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    exact = made(F.conv2d(*wide, padding=1), wide)
    ours = made(winograd_conv2d(x, weight, None, Tiles((7, 7))), (x, weight))
    assert [each.dtype for each in ours] == [dtype, dtype, torch.float32]
    for mine, true in zip(ours, exact, strict=True):
        assert lost(mine, true) < LOST[dtype]


def test_weights_of_bf16_are_summed_in_float32() -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 8, 3, 3).bfloat16()
    narrow = torch.stack(list(spread_kernel(weight, torch.bfloat16)))
    wide = torch.stack(list(spread_kernel(weight.double(), torch.double)))
    error = (narrow.double() - wide).abs()
    assert (error <= wide.abs() * 2**-8 + 1e-6).all()  # rounded once


def test_the_bias_may_be_of_another_dtype_than_the_map() -> None:
    x = torch.zeros(2, 3, 5, 5).bfloat16()
    bias = torch.tensor([1.0, -2.5], requires_grad=True)
    found = winograd_conv2d(x, torch.randn(2, 3, 3, 3), bias, Tiles((5, 5)))
    assert torch.equal(found.float(), bias.detach().view(1, 2, 1, 1).expand(2, 2, 5, 5))
    found.sum().backward()
    assert torch.equal(bias.grad, torch.tensor([50.0, 50.0]))


def test_gradients_that_nobody_asks_for_are_not_made() -> None:
    x, weight = torch.randn(2, 3, 5, 5).double(), torch.randn(4, 3, 3, 3).double()
    for wanted, other in ((x, weight), (weight, x)):
        wanted.requires_grad_(), other.requires_grad_(False)
        winograd_conv2d(x, weight, None, Tiles((5, 5))).sum().backward()
        assert other.grad is None
        theirs = torch.autograd.grad(F.conv2d(x, weight, padding=1).sum(), wanted)[0]
        torch.testing.assert_close(wanted.grad, theirs, rtol=0, atol=1e-11)
        wanted.grad = None


def test_gradients_of_gradients_and_many_at_once() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 3, 5, 5, dtype=torch.double, requires_grad=True)
    weight = torch.randn(2, 3, 3, 3, dtype=torch.double, requires_grad=True)

    def ours(x: Tensor, weight: Tensor) -> Tensor:
        return winograd_conv2d(x, weight, None, Tiles((5, 5)))

    assert torch.autograd.gradgradcheck(ours, (x, weight))
    rows = ours(x, weight).flatten()[:7]
    found = torch.autograd.grad(rows, (x, weight), torch.eye(7).double(), is_grads_batched=True)
    for number, row in enumerate(F.conv2d(x, weight, padding=1).flatten()[:7]):
        theirs = torch.autograd.grad(row, (x, weight), retain_graph=True)
        for mine, its in zip(found, theirs, strict=True):
            torch.testing.assert_close(mine[number], its, rtol=0, atol=1e-11)


def test_its_result_may_be_changed_in_place() -> None:
    x = torch.randn(1, 3, 5, 5, requires_grad=True)
    weight = torch.randn(2, 3, 3, 3)
    y = winograd_conv2d(x, weight, None, Tiles((5, 5)))
    F.relu(y, inplace=True).sum().backward()
    theirs = torch.autograd.grad(F.conv2d(x, weight, padding=1).relu().sum(), x)[0]
    torch.testing.assert_close(x.grad, theirs, rtol=0, atol=1e-4)


def how(conv: nn.Conv2d) -> tuple[object, ...]:
    return conv.weight.shape, conv.stride, conv.padding, conv.dilation, conv.groups


@needs_onednn
@pytest.mark.parametrize(
    ("channels", "shape", "in_tiles"),
    [
        (512, (100, 512, 7, 7), True),  # conv5 of a C4 detector
        (1024, (1, 1024, 38, 41), True),  # the RPN of a ResNet-50
        (512, (1, 512, 50, 54), True),
        (512, (1, 512, 300, 320), False),  # sums over long rows and columns
        (256, (1, 256, 38, 41), False),  # conv4 of a ResNet-50
        (64, (1, 64, 150, 160), False),
        (512, (8, 512, 7, 7), False),  # 32 tiles
        (512, (0, 512, 7, 7), False),
        (512, (100, 512, 0, 7), False),
        (512, (1000, 512, 1, 1), False),  # one cell of a tile
    ],
)
def test_where_tiles_are_less_work(channels: int, shape: tuple[int, ...], in_tiles: bool) -> None:
    conv = nn.Conv2d(channels, channels, 3, padding=1, device="meta")
    expected = Tiles(shape[2:]) if in_tiles else None
    assert tiles_of(torch.empty(shape), *how(conv), prepared=True) == expected


@needs_onednn
@pytest.mark.parametrize("dtype", list(LOST))
def test_a_kernel_that_is_spread_at_each_call_wants_more_tiles(dtype: torch.dtype) -> None:
    conv = nn.Conv2d(1024, 1024, 3, padding=1, device="meta")
    one, two = (torch.empty(images, 1024, 38, 41, dtype=dtype) for images in (1, 2))
    if not has_onednn(one):
        pytest.skip("without oneDNN's bf16 convolutions are torch's")
    assert tiles_of(one, *how(conv)) is None
    assert tiles_of(one, *how(conv), prepared=True) is not None
    assert tiles_of(two, *how(conv)) is not None


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(512, 512, 3, padding=1, stride=2, device="meta"),
        nn.Conv2d(512, 512, 3, padding=1, stride=(1, 2), device="meta"),
        nn.Conv2d(512, 512, 3, device="meta"),
        nn.Conv2d(512, 512, 3, padding=(1, 2), device="meta"),
        nn.Conv2d(512, 512, 3, padding="same", device="meta"),
        nn.Conv2d(512, 512, 3, padding=2, dilation=2, device="meta"),
        nn.Conv2d(512, 512, 3, padding=1, groups=2, device="meta"),
        nn.Conv2d(512, 512, 1, device="meta"),
        nn.Conv2d(512, 512, (3, 1), padding=(1, 0), device="meta"),
        nn.Conv2d(512, 512, 5, padding=2, device="meta"),
    ],
)
def test_other_convolutions_are_left_to_torch(conv: nn.Conv2d) -> None:
    assert tiles_of(torch.empty(REGIONS), *how(conv)) is None


def test_other_numbers_are_left_to_torch() -> None:
    conv = nn.Conv2d(512, 512, 3, padding=1, device="meta")
    for x in (torch.empty(REGIONS).double(), torch.empty(REGIONS, device="meta")):
        assert tiles_of(x, *how(conv)) is None


def test_a_network_learns_the_same_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ResNet-18, all of whose 3x3 convolutions that can be are in tiles, in float64, where no
    ReLU turns on a rounding; torch's convolutions beside it.
    """
    torch.manual_seed(0)
    net = create_backbone("resnet18", num_classes=5, norm="batch").double().train()
    x = torch.randn(4, 3, 80, 112, dtype=torch.double)
    sizes = []

    def gradients() -> dict[str, Tensor]:
        net.zero_grad()
        F.cross_entropy(net(x), torch.arange(4) % 5).backward()
        return {name: each.grad.clone() for name, each in net.named_parameters()}

    def all_tiles(x: Tensor, kernel: tuple[int, ...], *settings: object) -> Tiles | None:
        if not keeps_its_size(kernel[2:], *settings):
            return None
        sizes.append(x.shape[2:])
        return Tiles(tuple(x.shape[2:]))

    expected = gradients()
    monkeypatch.setattr("backbones.convolve.tiles_of", all_tiles)
    ours = gradients()
    assert len(sizes) == 13
    assert {(20, 28), (3, 4)} < set(sizes)
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-8, atol=1e-11, msg=name)


def test_the_precision_of_a_backward_is_that_of_its_forward() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 8, 9, 9, requires_grad=True), torch.randn(4, 8, 3, 3)
    weight.requires_grad_()
    down = torch.randn(3, 4, 9, 9)
    y = winograd_conv2d(x, weight, None, Tiles((9, 9)))
    wanted = torch.autograd.grad(y, (x, weight), down, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(y, (x, weight), down)
        again = winograd_conv2d(x, weight, None, Tiles((9, 9)))
    assert torch.equal(again, y)
    for mine, its in zip(found, wanted, strict=True):
        assert torch.equal(mine, its)


def test_images_do_not_reach_each_other() -> None:
    x = torch.randn(3, 4, 9, 9)
    x[1, 2, 4, 4] = torch.nan
    y = winograd_conv2d(x, torch.randn(2, 4, 3, 3), None, Tiles((9, 9)))
    assert [image.isfinite().all().item() for image in y] == [True, False, True]
    assert y[1].isnan().any()

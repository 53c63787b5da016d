"""3x3 convolutions with fewer multiplications: minimal filtering of tiles (Winograd 1980; Lavin and
Gray 2016, arXiv:1509.09308, section 4).

Shapes: N images, C channels in, K out, (H, W) cells, (t_h, t_w) tiles of 4x4 results.

A row of four results reads six cells through three taps: twelve products. As the coefficients of a
product of polynomials, which six of its values determine, they are sums of six products: of sums of
the cells with sums of the taps. In two dimensions 36 products stand for 144, each the same for all
tiles, so that all of them are 36 products of matrices.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from backbones.convolution_gradients import torchs_are_wanted, torchs_gradients
from backbones.onednn import ONEDNN, has_onednn

TILE = 4
"""Results in a row of a tile."""

PRODUCTS = 6
"""For a row of a tile: the values at 0, 1, -1, 1/2, -2 and infinity, of which float32 loses less
than of the usual 0, 1, -1, 2, -2 and infinity (Barabasz et al. 2020, arXiv:1803.10986).
"""

_CELLS = (
    (1 / 4, -3 / 8, -1 / 2, 3 / 8, 1 / 4, 0),
    (0, -1 / 4, 1 / 8, 5 / 8, 1 / 4, 0),
    (0, -1 / 4, 5 / 8, -1 / 8, -1 / 4, 0),
    (0, 1 / 2, 1 / 4, -1 / 2, -1 / 4, 0),
    (0, 1 / 4, -1 / 2, -1 / 4, 1 / 2, 0),
    (0, 1 / 4, -3 / 8, -1 / 2, 3 / 8, 1 / 4),
)
"""How a product sums the six cells that a row of a tile reads; exact in bf16."""

_TAPS = (
    (4, 0, 0),
    (4 / 3, 4 / 3, 4 / 3),
    (4 / 3, -4 / 3, 4 / 3),
    (64 / 15, 32 / 15, 16 / 15),
    (2 / 15, -4 / 15, 8 / 15),
    (0, 0, 4),
)
"""How it sums the taps."""

_RESULTS = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 1 / 2, -2, 0),
    (0, 1, 1, 1 / 4, 4, 0),
    (0, 1, -1, 1 / 8, -8, 1),
)
"""How a result sums the products."""

_ITSELF = 1
"""The product that each result of a row has once: there a bias is added."""

_TOGETHER = 3
"""Products of a column whose sums are made at once: of six they would be larger than the map."""

_FEWEST_ROWS = 64
"""Of a product."""


class _Cost(NamedTuple):
    """How long parts of the work take, as operations of oneDNN's 3x3 convolutions: an operation of
    the products, a number that is spread or gathered, an operation of the sums, and a number of a
    kernel that is spread.
    """

    product: float
    moved: float
    summed: float
    kernel: float


_COSTS = {
    (torch.float32, True): _Cost(1.6, 280, 2.4, 0),
    (torch.float32, False): _Cost(0.9, 460, 1.5, 420),
    (torch.bfloat16, True): _Cost(1.4, 340, 0.9, 0),
    (torch.bfloat16, False): _Cost(1.65, 150, 0.85, 500),
}
"""By dtype, and by whether the kernel was spread before; else of forward and backward together, as
of one of three convolutions. Fitted to the times of 19 sizes, two threads with AVX-512."""

_WORTH_IT = 7 / 8
"""Of a convolution's time, what the tiles may take at most: they cost some bits."""


@dataclass(frozen=True)
class Spread:
    """Sums of a map's cells, six by six for every tile, and back: the adjoint.

    R = N x t_h x t_w. down: (6, t_h, H), for each product of a column how it sums the cells of one.
    across: (6, t_w, W), the same of rows.
    """

    down: Tensor
    across: Tensor

    def of_map(self, x: Tensor) -> Iterator[Tensor]:
        """Give six (6, R, C) for a map (N, C, H, W), one for each product of a column."""
        n, c, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(n, height, width * c)
        for down in self.down.split(_TOGETHER):
            summed = (down.flatten(0, 1) @ rows).view(n, _TOGETHER, -1, width, c)
            for some in summed.unbind(1):  # (N, t_h, W, C)
                tiles = (self.across.flatten(0, 1) @ some).view(-1, *self.across.shape[:2], c)
                yield tiles.transpose(0, 1).reshape(PRODUCTS, -1, c)

    def columns(self, tiles: Tensor, images: int) -> Tensor:
        """Return (N, t_h, W x C) of one of those six; images: N."""
        _, t_h, _ = self.down.shape
        c = tiles.shape[-1]
        rows = tiles.view(PRODUCTS, images * t_h, -1, c).transpose(0, 1)
        across = self.across.flatten(0, 1).T
        return (across @ rows.reshape(images * t_h, -1, c)).view(images, t_h, -1)

    def rows(self, columns: list[Tensor]) -> Tensor:
        """Return a map (N, C, H, W), channels last, of those of all six."""
        (n, _, row), height, width = columns[0].shape, self.down.shape[2], self.across.shape[2]
        made = torch.empty(
            (n, row // width, height, width),
            dtype=columns[0].dtype,
            device=columns[0].device,
            memory_format=torch.channels_last,
        )
        rows = made.permute(0, 2, 3, 1).view(n, height, row)
        for first in range(0, PRODUCTS, _TOGETHER):
            some = slice(first, first + _TOGETHER)
            stacked = torch.stack(columns[some], dim=1).flatten(1, 2)  # (N, 3 x t_h, W x C)
            back = self.down[some].flatten(0, 1).T.expand(n, -1, -1)
            rows.baddbmm_(back, stacked, beta=min(first, 1))  # 0: what was there does not count
        return made


@dataclass(frozen=True)
class Tiles:
    """How a 3x3 convolution of stride 1 and padding 1 reads a map of `cells` (H, W)."""

    cells: tuple[int, int]

    @property
    def number(self) -> int:
        """t_h x t_w; what the last ones hold beyond the map is left out."""
        return -(-self.cells[0] // TILE) * -(-self.cells[1] // TILE)

    def reading(self, dtype: torch.dtype) -> Spread:
        """Return what is multiplied of a map."""
        return Spread(*(_reading(size).to(dtype) for size in self.cells))

    def writing(self, dtype: torch.dtype) -> Spread:
        """Return that of which the adjoint makes a result of the products."""
        return Spread(*(_writing(size).to(dtype) for size in self.cells))


def _reading(size: int) -> Tensor:
    """(6, tiles, size) float32: how products sum the cells of a row."""
    tiles = -(-size // TILE)
    made = torch.zeros((PRODUCTS, tiles, TILE * tiles + 2), device="cpu")
    sums = torch.tensor(_CELLS, device="cpu")
    for tile in range(tiles):
        made[:, tile, TILE * tile : TILE * tile + len(_CELLS)] = sums
    return made[:, :, 1 : 1 + size]  # without the zeros around the map


def _writing(size: int) -> Tensor:
    """(6, tiles, size) float32: the products that the cells of a result sum."""
    tiles = -(-size // TILE)
    made = torch.zeros((PRODUCTS, tiles, TILE * tiles), device="cpu")
    sums = torch.tensor(_RESULTS, device="cpu").T
    for tile in range(tiles):
        made[:, tile, TILE * tile : TILE * (tile + 1)] = sums
    return made[:, :, :size]


def spread_kernel(weight: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """Give by what those six are multiplied, six (6, K, C) of `dtype`, of a kernel (K, C, 3, 3);
    they are summed in float32 at least.
    """
    wide = torch.promote_types(weight.dtype, torch.float32)
    taps = torch.tensor(_TAPS, dtype=wide, device="cpu")
    # each (3, K x C)
    first, second, third = weight.to(wide).permute(2, 3, 0, 1).reshape(3, 3, -1)
    for down in _TAPS:
        # sums, not a product, for which all six would be made at once
        column = (first * down[0]).add_(second, alpha=down[1]).add_(third, alpha=down[2])
        yield (taps @ column).view(-1, *weight.shape[:2]).to(dtype)


def keeps_its_size(
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
) -> bool:
    """Return whether a convolution, set as nn.Conv2d is, is one that can read a map in tiles."""
    return (*kernel, *stride, *padding, *dilation, groups) == (3, 3, 1, 1, 1, 1, 1, 1, 1)


def tiles_of(
    x: Tensor,
    weight: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
    *,
    prepared: bool = False,
) -> Tiles | None:
    """Return how a convolution, set as nn.Conv2d is, with a weight of shape (K, C, kh, kw) reads
    `x`, (N, C, H, W), in tiles; None for others than 3x3 ones that keep the size, and where the
    tiles would take as long, by the time of what they do on a CPU with AVX-512.

    prepared: its kernel has been spread.
    """
    if not keeps_its_size(weight[2:], stride, padding, dilation, groups) or not has_onednn(x):
        return None
    (n, _, height, width), (num_out, num_in) = x.shape, weight[:2]
    tiles = Tiles((height, width))
    rows, t_h = n * tiles.number, -(-height // TILE)
    if rows < _FEWEST_ROWS:
        return None
    products = 2 * PRODUCTS**2 * rows * num_in * num_out
    moved = PRODUCTS**2 * rows * (num_in + num_out)
    each = PRODUCTS * n * t_h * width * height + PRODUCTS**2 * rows * width  # down, across
    sums = 2 * each * (num_in + num_out)
    kernel = PRODUCTS**2 * num_in * num_out
    cost = _COSTS[x.dtype, prepared]
    parts = zip(cost, (products, moved, sums, kernel), strict=True)
    took = sum(times * number for times, number in parts)
    return tiles if took < _WORTH_IT * 2 * 9 * n * height * width * num_in * num_out else None


def winograd_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, tiles: Tiles) -> Tensor:
    """Return the convolution, (N, K, H, W), channels last, of `x`, (N, C, H, W), with a kernel (K,
    C, 3, 3) and bias (K,), in the dtype of `x`, as `tiles_of` has it read.

    What a number loses by rounding is a part of the largest beside it, up to three cells further
    than the kernel reaches; what is not finite reaches all of its image.
    """
    return _WinogradConv2d.apply(x, weight, bias, tiles)


def prepared_kernel(weight: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return all of what `spread_kernel` gives, for inference."""
    with torch.autocast("cpu", enabled=False):
        return list(spread_kernel(weight, dtype))


def prepared_conv2d(x: Tensor, matrices: list[Tensor], bias: Tensor | None, tiles: Tiles) -> Tensor:
    """Return what `winograd_conv2d` does, without a gradient, of a prepared kernel."""
    with torch.autocast("cpu", enabled=False):
        return _convolved(x, matrices, bias, tiles)


def _convolved(x: Tensor, matrices: Iterable[Tensor], bias: Tensor | None, tiles: Tiles) -> Tensor:
    """The convolution, (N, K, H, W)."""
    writing, columns = tiles.writing(x.dtype), []
    for read, matrix in zip(tiles.reading(x.dtype).of_map(x), matrices, strict=True):
        added = bias if len(columns) == _ITSELF else None
        columns.append(writing.columns(_multiply(read, matrix, added), len(x)))
    return writing.rows(columns)


def _multiply(read: Tensor, matrices: Tensor, bias: Tensor | None) -> Tensor:
    """The products (6, R, K) of (6, R, C) and (6, K, C); bias (K,): of the convolution."""
    if read.dtype == torch.float32:  # several times as fast as torch's product where MKL makes it
        made = read.new_empty((*read.shape[:2], matrices.shape[1]))
        for number, (some, matrix) in enumerate(zip(read, matrices, strict=True)):
            added = bias if number == _ITSELF else None
            made[number] = ONEDNN._linear_pointwise(some, matrix, added, "none", [], "")
        return made
    made = torch.bmm(read, matrices.transpose(1, 2))
    if bias is not None:
        made[_ITSELF] += bias
    return made


class _WinogradConv2d(torch.autograd.Function):
    """The result (N, K, H, W) for (N, C, H, W), (K, C, 3, 3) and (K,).

    What the maps are spread to, three times as much, is made again in the backward.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tiles: Tiles,
    ) -> Tensor:
        """Return it in the dtype of `x`."""
        ctx.save_for_backward(x, weight)
        ctx.tiles, ctx.bias_dtype = tiles, None if bias is None else bias.dtype
        with torch.autocast("cpu", enabled=False):
            added = None if bias is None else bias.to(x.dtype)
            return _convolved(x, spread_kernel(weight, x.dtype), added, tiles)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, of_result: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        """Return the gradients of x, weight and bias."""
        x, weight = ctx.saved_tensors
        wants_x, wants_weight, wants_bias, _ = ctx.needs_input_grad
        with torch.autocast("cpu", enabled=False):  # in the precision of the forward
            of_bias = of_result.sum((0, 2, 3)).to(ctx.bias_dtype) if wants_bias else None
            if torchs_are_wanted(of_result):
                how = (1, 1), (1, 1), (wants_x, wants_weight)
                both = torchs_gradients(of_result, x, weight, *how)
            else:
                both = _gradients(of_result, x, weight, ctx.tiles, wants_x, wants_weight)
        return *both, of_bias, None


def _gradients(
    of_result: Tensor, x: Tensor, weight: Tensor, tiles: Tiles, wants_x: bool, wants_weight: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Those of `x`, (N, C, H, W), and of `weight`, (K, C, 3, 3), channels last, each None where it
    is not wanted, from that of the result, (N, K, H, W).
    """
    reading, writing = tiles.reading(x.dtype), tiles.writing(x.dtype)
    wide = torch.promote_types(weight.dtype, torch.float32)
    taps = torch.tensor(_TAPS, dtype=wide, device="cpu")
    read = reading.of_map(x) if wants_weight else itertools.repeat(None)
    matrices = spread_kernel(weight, x.dtype) if wants_x else itertools.repeat(None)
    of_columns = []
    of_weight = weight.new_zeros((3, 3, weight[:, :, 0, 0].numel()), dtype=wide)
    steps = zip(writing.of_map(of_result), read, matrices, _TAPS)  # noqa: B905
    for of_products, cells, matrix, down in steps:
        if wants_x:
            of_read = _multiply(of_products, matrix.transpose(1, 2), None)
            of_columns.append(reading.columns(of_read, len(x)))
        if wants_weight:
            of_matrix = _matrix_gradients(of_products, cells).to(wide)
            of_column = taps.T @ of_matrix.flatten(1)  # (3, K x C)
            for row, factor in zip(of_weight, down, strict=True):
                row.add_(of_column, alpha=factor)
    of_x = reading.rows(of_columns) if wants_x else None
    if not wants_weight:
        return of_x, None
    of_weight = of_weight.view(3, 3, *weight.shape[:2]).permute(2, 3, 0, 1)
    return of_x, of_weight.to(weight.dtype)


def _matrix_gradients(of_products: Tensor, read: Tensor) -> Tensor:
    """The gradient (6, K, C) of the matrices from that of the products, (6, R, K), and what was
    multiplied, (6, R, C).
    """
    if read.dtype != torch.float32:
        return torch.bmm(of_products.transpose(1, 2), read)
    made = read.new_empty((len(read), of_products.shape[2], read.shape[2]))
    how = [1, 1], [0, 0], [1, 1], False, [0, 0], 1, (False, True, False)
    for into, above, below in zip(made, of_products, read, strict=True):
        # as 1x1 convolutions, (R, C) -> (1, C, 1, R), which are faster than torch's product
        maps = (each[None, None].permute(0, 3, 1, 2) for each in (above, below))
        shape = into[:, :, None, None]
        _, of_matrix, _ = torch.ops.aten.convolution_backward(*maps, shape, None, *how)
        into.copy_(of_matrix[:, :, 0, 0])
    return made

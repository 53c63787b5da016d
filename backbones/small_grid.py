"""Convolutions of grids of a few cells, as one matrix product.

Shapes: N images, C channels in, K out, (H, W) cells in, (H', W') out, (kh, kw) of the kernel.

Libraries make the cells of a row one after the other, and multiply the zeros beside the grid. Where
a last stage sees small images, or small pooled regions, the same work in one product takes a
quarter to a half of the time. Which product, the grid says:

- AllPairs: (N, H x W x C) with a matrix of all pairs of cells, where that is less work: the cells
  are read where they lie.
- Windows: (N x H' x W', kh x kw x C) with the kernel itself: what each result reads, side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.convolution_gradients import torchs_are_wanted, torchs_gradients

ALL = slice(None)

FEWEST = 32
"""Images for which a matrix is made at each call; for fewer it takes as long as it saves."""

_FEW_CELLS = 4
"""Of a result that is made from windows."""


@dataclass(frozen=True)
class SmallGrid(ABC):
    """How a kernel reads a small grid; all are (vertical, horizontal).

    cells: (H, W). kernel: (kh, kw). stride, padding: of the convolution.
    """

    cells: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    @property
    def out_cells(self) -> tuple[int, int]:
        """(H', W')."""
        sizes = zip(self.cells, self.kernel, self.stride, self.padding, strict=True)
        height, width = ((n + 2 * pad - k) // step + 1 for n, k, step, pad in sizes)
        return height, width

    @abstractmethod
    def rows(self, x: Tensor) -> Tensor:
        """Return what is multiplied, of (N, C, H, W)."""

    @abstractmethod
    def matrix(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return by what, of `dtype`, from a kernel (K, C, kh, kw): F.linear of both gives
        H' x W' x K numbers an image, cell by cell.
        """

    @abstractmethod
    def input_gradient(self, of_rows: Tensor) -> Tensor:
        """Return the gradient (N, C, H, W) of the grid from that of `rows`."""

    @abstractmethod
    def kernel_gradient(self, of_result: Tensor, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the gradient (K, C, kh, kw) of the kernel, channels last, in float32 at least.

        of_result: (N, H' x W' x K), of the result. rows: as above. shape: (K, C, kh, kw).
        """

    def result(self, product: Tensor, num_out: int) -> Tensor:
        """Return (N, K, H', W'), channels last, of F.linear's result; num_out: K."""
        return product.view(-1, *self.out_cells, num_out).permute(0, 3, 1, 2)


class AllPairs(SmallGrid):
    """Every result reads all cells, those that its kernel does not reach with a weight of 0."""

    def rows(self, x: Tensor) -> Tensor:
        """Return (N, H x W x C); a view of an `x` that is channels last."""
        return x.permute(0, 2, 3, 1).reshape(len(x), -1)

    def matrix(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return (H' x W' x K, H x W x C)."""
        num_out, num_in = weight.shape[:2]
        made = weight.new_zeros((*self.out_cells, num_out, *self.cells, num_in), dtype=dtype)
        taps_first = weight.permute(0, 2, 3, 1)  # (K, C, kh, kw) -> (K, kh, kw, C)
        for (y, x), inside, taps in self._windows():
            made[(y, x, ALL, *inside)] = taps_first[(ALL, *taps)]
        return made.view(-1, self.cells[0] * self.cells[1] * num_in)

    def input_gradient(self, of_rows: Tensor) -> Tensor:
        """Return (N, C, H, W) for (N, H x W x C); a view."""
        return of_rows.view(len(of_rows), *self.cells, -1).permute(0, 3, 1, 2)

    def kernel_gradient(self, of_result: Tensor, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """Return it by a product for each tap, over all cells that the tap reads."""
        num_out, num_in, *kernel = shape
        above = of_result.view(-1, *self.out_cells, num_out)
        below = rows.view(-1, *self.cells, num_in)
        dtype = torch.promote_types(rows.dtype, torch.float32)
        made = rows.new_empty((num_out, *kernel, num_in), dtype=dtype)
        for y in range(kernel[0]):
            for x in range(kernel[1]):
                down, across = self._read_by(0, y), self._read_by(1, x)
                of_cells = above[:, down[0], across[0]].reshape(-1, num_out)
                cells = below[:, down[1], across[1]].reshape(-1, num_in)
                made[:, y, x] = of_cells.T @ cells if len(cells) else 0.0
        return made.permute(0, 3, 1, 2)  # (K, kh, kw, C) -> (K, C, kh, kw)

    def _windows(self) -> Iterator[tuple[tuple[int, int], tuple[slice, ...], tuple[slice, ...]]]:
        """For each cell (y, x) of the result the cells of the grid that it reads, and the taps of
        the kernel that read them, each as two slices.
        """
        height, width = self.out_cells
        for y in range(height):
            for x in range(width):
                rows, columns = self._read_for(0, y), self._read_for(1, x)
                yield (y, x), (rows[0], columns[0]), (rows[1], columns[1])

    def _read_for(self, axis: int, n: int) -> tuple[slice, slice]:
        first = n * self.stride[axis] - self.padding[axis]  # that the kernel would read
        low, high = max(0, first), min(self.cells[axis], first + self.kernel[axis])
        high = max(low, high)
        return slice(low, high), slice(low - first, high - first)

    def _read_by(self, axis: int, tap: int) -> tuple[slice, slice]:
        """The cells of the result for which a tap reads a cell of the grid, and these cells."""
        step, first = self.stride[axis], tap - self.padding[axis]  # that it reads for the first
        low = max(0, -(first // step))
        high = min(self.out_cells[axis], -((first - self.cells[axis]) // step))
        high = max(low, high)
        return slice(low, high), slice(low * step + first, high * step + first, step)


class Windows(SmallGrid):
    """Every result reads a window of the grid with zeros around it."""

    def rows(self, x: Tensor) -> Tensor:
        """Return (N x H' x W', kh x kw x C)."""
        (down, across), (height, width) = self.padding, self.kernel
        padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, across, across, down, down))
        windows = padded.unfold(1, height, self.stride[0]).unfold(2, width, self.stride[1])
        # (N, H', W', C, kh, kw) -> (N x H' x W', kh x kw x C)
        return windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, height * width * x.shape[1])

    def matrix(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return (K, kh x kw x C)."""
        return weight.permute(0, 2, 3, 1).reshape(len(weight), -1).to(dtype)

    def input_gradient(self, of_rows: Tensor) -> Tensor:
        """Return (N, C, H, W) for (N x H' x W', kh x kw x C)."""
        channels = of_rows.shape[1] // (self.kernel[0] * self.kernel[1])
        of_windows = of_rows.view(-1, *self.out_cells, *self.kernel, channels)
        (down, across), (height, width) = self.padding, self.cells
        padded = of_rows.new_zeros(
            (len(of_windows), height + 2 * down, width + 2 * across, channels)
        )
        for y in range(self.kernel[0]):
            for x in range(self.kernel[1]):
                ends = (
                    first + (number - 1) * step + 1
                    for first, number, step in zip((y, x), self.out_cells, self.stride, strict=True)
                )
                rows, columns = map(slice, (y, x), ends, self.stride)
                padded[:, rows, columns] += of_windows[:, :, :, y, x]
        inside = padded[:, down : down + height, across : across + width]
        return inside.permute(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)

    def kernel_gradient(self, of_result: Tensor, rows: Tensor, shape: Sequence[int]) -> Tensor:
        """Return it by one product."""
        num_out, num_in, *kernel = shape
        made = of_result.reshape(-1, num_out).T @ rows
        made = made.to(torch.promote_types(rows.dtype, torch.float32))
        if kernel == [1, 1]:
            return made.view(tuple(shape))
        return made.view(num_out, *kernel, num_in).permute(0, 3, 1, 2)


def small_grid_of(
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
) -> SmallGrid | None:
    """Return how a convolution, set as nn.Conv2d is, reads maps of `shape` (N, C, H, W): AllPairs
    where it has at least two taps for every cell of them, Windows where its results are few; None
    for others, which are a library's, and with gaps or groups.
    """
    if isinstance(padding, str) or tuple(dilation) != (1, 1) or groups != 1:
        return None
    height, width = shape[2:]
    taps = kernel[0] * kernel[1]
    kind = AllPairs if 2 * height * width <= taps else Windows
    grid = kind((height, width), tuple(kernel), tuple(stride), tuple(padding))
    results = grid.out_cells[0] * grid.out_cells[1]
    if height * width == 0 or min(grid.out_cells) < 1:
        return None
    is_plain_product = taps == 1 and grid.stride == (1, 1)
    if results > (_FEW_CELLS if kind is Windows else taps) or is_plain_product:
        return None
    return grid


def small_grid_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, grid: SmallGrid) -> Tensor:
    """Return the convolution of `x`, (N, C, H, W), with a weight (K, C, kh, kw) and bias (K,), in
    the dtype of `x`, as `small_grid_of` has it read.
    """
    y = grid.result(_SmallGridConv2d.apply(x, weight, grid), len(weight))
    return y if bias is None else y + bias.to(y.dtype).view(-1, 1, 1)


class _SmallGridConv2d(torch.autograd.Function):
    """F.linear of the rows and the matrix of a grid, of the dtype of `x`, (N, C, H, W), for a
    weight (K, C, kh, kw).
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, grid: SmallGrid
    ) -> Tensor:
        rows, matrix = grid.rows(x), grid.matrix(weight, x.dtype)
        ctx.save_for_backward(x, weight, rows, matrix)
        ctx.grid = grid
        return F.linear(rows, matrix)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, of_product: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, rows, matrix = ctx.saved_tensors
        of_x = of_weight = None
        with torch.autocast("cpu", enabled=False):  # in the precision of the forward
            if torchs_are_wanted(of_product):
                of_result = ctx.grid.result(of_product, len(weight))
                how = ctx.grid.stride, ctx.grid.padding, ctx.needs_input_grad[:2]
                return *torchs_gradients(of_result, x, weight, *how), None
            of_product = of_product.contiguous()
            if ctx.needs_input_grad[0]:
                of_x = ctx.grid.input_gradient(of_product @ matrix)
            if ctx.needs_input_grad[1]:
                of_weight = ctx.grid.kernel_gradient(of_product, rows, weight.shape)
                of_weight = of_weight.to(weight.dtype)
        return of_x, of_weight, None

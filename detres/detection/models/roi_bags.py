"""Which cells of a map the bins of regions read: pooling as gathering rows of a map that is laid
out channels last, several times faster on a CPU than torchvision's operators, whose arithmetic it
is.

Shapes: N images, C channels, (H, W) cells of the map, R regions, S x S bins of each, T cells that a
bin reads. A map is a table of N * H * W rows of C values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Bags:
    """The bins of some regions that read equally many cells.

    rows: (R',) int64, which of the regions; None: all of them, in their order. index: (R', S, S, T)
    int64, rows of the table. weight: (R', S, S, T), what they are multiplied by; of a maximum
    (R', S, S, 1), 0 for a bin without cells, else 1.
    """

    rows: Tensor | None
    index: Tensor
    weight: Tensor

    def every(self, step: int) -> Bags:
        """Return the bags of every `step`-th bin of a row and of a column."""
        if step == 1:
            return self
        index, weight = (each[:, ::step, ::step] for each in (self.index, self.weight))
        return Bags(self.rows, index.contiguous(), weight.contiguous())


@dataclass(frozen=True)
class RegionBags:
    """The bins of R regions of one map: what they read, and whether its weighted sum or its maximum
    is what comes out.
    """

    parts: tuple[Bags, ...]
    num_regions: int
    linear: bool

    def every(self, step: int) -> RegionBags:
        """Return these of every `step`-th bin of a row and of a column, from the first on."""
        parts = tuple(part.every(step) for part in self.parts)
        return RegionBags(parts, self.num_regions, self.linear)

    def pool(self, feature: Tensor) -> Tensor:
        """Return (R, C, S, S), channels last in memory, of a map (N, C, H, W); 0 where a bin has no
        cell. No gradient to the regions.
        """
        table = _table(feature)
        if self.linear:
            pooled = self._sums(table)
        else:
            found = [_Maxima.apply(table, part.index, part.weight) for part in self.parts]
            rows = [part.rows for part in self.parts]
            pooled = found[0] if rows[0] is None else _Placed.apply(rows, *found)
        return pooled.permute(0, 3, 1, 2).to(feature.dtype)

    def _sums(self, table: Tensor) -> Tensor:
        """Weighted sums of rows, (R, S, S, C)."""
        whole = self.parts[0]
        _, size, _, taps = whole.index.shape
        bins = size * size
        if whole.rows is None:
            index, weight = (each.reshape(-1, taps) for each in (whole.index, whole.weight))
            first = None
        else:  # all bins one after the other, however much they read
            counts = whole.index.new_empty((self.num_regions, 1))
            for part in self.parts:
                counts[part.rows] = part.index.shape[3]
            first = bins * (counts.cumsum(0) - counts)
            index = whole.index.new_empty(sum(part.index.numel() for part in self.parts))
            weight = whole.weight.new_empty(len(index))
            for part in self.parts:
                each = torch.arange(part.index[0].numel(), device=index.device)
                places = first[part.rows] + each  # (R', S * S * T)
                index[places], weight[places] = part.index.flatten(1), part.weight.flatten(1)
            first = (first + counts * torch.arange(bins, device=index.device)).flatten()
        weight = weight.to(table.dtype)
        pooled = F.embedding_bag(index, table, first, per_sample_weights=weight, mode="sum")
        return pooled.view(self.num_regions, size, size, table.shape[1])


def _table(feature: Tensor) -> Tensor:
    """A map (N, C, H, W) as rows of its channels, (N * H * W, C); no copy of one that is channels
    last. Where there is a gradient, a bf16 one is widened, for it is a sum over all regions.
    """
    table = feature.permute(0, 2, 3, 1).reshape(-1, feature.shape[1])
    if feature.requires_grad:
        table = table.to(torch.promote_types(feature.dtype, torch.float32))
    return table.contiguous()


class _Placed(torch.autograd.Function):
    """Parts (R', S, S, C) as one (R, S, S, C), each in its rows, (R',); together these are all
    rows, each once, so that neither way any number is written twice.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, rows: list[Tensor], *parts: Tensor
    ) -> Tensor:
        """Return it."""
        ctx.rows = rows
        placed = parts[0].new_empty((sum(map(len, rows)), *parts[0].shape[1:]))
        flat = placed.flatten(1)
        for part, where in zip(parts, rows, strict=True):
            flat.index_copy_(0, where, part.flatten(1))
        return placed

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of the parts."""
        return None, *(grad.index_select(0, where) for where in ctx.rows)


_CHUNK = 1024
"""Bins whose maxima are taken together, so that they stay in the cache."""


class _Maxima(torch.autograd.Function):
    """(R', S, S, C), the greatest of rows, value by value; the gradient goes to the first of equal
    ones, as in torchvision's operator.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, table: Tensor, index: Tensor, weight: Tensor
    ) -> Tensor:
        """Return the maxima."""
        bags = index.reshape(-1, index.shape[-1])  # (bins, T)
        found = table.new_empty((len(bags), table.shape[1]))
        learns = ctx.needs_input_grad[0]
        counted = torch.uint8 if bags.shape[1] <= 256 else torch.int32  # smaller, or enough
        best = torch.zeros(found.shape if learns else (0,), dtype=counted)
        for start in range(0, len(bags), _CHUNK):
            chunk, into = bags[start : start + _CHUNK], found[start : start + _CHUNK]
            torch.index_select(table, 0, chunk[:, 0], out=into)
            for tap in range(1, chunk.shape[1]):
                other = table.index_select(0, chunk[:, tap])
                if learns:
                    best[start : start + _CHUNK].masked_fill_(other > into, tap)
                torch.maximum(into, other, out=into)
        empty = torch.nonzero(weight.reshape(-1) == 0).flatten()
        found[empty] = 0.0
        ctx.save_for_backward(bags, best, empty)
        ctx.num_rows = len(table)
        return found.view(*index.shape[:-1], table.shape[1])

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradient of the table."""
        bags, best, empty = ctx.saved_tensors
        channels = grad.shape[-1]
        grad = grad.reshape(-1, channels)
        if len(empty):
            grad = grad.index_fill(0, empty, 0.0)
        total = grad.new_zeros(ctx.num_rows * channels)
        columns = torch.arange(channels)
        for start in range(0, len(bags), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            rows = bags[chunk].gather(1, best[chunk].long())  # of each value the row it is from
            total.index_add_(0, (rows * channels + columns).view(-1), grad[chunk].reshape(-1))
        return total.view(-1, channels), None, None


def align_bags(
    rois: Tensor,
    shape: tuple[int, int, int],
    *,
    output_size: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> RegionBags:
    """Return what torchvision.ops.roi_align reads of a map of `shape` (N, H, W) for rois (R, 5):
    image index, then xyxy px; R may be 0.

    sampling_ratio: samples along each side of a bin; 0: as many as the bin is cells wide, rounded
    up. sizes: N (h, w) cells that each image fills, beyond which nothing is read; None: all of
    them. Every bin is a fixed combination of a few cells. Samples at most a cell apart read one
    cell more than they are, in a row, instead of two each.
    """
    boxes = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    sides = boxes[:, 2:] - boxes[:, :2]
    if not aligned:
        sides = sides.clamp(min=1.0)  # as the operator: a RoI is at least one cell
    first_row, limits = _places(rois, shape, sizes)
    if sampling_ratio > 0:
        samples = torch.full_like(sides, sampling_ratio, dtype=torch.int64)
    else:
        samples = (sides / output_size).ceil().long()  # (R, 2); 0 for a box without extent
    # of a region inside out the samples go backwards
    dense = (sides >= 0) & (sides <= output_size * samples)
    kinds = torch.cat((samples, dense.long()), dim=1).clamp(min=0)  # (R, 4)

    def of_rows(rows: Tensor | slice, kind: list[int]) -> tuple[Tensor, Tensor]:
        """Index and weight (R', S, S, T) of some RoIs with so many samples in x and in y."""
        axes = [
            _taps(
                boxes[rows, axis],
                sides[rows, axis],
                output_size,
                kind[axis],
                limits[rows, 1 - axis, None],
                dense=bool(kind[2 + axis]),
            )
            for axis in (0, 1)
        ]
        # (R', S, Tx), (R', S, Ty), the cells that a bin reads along one axis
        (columns, column_weights), (lines, line_weights) = axes
        index = _cells(lines + first_row[rows, None, None], columns, shape)
        weight = line_weights[:, :, None, :, None] * column_weights[:, None, :, None, :]
        return index, weight.flatten(3)

    return _by_kind(kinds, of_rows, output_size, linear=True)


def max_bags(
    rois: Tensor,
    shape: tuple[int, int, int],
    *,
    output_size: int,
    spatial_scale: float,
    sizes: Sequence[tuple[int, int]] | None = None,
) -> RegionBags:
    """Return what torchvision.ops.roi_pool reads of a map of `shape` (N, H, W) for rois (R, 5):
    image index, then xyxy px; R may be 0. sizes: see align_bags.

    Corners are rounded to cells, both of which belong to the region, and a bin is all cells that it
    touches (Fast R-CNN's layer).
    """
    _, height, width = shape
    corners = (rois[:, 1:] * spatial_scale).double()
    corners = (corners.sign() * (corners.abs() + 0.5).floor()).long()  # halves away from 0, as C
    first_row, limits = _places(rois, shape, sizes)
    spans = [
        _bins(corners[:, axis], corners[:, 2 + axis], output_size, limits[:, 1 - axis], rois.dtype)
        for axis in (0, 1)
    ]
    longest = [(end - start).amax(dim=1).clamp(min=1) for start, end in spans]
    kinds = torch.stack(longest, dim=1)  # (R, 2): cells of the longest bin in x and in y

    def of_rows(rows: Tensor | slice, kind: list[int]) -> tuple[Tensor, Tensor]:
        """Index (R', S, S, T) and weight (R', S, S, 1) of RoIs whose bins are at most so long."""
        axes, filled_bins = [], []
        for (start, end), length in zip(spans, kind, strict=True):
            start, end = start[rows, :, None], end[rows, :, None]  # (R', S, 1)
            step = torch.arange(length, device=rois.device)
            # a shorter bin reads its last cell again, one without cells any
            axes.append((start + step).minimum(end - 1).maximum(start.clamp(min=0)))
            filled_bins.append(end > start)
        columns, lines = axes
        columns = columns.clamp(max=width - 1)
        lines = lines.clamp(max=height - 1) + first_row[rows, None, None]
        index = _cells(lines, columns, shape)
        has_cells = filled_bins[1] & filled_bins[0].transpose(1, 2)  # (R', S, S)
        return index, has_cells[..., None].to(rois.dtype)

    return _by_kind(kinds, of_rows, output_size, linear=False)


def _places(
    rois: Tensor, shape: tuple[int, int, int], sizes: Sequence[tuple[int, int]] | None
) -> tuple[Tensor, Tensor]:
    """Where the images of RoIs begin, (R,), among the lines of all maps, and how many cells (h, w)
    of theirs they fill, (R, 2).
    """
    images, height, width = shape
    of_image = rois[:, 0].long()
    filled = [(height, width)] * images if sizes is None else sizes
    limits = torch.tensor(filled, device=rois.device).view(-1, 2)  # (N, 2)
    return of_image * height, limits[of_image]


def _cells(lines: Tensor, columns: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Which cells of all maps every bin reads, (R', S, S, Ty * Tx): those of `lines` (R', S, Ty),
    counted over all maps, in `columns` (R', S, Tx).
    """
    first = lines * shape[2]  # of a line
    return (first[:, :, None, :, None] + columns[:, None, :, None, :]).flatten(3)


def _by_kind(kinds, of_rows, output_size: int, *, linear: bool) -> RegionBags:
    """Regions, each of a kind (R, ...) int64, one part a kind: what `of_rows` says of those."""
    num = len(kinds)
    if num == 0:
        shape = (0, output_size, output_size, 1)
        nothing = Bags(None, kinds.new_zeros(shape), kinds.new_zeros(shape).float())
        return RegionBags((nothing,), 0, linear)
    found, which = kinds.unique(dim=0, return_inverse=True)
    if len(found) == 1 and found[0, :2].min() > 0:
        return RegionBags((Bags(None, *of_rows(slice(None), found[0].tolist())),), num, linear)
    parts = []
    for number, kind in enumerate(found.tolist()):
        rows = torch.nonzero(which == number).flatten()
        parts.append(Bags(rows, *of_rows(rows, kind)))
    return RegionBags(tuple(parts), num, linear)


def _bins(
    start: Tensor, end: Tensor, bins: int, limit: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return first cells and ends (R, S) of the bins along one axis, both within the map, of
    regions from cell `start` (R,) to `end` (R,) inclusive; limit (R,): the cells there are.
    """
    length = (end - start + 1).clamp(min=1).to(dtype) / bins
    step = torch.arange(bins + 1, device=start.device, dtype=dtype)
    first = start[:, None] + (step[:-1] * length[:, None]).floor().long()
    beyond = start[:, None] + (step[1:] * length[:, None]).ceil().long()
    limit = limit[:, None]
    return first.clamp(min=0).minimum(limit), beyond.clamp(min=0).minimum(limit)


def _taps(
    start: Tensor, side: Tensor, bins: int, samples: int, limits: Tensor, *, dense: bool
) -> tuple[Tensor, Tensor]:
    """Return the cells (R, S, T) that each bin reads along one axis and their weights, T = 2 *
    samples; limits (R, 1): the cells there are.

    dense: the samples are at most a cell apart, so that they read `samples` + 1 cells in a row,
    T of them.
    """
    if samples == 0:
        nothing = start.new_zeros((len(start), bins, 1))
        return nothing.long(), nothing
    offset = (torch.arange(bins * samples, device=start.device, dtype=start.dtype) + 0.5) / samples
    point = start[:, None] + side[:, None] / bins * offset  # (R, S * samples)
    outside = (point < -1) | (point > limits)
    point = point.clamp(min=0).minimum((limits - 1).to(point))
    low = point.floor()
    fraction = point - low
    low = low.long()
    cells = torch.stack((low, (low + 1).minimum(limits - 1)), dim=-1)
    weights = torch.stack((1 - fraction, fraction), dim=-1) / samples
    weights = weights.masked_fill(outside[..., None], 0.0)
    cells, weights = cells.view(-1, bins, 2 * samples), weights.view(-1, bins, 2 * samples)
    if not dense:
        return cells, weights
    first = cells[..., :1]
    summed = weights.new_zeros((*cells.shape[:2], samples + 1))
    # a sample that rounding puts a cell too far has next to no weight there
    summed.scatter_add_(2, (cells - first).clamp(max=samples), weights)
    row = first + torch.arange(samples + 1, device=cells.device)
    return row.minimum(limits[..., None] - 1), summed

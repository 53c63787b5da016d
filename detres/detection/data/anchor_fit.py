"""How well anchors fit the boxes of a data set, and the fewest that fit them.

Shapes: N images, B boxes to learn from at the size that training gives them, A anchors a cell. A
box is covered when some anchor has an IoU of at least 0.5 with it. Two shares say how many are:
`by_shape` with the anchor laid on the box's own centre, which sizes and aspect ratios decide, and
`on_grid` with the anchor at the best of the cells that the feature map has, which is what the RPN
sees: boxes smaller than about twice the stride lie between the cells, and no anchor reaches them
there.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from detres.detection.annotations import Annotations
from detres.detection.config import AnchorConfig, InputConfig, ModelConfig
from detres.detection.models.anchors import AnchorStyle, cell_anchors
from detres.images.decode import read_size
from detres.images.resize import resized_size

IOU = 0.5
ENOUGH = 0.98
"""The share of the boxes that anchors should cover."""

STRIDE = 16
"""Pixels a cell, of the one map of the layout c4."""

PYRAMID_STRIDES = (4, 8, 16, 32, 64)
"""Pixels a cell, of the levels of the layout fpn, p2 to p6."""

SIZES = (8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724, 1024)
"""px, each sqrt(2) times the one before: what `fewest_anchors` chooses from."""

SMALLEST_SIZES = (8, 11, 16, 23, 32)
"""px, of the finest level of a pyramid: what `fewest_anchors` chooses from."""

ASPECT_RATIOS = (0.25, 0.33, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 4.0)

LARGER_SIDES = (128, 160, 192, 224, 256, 300, 320, 360, 400, 480, 540, 600, 700, 800)
"""px: the short sides to try where small boxes ask for larger images."""

_WORTH_IT = 0.005
"""Of the boxes: that many more other anchors must cover to be named."""

_SAMPLED = 4096
"""Boxes by which combinations are first told apart."""

_MORE_OF_A_SAMPLE = (0.0, 0.002, 0.005, 0.01)
"""Of the boxes of a sample: so many more are asked for, in turn, until all boxes are covered as
asked for, too.
"""

MapSize = Callable[[tuple[int, int]], tuple[int, int]]
"""(h, w) px of an image -> (h', w') cells of its map."""


@dataclass(frozen=True)
class ScaledBoxes:
    """Boxes to learn from as training sees them: boxes (B, 4) float64 xyxy px of the resized image,
    cells (B, 2) int64 (h', w') of its map, sizes (B, 2) int64 (h, w) px of it.
    """

    boxes: np.ndarray
    cells: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    def sample(self, most: int) -> ScaledBoxes:
        """Return at most `most` of them, in their order, always the same ones."""
        rows = np.sort(np.random.default_rng(0).permutation(len(self))[:most])
        return ScaledBoxes(self.boxes[rows], self.cells[rows], self.sizes[rows])


@dataclass(frozen=True)
class AnchorFit:
    """The share of `num_boxes` boxes that some anchor covers, 0..1 each; 1 where there are none."""

    num_boxes: int
    on_grid: float
    by_shape: float


def cells_of(size: tuple[int, int]) -> tuple[int, int]:
    """Return the (h', w') cells of stride 16 of an image of `size` (h, w) px, as padded
    convolutions have them.
    """
    return -(-size[0] // STRIDE), -(-size[1] // STRIDE)


def boxes_in_training(
    annotations: Annotations, given: InputConfig, map_size: MapSize = cells_of
) -> ScaledBoxes:
    """Return the boxes to learn from, neither crowd nor difficult, cut to their images, at the
    sizes that the resize rules give each image, once for every short side that training draws.

    The size of an image whose annotation does not state it is read from its file; its boxes are
    left out where that cannot be read.
    """
    counts = np.diff(annotations.offsets)
    image_of = np.repeat(np.arange(len(annotations)), counts)
    learnt = ~(annotations.crowd | annotations.difficult)
    stated = _known_sizes(annotations, np.unique(image_of[learnt]))
    limits = np.tile(stated[image_of][:, ::-1], 2)  # (M, 4): w, h, w, h
    inside = np.clip(annotations.boxes, 0, limits)
    learnt &= (inside[:, 2:] > inside[:, :2]).all(axis=1)
    old, row_of = np.unique(stated[image_of[learnt]], axis=0, return_inverse=True)
    row_of = row_of.reshape(-1)
    boxes, cells, sizes = [np.zeros((0, 4))], [np.zeros((0, 2), np.int64)], []
    sizes.append(cells[0])
    for short_side in given.train_short_sides or (given.short_side,):
        new = np.array(
            [
                resized_size(*size, short_side=short_side, max_side=given.max_side)
                for size in old.tolist()
            ],
            np.int64,
        ).reshape(-1, 2)
        factors = (new / old)[row_of][:, ::-1]  # (B, 2), of x and of y
        boxes.append(inside[learnt] * np.tile(factors, 2))
        maps = np.array([map_size(tuple(size)) for size in new.tolist()], np.int64)
        cells.append(maps.reshape(-1, 2)[row_of])
        sizes.append(new[row_of])
    return ScaledBoxes(np.concatenate(boxes), np.concatenate(cells), np.concatenate(sizes))


def _known_sizes(annotations: Annotations, rows: np.ndarray) -> np.ndarray:
    """The (h, w) of every image (N, 2) int64; what is not stated of `rows`, from their files."""
    sizes = annotations.image_sizes.astype(np.int64)
    for row in rows[(sizes[rows] <= 0).any(axis=1)].tolist():
        try:
            sizes[row] = read_size(annotations.image_files[row])
        except (ValueError, OSError):
            sizes[row] = 0
    return sizes


def best_ious(
    scaled: ScaledBoxes,
    anchors: np.ndarray,
    *,
    centred: bool = False,
    inside: bool = False,
    stride: int = STRIDE,
) -> np.ndarray:
    """Return the IoU (A, B) float64 of every box with each anchor where that fits it best.

    anchors: (A, 4) xyxy px of the cell at the origin. centred: on the box's centre; else at the
    cell of the map with the greatest IoU, which is the nearest in x and in y. inside: only where
    the whole anchor is within the image, 0 where it nowhere is. stride: px a cell of the map.
    """
    cells = scaled.cells if stride == STRIDE else -(-scaled.sizes // stride)
    wide, high = (scaled.boxes[:, 2:] - scaled.boxes[:, :2]).T
    middle = (scaled.boxes[:, :2] + scaled.boxes[:, 2:]) / 2
    found = np.zeros((len(anchors), len(scaled)))
    for row, anchor in enumerate(anchors.astype(np.float64)):
        sides, centre = anchor[2:] - anchor[:2], (anchor[:2] + anchor[2:]) / 2
        shared = []
        for axis, box_side in enumerate((wide, high)):
            off = np.zeros(len(scaled))
            fits = np.ones(len(scaled), bool)
            if not centred:
                first, last = np.zeros(len(scaled)), cells[:, 1 - axis] - 1.0
                if inside:
                    first = np.maximum(first, np.ceil(-anchor[axis] / stride))
                    edge = scaled.sizes[:, 1 - axis] - anchor[2 + axis]
                    last = np.minimum(last, np.floor(edge / stride))
                    fits = first <= last
                cell = np.rint((middle[:, axis] - centre[axis]) / stride)
                cell = np.clip(cell, first, np.maximum(first, last))
                off = np.abs(middle[:, axis] - centre[axis] - cell * stride)
            overlap = np.minimum((box_side + sides[axis]) / 2 - off, sides[axis])
            shared.append(np.clip(np.minimum(overlap, box_side), 0, None) * fits)
        common = shared[0] * shared[1]
        found[row] = common / (wide * high + sides.prod() - common)
    return found


def fit_of(
    scaled: ScaledBoxes, config: AnchorConfig, *, inside: bool = False, pyramid: bool = False
) -> AnchorFit:
    """Return how many of the boxes the anchors of `config` cover; inside: as train_anchors "inside"
    has it, only by anchors within the image; pyramid: one size on each level of a feature pyramid.
    """
    if len(scaled) == 0:
        return AnchorFit(0, 1.0, 1.0)
    best = _best_of_two(scaled, config, inside, pyramid)
    return AnchorFit(len(scaled), *(best >= IOU).mean(axis=1).tolist())


def _best_of_two(
    scaled: ScaledBoxes, config: AnchorConfig, inside: bool, pyramid: bool
) -> np.ndarray:
    """The best IoU of every box with the anchors of `config`, on the grid and by shape, (2, B)."""
    maps = [(config.sizes, STRIDE)]
    if pyramid:
        levels = zip(config.sizes, PYRAMID_STRIDES, strict=True)
        maps = [((size,), stride) for size, stride in levels]
    best = np.zeros((2, len(scaled)))
    for sizes, stride in maps:
        anchors = cell_anchors(sizes, config.aspect_ratios, stride=stride, style=config.style)
        for row, how in enumerate(({"inside": inside}, {"centred": True})):
            ious = best_ious(scaled, anchors.numpy(), stride=stride, **how)
            best[row] = np.maximum(best[row], ious.max(axis=0))
    return best


@dataclass(frozen=True)
class AnchorChoice:
    """What anchors are chosen from: each member of `sizes` (px) and of `aspect_ratios` is taken
    with all its values or not at all.

    pyramid: of a feature pyramid: one member of `sizes` is taken, a size for each of its levels.
    """

    sizes: tuple[tuple[float, ...], ...]
    aspect_ratios: tuple[tuple[float, ...], ...]
    pyramid: bool = False

    @classmethod
    def of(
        cls,
        sizes: Sequence[float] | None = None,
        aspect_ratios: Sequence[float] | None = None,
        *,
        pyramid: bool = False,
    ) -> AnchorChoice:
        """Return the choice where these sizes, or aspect ratios, are given; None: among SIZES, or
        ASPECT_RATIOS; of a pyramid, each level's twice the one below, as Lin et al. have them.
        """
        some = [(one,) for one in SIZES]
        if pyramid:
            levels = range(len(PYRAMID_STRIDES))
            some = [tuple(one * 2**level for level in levels) for one in SMALLEST_SIZES]
        ratios = [(one,) for one in ASPECT_RATIOS]
        return cls(
            tuple(some) if sizes is None else (tuple(sizes),),
            tuple(ratios) if aspect_ratios is None else (tuple(aspect_ratios),),
            pyramid,
        )

    def anchors(
        self, style: AnchorStyle, sizes: Iterable[int], aspect_ratios: Iterable[int]
    ) -> AnchorConfig:
        """Return the anchors of some members of each, by their rows."""
        return AnchorConfig(
            sizes=[size for row in sizes for size in self.sizes[row]],
            aspect_ratios=[ratio for row in aspect_ratios for ratio in self.aspect_ratios[row]],
            style=style,
        )

    def all_anchors(self, style: AnchorStyle) -> list[AnchorConfig]:
        """Return what no choice has more of: all members together; of a pyramid, every member of
        `sizes` with all aspect ratios.
        """
        rows, ratios = range(len(self.sizes)), range(len(self.aspect_ratios))
        taken = [[row] for row in rows] if self.pyramid else [rows]
        return [self.anchors(style, sizes, ratios) for sizes in taken]


ANY_ANCHORS = AnchorChoice.of()


def reachable(
    scaled: ScaledBoxes,
    *,
    style: AnchorStyle,
    inside: bool = False,
    among: AnchorChoice = ANY_ANCHORS,
) -> AnchorFit:
    """Return how many of the boxes all anchors of `among` together cover, of a pyramid those of the
    best sizes: what no choice among them exceeds at this scale. Of many boxes, told by a sample of
    them.
    """
    sample = scaled.sample(_SAMPLED)
    fits = [
        fit_of(sample, anchors, inside=inside, pyramid=among.pyramid)
        for anchors in among.all_anchors(style)
    ]
    return max(fits, key=lambda fit: (fit.on_grid, fit.by_shape))


def fewest_anchors(
    scaled: ScaledBoxes,
    *,
    style: AnchorStyle,
    inside: bool = False,
    among: AnchorChoice = ANY_ANCHORS,
) -> AnchorConfig:
    """Return the fewest anchors, sizes x aspect ratios chosen `among` what is given, that cover
    ENOUGH of the boxes on the grid and by shape; of equally few, those with the highest mean IoU.

    Where all of them together cover less, at stride 16 the small boxes, ENOUGH of what they cover
    is asked for. Deterministic. Without boxes: one of the middle of each.
    """
    if len(scaled) == 0:
        return among.anchors(style, [len(among.sizes) // 2], [len(among.aspect_ratios) // 2])
    most = reachable(scaled, style=style, inside=inside, among=among)
    on_grid, by_shape = (
        ENOUGH if share >= ENOUGH else ENOUGH * share for share in (most.on_grid, most.by_shape)
    )
    asked = AnchorFit(len(scaled), on_grid, by_shape)
    sample = scaled.sample(_SAMPLED)
    for more in _MORE_OF_A_SAMPLE:
        of_sample = AnchorFit(
            len(sample), min(on_grid + more, most.on_grid), min(by_shape + more, most.by_shape)
        )
        config = _fewest(sample, of_sample, style, inside, among)
        found = fit_of(scaled, config, inside=inside, pyramid=among.pyramid)
        if found.on_grid >= asked.on_grid and found.by_shape >= asked.by_shape:
            break
    return config


def describe_fit(
    annotations: Annotations, model: ModelConfig, map_size: MapSize = cells_of
) -> list[str]:
    """Return a line on how many boxes the anchors of `model` cover, and a second one, of the
    settings that would cover more, where that is less than ENOUGH; none without boxes.
    """
    inside = model.rpn.train_anchors == "inside"
    scaled = boxes_in_training(annotations, model.input, map_size)
    if len(scaled) == 0:
        return []
    if model.layout == "fpn":
        fit = fit_of(scaled, model.anchors, inside=inside, pyramid=True)
        return [
            f"anchors: {len(model.anchors.aspect_ratios)} a cell of every level; {fit.on_grid:.1%} "
            f"of {fit.num_boxes} boxes have one with an IoU of {IOU:g} or more ({fit.by_shape:.1%} "
            "but for the px between cells)"
        ]
    fit = fit_of(scaled, model.anchors, inside=inside)
    num_anchors = len(model.anchors.sizes) * len(model.anchors.aspect_ratios)
    lines = [
        f"anchors: {num_anchors} a cell; {fit.on_grid:.1%} of {fit.num_boxes} boxes have one with "
        f"an IoU of {IOU:g} or more ({fit.by_shape:.1%} but for the {STRIDE} px between cells)"
    ]
    if fit.on_grid < ENOUGH:
        mended = _mend(annotations, model, scaled, fit, map_size)
        lines.append(f"note: boxes without such an anchor are hard to learn: {mended}")
    return lines


def _mend(
    annotations: Annotations,
    model: ModelConfig,
    scaled: ScaledBoxes,
    fit: AnchorFit,
    map_size: MapSize,
) -> str:
    """The settings under which more boxes are covered, in words."""
    inside, style = model.rpn.train_anchors == "inside", model.anchors.style
    better = fewest_anchors(scaled, style=style, inside=inside)
    share = fit_of(scaled, better, inside=inside).on_grid
    said = []
    if share > fit.on_grid + _WORTH_IT:
        said.append(f"{_as_settings(better)} cover {share:.1%}")
    if share >= ENOUGH:
        return said[0]
    own = model.input
    for side in LARGER_SIDES:
        if side <= own.short_side:
            continue
        cap = max(own.max_side, round(side * own.max_side / own.short_side))
        resized = InputConfig(short_side=side, max_side=cap)
        larger = boxes_in_training(annotations, resized, map_size)
        found = reachable(larger, style=style, inside=inside).on_grid
        if found >= ENOUGH or side == LARGER_SIDES[-1]:
            said.append(
                f"larger images more, up to {found:.1%} with model.input.short_side={side} "
                f"model.input.max_side={cap} and anchors for it"
            )
            break
    return "; ".join(said) or "no settings cover many more"


def _as_settings(anchors: AnchorConfig) -> str:
    sizes = ",".join(f"{size:g}" for size in anchors.sizes)
    ratios = ",".join(f"{ratio:g}" for ratio in anchors.aspect_ratios)
    return f"model.anchors.sizes=[{sizes}] model.anchors.aspect_ratios=[{ratios}]"


def _fewest(
    scaled: ScaledBoxes, asked: AnchorFit, style: AnchorStyle, inside: bool, among: AnchorChoice
) -> AnchorConfig:
    """The fewest anchors that cover what is asked for, of equally few those with the highest mean
    IoU; all of them where no fewer do.
    """
    ious, covers = _table(scaled, style, inside, among)
    needed = np.array([asked.on_grid, asked.by_shape]) * len(scaled) - 1e-6
    for total in range(1, len(among.sizes) * len(among.aspect_ratios) + 1):
        fitting = [
            sets
            for num_ratios in range(1, len(among.aspect_ratios) + 1)
            if total % num_ratios == 0 and (total == num_ratios or not among.pyramid)
            for sets in _fitting(covers, needed, total // num_ratios, num_ratios)
        ]
        if fitting:
            sizes, ratios = max(
                fitting, key=lambda sets: ious[np.ix_(*sets)].max(axis=(0, 1)).mean()
            )
            return among.anchors(style, sizes, ratios)
    return among.all_anchors(style)[0]


def _fitting(
    covers: np.ndarray, needed: np.ndarray, num_sizes: int, num_ratios: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The sets of so many sizes and ratios, by their rows, that cover as many boxes as needed (2,),
    on the grid and by shape.
    """
    used = covers.any(axis=(1, 2, 3)).nonzero()[0]
    if num_sizes > len(used):
        return
    size_sets = np.array(list(itertools.combinations(used, num_sizes)))
    for ratios in itertools.combinations(range(covers.shape[1]), num_ratios):
        by_size = np.bitwise_or.reduce(covers[:, list(ratios)], axis=1)
        if (_count(np.bitwise_or.reduce(by_size, axis=0)) < needed).any():  # of all sizes
            continue
        counts = _count(np.bitwise_or.reduce(by_size[size_sets], axis=1))
        for row in (counts >= needed).all(axis=1).nonzero()[0]:
            yield tuple(size_sets[row].tolist()), ratios


def _table(
    scaled: ScaledBoxes, style: AnchorStyle, inside: bool, among: AnchorChoice
) -> tuple[np.ndarray, np.ndarray]:
    """The best IoU (sizes, ratios, B) of every box with each member of both on the grid; and which
    boxes each covers there and by shape, (sizes, ratios, 2, bytes) uint8 of 8 boxes each.
    """
    best = np.array(
        [
            _best_of_two(scaled, among.anchors(style, [size], [ratio]), inside, among.pyramid)
            for size in range(len(among.sizes))
            for ratio in range(len(among.aspect_ratios))
        ]
    )
    shape = len(among.sizes), len(among.aspect_ratios)
    packed = np.packbits(best >= IOU, axis=2)
    return best[:, 0].reshape(*shape, -1), packed.reshape(*shape, 2, -1)


_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.int32)
"""How many bits of a byte are set."""


def _count(packed: np.ndarray) -> np.ndarray:
    """The set bits of (..., bytes) uint8, (...,)."""
    return _ONES[packed].sum(axis=-1)

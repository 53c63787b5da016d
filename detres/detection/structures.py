"""The values that travel between the parts of detection: disk -> Annotations -> Target ->
ImageBatch -> detres.losses or Detections -> Predictions; RPN -> Proposals -> disk -> ImageBatch.

Everywhere: N images, M ground-truth boxes, P proposals, D detections, K classes without background.
Boxes are
(x1, y1, x2, y2) in absolute pixels with continuous coordinates, so x2 - x1 is the width: float32 in
the model, float64 where a file's numbers are kept as they are written. Labels are int64, 1..K; 0 is
background and appears only inside the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from detres.class_map import ClassMap

ImageId = int | str
Scale = tuple[int, int]
"""To what size an image goes: short_side, max_side px, the rule of images.resize.resized_size."""

Number = TypeVar("Number", int, np.ndarray, Tensor)

_BACKGROUNDS = 1
"""Of a detector's labels, the first ones are no class: there is one background, 0."""


def label_of(index: Number) -> Number:
    """Return the detector's labels, 1..K, of classes by their index in a ClassMap, 0..K-1.

    index: a number, or an array or tensor of any shape. The one place where background is counted.
    """
    return index + _BACKGROUNDS


def index_of(label: Number) -> Number:
    """Return the index in a ClassMap, 0..K-1, of a detector's labels, 1..K; undoes `label_of`."""
    return label - _BACKGROUNDS


def names_of(class_map: ClassMap, labels: np.ndarray | Tensor) -> list[str]:
    """Return the class names of a detector's labels (D,), 1..K; raises IndexError for others."""
    return [class_map.name_of(index) for index in index_of(labels).tolist()]


def xywh_of(boxes: np.ndarray, sides: np.ndarray | None) -> np.ndarray:
    """Return boxes (M, 4) xyxy px as COCO writes them, (M, 4) float64 x, y, width, height.

    sides: (M, 2) float64, widths and heights as a file gives them, without which they are x2 - x1
    and y2 - y1: x + width - x differs from a width in its last bits, and then an IoU that lies on a
    threshold falls on its other side.
    """
    corners = boxes.astype(np.float64)
    if sides is None:
        sides = corners[:, 2:] - corners[:, :2]
    return np.concatenate((corners[:, :2], sides), axis=1)


def require_sides(boxes: np.ndarray, sides: np.ndarray | None, what: str) -> None:
    """Raise ValueError when sides (M, 2), where given, are not those of boxes (M, 4) xyxy px but
    for what adding x and width rounds away.
    """
    if sides is None:
        return
    own = xywh_of(boxes, None)[:, 2:]
    slack = 1e-12 * np.abs(boxes).max(initial=1)
    with np.errstate(invalid="ignore"):  # boxes as written may not be finite
        differ = sides.shape != own.shape or (np.abs(sides - own) > slack).any()
    if differ:
        raise ValueError(f"{what}: sides are not the widths and heights of boxes")


def _as_array(value: object) -> object:
    """A plain tensor in the processor's memory as an array, anything else as it is."""
    is_plain = type(value) is Tensor and value.device.type == "cpu" and not value.requires_grad
    return value.numpy() if is_plain else value


@dataclass(frozen=True)
class Target:
    """The objects of one image as given: boxes (M, 4) float32 xyxy px, labels (M,) int64 1..K,
    crowd and difficult (M,) bool.

    M may be 0. Checked once, here: raises ValueError naming the image on a wrong shape or dtype.
    """

    image_id: ImageId
    boxes: Tensor
    labels: Tensor
    crowd: Tensor
    difficult: Tensor

    def __post_init__(self) -> None:
        num = len(self.labels)
        if self.boxes.shape != (num, 4) or self.boxes.dtype != torch.float32:
            raise ValueError(
                f"image {self.image_id}: boxes are {self.boxes.dtype} {tuple(self.boxes.shape)}, "
                f"expected float32 ({num}, 4)"
            )
        if self.labels.dtype != torch.int64:
            raise ValueError(
                f"image {self.image_id}: labels are {self.labels.dtype}, expected int64"
            )
        for name in ("crowd", "difficult"):
            flag = getattr(self, name)
            if flag.shape != (num,) or flag.dtype != torch.bool:
                raise ValueError(
                    f"image {self.image_id}: {name} is {flag.dtype} {tuple(flag.shape)}, expected "
                    f"bool ({num},)"
                )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Target({len(self)} objects in image {self.image_id})"

    def __getstate__(self) -> dict[str, object]:
        # a loader's worker hands each tensor over as a file of its own, 0.2 ms a piece, and an
        # array with all the rest
        return {each.name: _as_array(getattr(self, each.name)) for each in fields(self)}

    def __setstate__(self, state: dict[str, object]) -> None:
        for name, value in state.items():
            whole = torch.from_numpy(value) if isinstance(value, np.ndarray) else value
            object.__setattr__(self, name, whole)

    def trainable(self) -> tuple[Tensor, Tensor]:
        """Return boxes (M', 4) and labels (M',) of the objects that are neither crowd nor
        difficult.
        """
        keep = ~(self.crowd | self.difficult)
        return self.boxes[keep], self.labels[keep]

    def to(self, device: torch.device | str) -> Target:
        """Return it on `device`."""
        return Target(self.image_id, *(getattr(self, f.name).to(device) for f in fields(self)[1:]))


@dataclass(frozen=True)
class ImageBatch:
    """N images padded at the right and bottom to one size.

    pixels: (N, 3, H, W) uint8 RGB, or float32 on the same scale where resizing does not round; the
    model normalises them on its device. sizes: N (h, w) px,
    true sizes inside the padding. original_sizes: N (h, w) px of the files as read, before
    resizing. ids: N image ids. proposals: where regions were proposed before, N tensors (P, 4)
    float32 xyxy px of the batch, best first, for Fast R-CNN; None: there are none. others: the same
    images at further scales, where a detector looks at several. seeds: N whole numbers, of what
    is drawn at random for each image in training, whatever batch it is in; None: torch's global
    generator draws.
    """

    pixels: Tensor
    sizes: tuple[tuple[int, int], ...]
    original_sizes: tuple[tuple[int, int], ...]
    ids: tuple[ImageId, ...]
    proposals: tuple[Tensor, ...] | None = None
    others: Mapping[Scale, ImageBatch] = field(default_factory=dict)
    seeds: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    def __repr__(self) -> str:
        height, width = self.pixels.shape[2:]
        return f"ImageBatch({len(self)} of {width}x{height} px, {self.pixels.device})"

    def to(self, device: torch.device | str) -> ImageBatch:
        """Return it on `device`; from pinned memory the copy overlaps with computing."""
        return self._moved(lambda tensor: tensor.to(device, non_blocking=True))

    def select(self, rows: Sequence[int]) -> ImageBatch:
        """Return the batch of these of its images, in this order; raises IndexError for others."""
        proposals = None if self.proposals is None else tuple(self.proposals[n] for n in rows)
        return ImageBatch(
            pixels=self.pixels[list(rows)],
            sizes=tuple(self.sizes[n] for n in rows),
            original_sizes=tuple(self.original_sizes[n] for n in rows),
            ids=tuple(self.ids[n] for n in rows),
            proposals=proposals,
            others={scale: batch.select(rows) for scale, batch in self.others.items()},
            seeds=None if self.seeds is None else tuple(self.seeds[n] for n in rows),
        )

    def pin_memory(self) -> ImageBatch:
        """Return it in memory from which a GPU copies while it computes; a DataLoader calls this by
        its name.
        """
        return self._moved(Tensor.pin_memory)

    def generator(self, n: int, stream: int) -> torch.Generator | None:
        """Return what draws for image `n`, one of two independent `stream`s (0, 1), on the device
        of the pixels; None where torch's global generator does.
        """
        if self.seeds is None:
            return None
        drawing = torch.Generator(self.pixels.device)
        return drawing.manual_seed((2 * self.seeds[n] + stream) % 2**63)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> ImageBatch:
        proposals = None if self.proposals is None else tuple(map(move, self.proposals))
        others = {scale: batch._moved(move) for scale, batch in self.others.items()}
        return replace(self, pixels=move(self.pixels), proposals=proposals, others=others)


@dataclass(frozen=True)
class FeatureMap:
    """What the backbone makes of a batch at one stage: values (N, C, H, W).

    sizes: N (h, w) cells at the top left that each image fills; `values` are 0 beyond them.
    spans: N (h, w) px that those cells were made of, which need not be whole strides; None: they
    are a stride each.
    """

    values: Tensor
    sizes: tuple[tuple[int, int], ...]
    spans: tuple[tuple[int, int], ...] | None = None

    @property
    def padded(self) -> bool:
        """Whether some image fills less than the whole map."""
        return any(size != tuple(self.values.shape[2:]) for size in self.sizes)


@dataclass(frozen=True)
class Detections:
    """What a model found in one image, best score first: boxes (D, 4) float32 xyxy px, scores (D,)
    in [0, 1], labels (D,) int64 1..K.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        best = f", best score {self.scores.max():.2f}" if len(self) else ""
        return f"Detections({len(self)}{best})"

    def to(self, device: torch.device | str) -> Detections:
        """Return it on `device`."""
        return Detections(self.boxes.to(device), self.scores.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Predictions:
    """Detections of a whole data set in flat arrays, boxes in the pixels of the original files.

    image_ids: (D,) int64 or str, one per detection. boxes: (D, 4) float32 xyxy px. scores: (D,)
    float32. labels: (D,) int64 1..K, the indices of `class_map` by `label_of`. Rows need no order.
    D may be 0. Boxes and scores read from a results file stay float64, as written, and so do
    `sides`, its (D, 2) widths and heights: see `xywh_of`. seen: (N,) the ids of all images that
    were looked at, also those without a detection; None where that is not known, as of a results
    file. Raises ValueError for arrays of different lengths and sides that are not those of the
    boxes.
    """

    class_map: ClassMap
    image_ids: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    sides: np.ndarray | None = None
    seen: np.ndarray | None = None

    def __post_init__(self) -> None:
        num = len(self.scores)
        if self.boxes.shape != (num, 4) or {len(self.labels), len(self.image_ids)} != {num}:
            raise ValueError(
                f"Predictions: {num} scores, {len(self.labels)} labels, {len(self.image_ids)} "
                f"image ids and boxes {self.boxes.shape} do not belong together"
            )
        require_sides(self.boxes, self.sides, "Predictions")

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        images = len(np.unique(self.image_ids)) if self.seen is None else len(self.seen)
        return f"Predictions({len(self)} detections in {images} images, {self.class_map!r})"

    def xywh(self) -> np.ndarray:
        """Return the boxes as COCO writes them, (D, 4) float64 x, y, width, height px, bit for bit
        as they were read.
        """
        return xywh_of(self.boxes, self.sides)


@dataclass(frozen=True)
class Proposals:
    """What an RPN proposed for a whole data set, in flat arrays: the boxes of image n are rows
    offsets[n]:offsets[n + 1], best first.

    source: what they are of, for messages. image_ids: (N,) int64 or str. offsets: (N + 1,) int64.
    boxes: (P, 4) float64 xyxy px of the original image: the RPN's float32 px of a resized one come
    back from them bit for bit, which float32 could not give. scores: (P,) float32 in [0, 1], the
    probability of an object. N and P may be 0. Raises ValueError for arrays that do not belong
    together.
    """

    source: str
    image_ids: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    def __post_init__(self) -> None:
        num = len(self.scores)
        ends = self.offsets[:1].tolist() + self.offsets[-1:].tolist()
        if (
            self.boxes.shape != (num, 4)
            or self.offsets.shape != (len(self.image_ids) + 1,)
            or ends != [0, num]
            or (np.diff(self.offsets) < 0).any()
        ):
            raise ValueError(
                f"Proposals: {len(self.image_ids)} images, {len(self.offsets)} offsets with the "
                f"ends {ends}, boxes {self.boxes.shape} and {num} scores do not belong together"
            )

    def __len__(self) -> int:
        return len(self.image_ids)

    def __repr__(self) -> str:
        return f"Proposals({len(self.scores)} in {len(self)} images, {self.source})"

    @property
    def counts(self) -> np.ndarray:
        """How many boxes each image has, (N,) int64."""
        return np.diff(self.offsets)

    def rows_of(self, index: int) -> slice:
        """Return the rows of `boxes` and `scores` of image `index`."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def of_images(self, rows: np.ndarray) -> Proposals:
        """Return those of the images at `rows` (R,) int64 alone, in that order."""
        counts = self.counts[rows]
        offsets = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        # (R,) -> (P',): the rows of each image's boxes
        taken = np.repeat(self.offsets[rows] - offsets[:-1], counts) + np.arange(offsets[-1])
        return replace(
            self,
            image_ids=self.image_ids[rows],
            offsets=offsets,
            boxes=self.boxes[taken],
            scores=self.scores[taken],
        )

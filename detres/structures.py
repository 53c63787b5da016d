"""The values that travel between the parts: disk -> Annotations -> Target -> ImageBatch -> Losses
or Detections -> Predictions.

Everywhere: N images, M ground-truth boxes, D detections, K classes without background. Boxes are
float32 (x1, y1, x2, y2) in absolute pixels with continuous coordinates, so x2 - x1 is the width.
Labels are int64, 1..K; 0 is background and appears only inside the model.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

ImageId = int | str


class ClassMismatchError(ValueError):
    """Two class lists that had to be the same are not."""


LISTED_CLASSES = 20
"""Of longer class lists a message names what differs."""


@dataclass(frozen=True)
class ClassMap:
    """The classes of a data set in label order: label k (1..K) has name `names[k - 1]` and source
    id `source_ids[k - 1]`.

    Built from the data and carried by every checkpoint and predictions file. `source_ids` are what
    the data set's own files use (COCO: sparse category ids; VOC has none, so 1..K). Raises
    ValueError on duplicates or unequal lengths.
    """

    names: tuple[str, ...]
    source_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.source_ids):
            raise ValueError(
                f"ClassMap: {len(self.names)} names but {len(self.source_ids)} source ids"
            )
        for what, values in (("name", self.names), ("source id", self.source_ids)):
            repeated = sorted({str(v) for v in values if values.count(v) > 1})
            if repeated:
                raise ValueError(
                    f"ClassMap: {what} {', '.join(repeated)} is given to more than one class"
                )

    def __len__(self) -> int:
        return len(self.names)

    def name_of(self, label: int) -> str:
        """Return the name of `label` (1..K); raises IndexError for background or beyond K."""
        return self.names[self._index(label)]

    def source_id_of(self, label: int) -> int:
        """Return the data set's own id of `label` (1..K); raises IndexError for background or
        beyond K.
        """
        return self.source_ids[self._index(label)]

    def label_of_name(self, name: str) -> int:
        """Return the label (1..K) of a class name; raises KeyError naming the known classes."""
        if name not in self.names:
            raise KeyError(f"unknown class '{name}', expected one of: {', '.join(self.names)}")
        return self.names.index(name) + 1

    def label_of_source_id(self, source_id: int) -> int:
        """Return the label (1..K) of a data set's own class id; raises KeyError naming the known
        ids.
        """
        if source_id not in self.source_ids:
            raise KeyError(
                f"unknown class id {source_id}, expected one of: {list(self.source_ids)}"
            )
        return self.source_ids.index(source_id) + 1

    def require_same(self, other: ClassMap, mine: str, theirs: str) -> None:
        """Raise ClassMismatchError printing both lists unless `other` is equal; `mine` and `theirs`
        say where each is from.
        """
        if self != other:
            raise ClassMismatchError(
                f"the class lists differ:\n  {mine} ({len(self)}): {self._listing(other)}\n"
                f"  {theirs} ({len(other)}): {other._listing(self)}\n"
                "use data with the classes the model was trained on, or train a model for these "
                "classes"
            )

    def to_dict(self) -> dict[str, list]:
        """Return plain lists for JSON, YAML and checkpoints."""
        return {"names": list(self.names), "source_ids": list(self.source_ids)}

    @classmethod
    def from_dict(cls, value: dict[str, list]) -> ClassMap:
        """Rebuild from `to_dict`; raises KeyError when a key is missing."""
        return cls(tuple(value["names"]), tuple(value["source_ids"]))

    def _index(self, label: int) -> int:
        if not 1 <= label <= len(self.names):
            raise IndexError(f"label {label} is outside 1..{len(self.names)}")
        return label - 1

    def _listing(self, other: ClassMap) -> str:
        """All classes with their ids; of many, those that `other` does not have, or has under other
        ids.
        """
        own = dict(zip(self.names, self.source_ids, strict=True))
        there = dict(zip(other.names, other.source_ids, strict=True))
        if len(own) <= LISTED_CLASSES:
            return ", ".join(f"{i}={name}" for name, i in own.items())
        if own.keys() == there.keys():
            what, differing = (
                "the same names, with other ids:",
                [name for name, i in own.items() if there[name] != i],
            )
        else:
            what, differing = "only here:", [name for name in own if name not in there]
        shown = ", ".join(f"{own[name]}={name}" for name in differing[:LISTED_CLASSES])
        more = (
            f" and {len(differing) - LISTED_CLASSES} more"
            if len(differing) > LISTED_CLASSES
            else ""
        )
        return f"{what} {shown or 'none'}{more}"


_ROWS = ("image_files", "image_sizes", "boxes", "labels", "areas", "crowd", "difficult")


@dataclass(frozen=True)
class Annotations:
    """A whole annotated data set in flat arrays: the objects of image n are rows
    offsets[n]:offsets[n + 1].

    Flat arrays, not a dict per box, so that forked loader workers share them instead of copying
    them.

    source: where it was read from, for messages.
    image_ids: (N,) int64 (COCO) or str (VOC: the file stem). image_files: (N,) str, full paths.
    image_sizes: (N, 2) int32 (H, W) as the annotation states them (0 where it does not).
    offsets: (N + 1,) int64. boxes: (M, 4) float32 xyxy px. labels: (M,) int64 1..K. areas: (M,)
    float32 px^2, COCO's `area` field where given, else the box area. ids: (M,) int64 annotation
    ids, unique. crowd, difficult: (M,) bool. Such objects are never trained on; each evaluation
    protocol ignores them by its own rule. dropped: reason -> how many records the box policy left
    out.
    """

    source: str
    class_map: ClassMap
    image_ids: np.ndarray
    image_files: np.ndarray
    image_sizes: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    ids: np.ndarray
    dropped: dict[str, int]

    def __post_init__(self) -> None:
        num_images, num_objects = len(self.image_ids), len(self.boxes)
        for name, want in (
            ("image_files", num_images),
            ("image_sizes", num_images),
            ("offsets", num_images + 1),
        ):
            if len(getattr(self, name)) != want:
                raise ValueError(
                    f"Annotations.{name} has {len(getattr(self, name))} rows, expected {want}"
                )
        for name in ("labels", "areas", "crowd", "difficult", "ids"):
            if len(getattr(self, name)) != num_objects:
                raise ValueError(
                    f"Annotations.{name} has {len(getattr(self, name))} rows, expected "
                    f"{num_objects}"
                )
        if self.boxes.shape != (num_objects, 4) or self.boxes.dtype != np.float32:
            raise ValueError(
                f"Annotations.boxes is {self.boxes.dtype} {self.boxes.shape}, expected float32 "
                "(M, 4)"
            )

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def num_objects(self) -> int:
        return len(self.boxes)

    def describe(self) -> str:
        """Return one paragraph: where from, how many images, objects and classes, and what the box
        policy left out.
        """
        counts = np.bincount(self.labels, minlength=len(self.class_map) + 1)[1:]
        shown = [
            f"{name} {count}"
            for name, count in zip(self.class_map.names, counts.tolist(), strict=True)
        ]
        empty = int((np.diff(self.offsets) == 0).sum())
        parts = [
            f"{self.source}: {len(self)} images ({empty} without objects), {self.num_objects} "
            f"objects of {len(self.class_map)} classes: "
            + ", ".join(shown[:20] + (["..."] if len(shown) > 20 else []))
        ]
        flags = {"crowd": int(self.crowd.sum()), "difficult": int(self.difficult.sum())}
        parts += [f"{count} {flag}" for flag, count in flags.items() if count]
        parts += [f"{count} {reason}" for reason, count in self.dropped.items()]
        return "; ".join(parts)

    @classmethod
    def concatenate(cls, parts: list[Annotations]) -> Annotations:
        """Return several data sets with the same classes as one; one part is returned as it is.

        Raises ClassMismatchError when their classes differ, ValueError when an image id is in two
        of them. Annotation ids that collide are numbered anew.
        """
        if len(parts) == 1:
            return parts[0]
        for part in parts[1:]:
            parts[0].class_map.require_same(part.class_map, parts[0].source, part.source)
        image_ids = np.concatenate([part.image_ids for part in parts])
        unique, counts = np.unique(image_ids, return_counts=True)
        if len(unique) < len(image_ids):
            raise ValueError(
                f"image {unique[counts > 1][0]} is in more than one of "
                f"{', '.join(part.source for part in parts)}"
            )
        starts = np.cumsum([0] + [part.num_objects for part in parts])
        offsets = [part.offsets[1:] + start for part, start in zip(parts, starts[:-1], strict=True)]
        ids = np.concatenate([part.ids for part in parts])
        if len(np.unique(ids)) < len(ids):
            ids = np.arange(1, len(ids) + 1)
        dropped: dict[str, int] = {}
        for part in parts:
            for reason, count in part.dropped.items():
                dropped[reason] = dropped.get(reason, 0) + count
        rows = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ROWS}
        return cls(
            source=" + ".join(part.source for part in parts),
            class_map=parts[0].class_map,
            image_ids=image_ids,
            offsets=np.concatenate([np.zeros(1, np.int64), *offsets]),
            ids=ids,
            dropped=dropped,
            **rows,
        )

    def target(self, index: int) -> Target:
        """Return the Target of image `index`, boxes in the pixels of the image as read; (0, 4)
        boxes when it has none.
        """
        rows = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        image_id = self.image_ids[index]
        return Target(
            image_id=int(image_id) if isinstance(image_id, np.integer) else str(image_id),
            boxes=torch.from_numpy(self.boxes[rows].copy()),
            labels=torch.from_numpy(self.labels[rows].astype(np.int64)),
            crowd=torch.from_numpy(self.crowd[rows].copy()),
            difficult=torch.from_numpy(self.difficult[rows].copy()),
        )


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

    def trainable(self) -> tuple[Tensor, Tensor]:
        """Return boxes (M', 4) and labels (M',) of the objects that are neither crowd nor
        difficult.
        """
        keep = ~(self.crowd | self.difficult)
        return self.boxes[keep], self.labels[keep]

    def to(self, device: torch.device | str) -> Target:
        return Target(self.image_id, *(getattr(self, f.name).to(device) for f in fields(self)[1:]))


@dataclass(frozen=True)
class ImageBatch:
    """N images padded at the right and bottom to one size.

    pixels: (N, 3, H, W) uint8 RGB; the model normalises them on its device. sizes: N (h, w) px,
    true sizes inside the padding. original_sizes: N (h, w) px of the files as read, before
    resizing. ids: N image ids.
    """

    pixels: Tensor
    sizes: tuple[tuple[int, int], ...]
    original_sizes: tuple[tuple[int, int], ...]
    ids: tuple[ImageId, ...]

    def __len__(self) -> int:
        return len(self.sizes)

    def to(self, device: torch.device | str) -> ImageBatch:
        return ImageBatch(
            self.pixels.to(device, non_blocking=True), self.sizes, self.original_sizes, self.ids
        )

    def pin_memory(self) -> ImageBatch:
        """Return it in memory from which a GPU copies while it computes; a DataLoader calls this by
        its name.
        """
        return ImageBatch(self.pixels.pin_memory(), self.sizes, self.original_sizes, self.ids)


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

    def to(self, device: torch.device | str) -> Detections:
        return Detections(self.boxes.to(device), self.scores.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Losses:
    """The four losses of Faster R-CNN as scalar tensors, in nats (cls) and dimensionless deltas
    (box).
    """

    loss_rpn_cls: Tensor
    loss_rpn_box: Tensor
    loss_roi_cls: Tensor
    loss_roi_box: Tensor

    def total(self) -> Tensor:
        """Return the unweighted sum, as in the joint training of Faster R-CNN."""
        return self.loss_rpn_cls + self.loss_rpn_box + self.loss_roi_cls + self.loss_roi_box

    def terms(self) -> dict[str, Tensor]:
        """Return name -> scalar tensor, in the order above."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True)
class Predictions:
    """Detections of a whole data set in flat arrays, boxes in the pixels of the original files.

    image_ids: (D,) int64 or str, one per detection. boxes: (D, 4) float32 xyxy px. scores: (D,)
    float32. labels: (D,) int64 1..K of `class_map`. Rows need no order. D may be 0. Boxes and
    scores read from a results file stay float64, as written.
    """

    class_map: ClassMap
    image_ids: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        num = len(self.scores)
        if self.boxes.shape != (num, 4) or len(self.labels) != num or len(self.image_ids) != num:
            raise ValueError(
                f"Predictions: {num} scores, {len(self.labels)} labels, {len(self.image_ids)} "
                "image ids and boxes "
                f"{self.boxes.shape} do not belong together"
            )

    def __len__(self) -> int:
        return len(self.scores)


# ---- classification: disk -> encoded images (detres/data/encoded.py) or ImageArrays -> CropBatch,
# ClassTargets -> ClassLoss or logits ----


@dataclass(frozen=True)
class ImageArrays:
    """A labelled set of small images of one size, in memory: `pixels` (M, H, W, 3) uint8 RGB,
    `labels` (M,) int64, 0..K-1.

    damaged: files that were left out because they could not be read.
    """

    source: str
    class_map: ClassMap
    pixels: np.ndarray
    labels: np.ndarray
    damaged: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)


@dataclass(frozen=True)
class CropBatch:
    """N images of one size for a classifier: `pixels` (N, 3, H, W) uint8 RGB, normalised by the
    model on its device; N `ids`.

    damaged: images that could not be read, whose places others of the batch have taken.
    """

    pixels: Tensor
    ids: tuple[ImageId, ...]
    damaged: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def to(self, device: torch.device | str) -> CropBatch:
        return CropBatch(self.pixels.to(device, non_blocking=True), self.ids, self.damaged)

    def pin_memory(self) -> CropBatch:
        """Return it in memory from which a GPU copies while it computes; a DataLoader calls this by
        its name.
        """
        return CropBatch(self.pixels.pin_memory(), self.ids, self.damaged)


@dataclass(frozen=True)
class ClassTargets:
    """The classes of a batch: `labels` (N,) int64, 0..K-1; there is no background."""

    labels: Tensor

    def to(self, device: torch.device | str) -> ClassTargets:
        return ClassTargets(self.labels.to(device, non_blocking=True))

    def pin_memory(self) -> ClassTargets:
        """As CropBatch's."""
        return ClassTargets(self.labels.pin_memory())


@dataclass(frozen=True)
class ClassLoss:
    """Scalar tensors of one batch: `loss_cls`, cross-entropy in nats, and `top1_error`, the
    fraction classified wrongly.
    """

    loss_cls: Tensor
    top1_error: Tensor

    def total(self) -> Tensor:
        """Return what is minimised."""
        return self.loss_cls

    def terms(self) -> dict[str, Tensor]:
        """Return name -> scalar tensor, in the order above."""
        return {"loss_cls": self.loss_cls, "top1_error": self.top1_error}

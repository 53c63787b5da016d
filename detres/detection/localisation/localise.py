"""A trained localiser on a data set: where the objects of given classes are.

Shapes: N images, G guesses of an image's class, P proposals of a guess.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from detres.boxes import clip_boxes, scale_boxes
from detres.detection.annotations import Annotations
from detres.detection.build import eval_loader
from detres.detection.data.batch import pad_images
from detres.detection.data.loader import DetectionDataset
from detres.detection.data.transforms import EvalTransform
from detres.detection.evaluation.localisation import Guesses
from detres.detection.localisation.config import LocalisationEvalConfig
from detres.detection.models.class_rpn import ClassRPN
from detres.detection.models.rcnn import RCNN
from detres.detection.structures import Detections, ImageBatch
from detres.eval_mode import evaluating
from detres.images.decode import read_image
from detres.images.resize import warped_region
from detres.waiting import PASS_S, counted

Proposals = list[list[tuple[np.ndarray, np.ndarray]]]
"""Of each image and guess: boxes (P, 4) float32 xyxy px of the file, best first; scores (P,)."""


@dataclass(frozen=True)
class Views:
    """In what an image is looked at: squares of `crop_side` px from the middle of it at
    `short_sides` px, or where that is None whole images at each of them.

    max_side: px cap of the long side of whole images.
    """

    short_sides: tuple[int, ...]
    crop_side: int | None
    max_side: int

    @classmethod
    def of(cls, config: LocalisationEvalConfig, crop_side: int) -> Views:
        """Return those of a configuration."""
        if config.views == "center":
            return cls((config.short_side,), crop_side, config.max_side)
        return cls(config.scales, None, config.max_side)

    def __str__(self) -> str:
        sides = ", ".join(map(str, self.short_sides))
        if self.crop_side is None:
            return f"whole images of short side {sides} px"
        return f"centre crop, {self.crop_side} px of short side {sides} px"


def own_labels(annotations: Annotations) -> np.ndarray:
    """Return (N, 1) int64 1..K, the class of N images with objects of one class each."""
    return annotations.labels[annotations.offsets[:-1], None]


@dataclass(frozen=True)
class Member:
    """A localiser, alone or with others, and the views in which it looks at an image."""

    model: ClassRPN | RCNN
    views: Views

    @property
    def proposer(self) -> ClassRPN:
        """What proposes."""
        return self.model.proposer if isinstance(self.model, RCNN) else self.model

    def __str__(self) -> str:
        kind = "R-CNN on a per-class RPN" if isinstance(self.model, RCNN) else "per-class RPN"
        return f"{kind}, {self.views}"


def how(members: Sequence[Member]) -> str:
    """Return in words how boxes come about."""
    words = "; ".join(dict.fromkeys(map(str, members)))
    return words if len(members) == 1 else f"ensemble of {len(members)}: {words}"


def require_one_kind(members: Sequence[Member]) -> None:
    """Raise ValueError for members of two kinds, and for none."""
    if len({isinstance(member.model, RCNN) for member in members}) != 1:
        raise ValueError(
            "an ensemble of localisers is of per-class RPNs or of R-CNNs, whose scores are two "
            "things; here are both, or none"
        )


def localise(
    members: Sequence[Member],
    annotations: Annotations,
    labels: np.ndarray,
    config: LocalisationEvalConfig,
    *,
    device: torch.device,
    num_workers: int = 0,
) -> Guesses:
    """Return the best box of every class in `labels` (N, G) int64 1..K, of N images.

    A per-class RPN's best proposal in all views, of several the one with the highest score of all;
    R-CNN's, of the best of those, the one with the highest score of its own, where it moves it to.
    Several R-CNNs share the union of their proposals, and their scores and boxes are averaged: the
    paper has an ensemble and no more of it, and this is how the detector's are put together
    (appendix B); scores are averaged as logits, for probabilities near 1 are all alike. The models'
    train/eval state is put back. An image in which nothing is proposed: the whole image. Raises
    what require_one_kind raises, ImageReadError naming an image.
    """
    require_one_kind(members)
    rescores = isinstance(members[0].model, RCNN)
    proposals = _union(
        [
            propose(
                member.proposer,
                annotations,
                labels,
                LoaderSettings(member.views, config.batch_size, num_workers),
                device=device,
                limit=None if rescores else 1,
            )
            for member in members
        ]
    )
    models, boxes = [member.model for member in members], np.zeros((*labels.shape, 4))
    for n, of_image in enumerate(counted(proposals, "localising", "images", soon=PASS_S)):
        stated = annotations.image_sizes[n]
        image = None
        if rescores or any(len(found) == 0 for found, _ in of_image):
            image = read_image(annotations.image_files[n], (int(stated[0]), int(stated[1])))
        for guess, (found, _) in enumerate(of_image):
            if len(found) == 0:
                boxes[n, guess, 2:] = image.shape[1], image.shape[0]
            elif rescores:
                label = int(labels[n, guess])
                batch_size = config.rcnn_batch_size
                boxes[n, guess] = best_region(models, image, found, label, batch_size, device)
            else:
                boxes[n, guess] = found[0]
    return Guesses(labels, boxes)


@dataclass(frozen=True)
class LoaderSettings:
    """How the images of a data set come: their views, images a batch, loader workers."""

    views: Views
    batch_size: int
    num_workers: int


def propose(
    model: ClassRPN,
    annotations: Annotations,
    labels: np.ndarray,
    loader: LoaderSettings,
    *,
    device: torch.device,
    limit: int | None = None,
) -> Proposals:
    """Return the best `limit` boxes (None: as many as a view has) of every class in `labels` (N, G)
    int64 1..K, of all views together. The model's train/eval state is put back afterwards.
    """
    views, found = loader.views, [[] for _ in range(len(annotations))]
    for short_side in views.short_sides:
        cap = views.max_side if views.crop_side is None else short_side * 100
        transform = EvalTransform(short_side=short_side, max_side=cap)
        batches = eval_loader(
            DetectionDataset(annotations, transform),
            batch_size=loader.batch_size,
            num_workers=loader.num_workers,
        )
        with evaluating(model):
            row = 0
            for images, _ in counted(batches, "proposing", "batches", soon=PASS_S):
                wanted = torch.from_numpy(labels[row : row + len(images)])
                for of_image in _in_view(model, images, wanted, views.crop_side, device):
                    found[row].append(of_image)
                    row += 1
    return [_together(of_views, limit) for of_views in found]


def best_region(
    models: Sequence[RCNN],
    image: np.ndarray,
    proposals: np.ndarray,
    label: int,
    batch_size: int,
    device: torch.device,
) -> np.ndarray:
    """Return the box (4,) xyxy px to which R-CNNs move, on average, the best of `proposals` (P, 4)
    xyxy px of an image (H, W, 3) uint8, by the mean of their logits for class `label`; P >= 1.
    """
    found = [_scored(model, image, proposals, label, batch_size, device) for model in models]
    logits, boxes = (torch.stack(each).mean(dim=0) for each in zip(*found, strict=True))
    return clip_boxes(boxes[logits.argmax()], image.shape[:2]).numpy()


def _scored(
    model: RCNN,
    image: np.ndarray,
    proposals: np.ndarray,
    label: int,
    batch_size: int,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (P,) of regions, and the boxes (P, 4) xyxy px to which they are moved, on the CPU."""
    side = model.crop_side
    logits, boxes = [], []
    with evaluating(model):
        for start in range(0, len(proposals), batch_size):
            regions = [
                warped_region(image, box, side) for box in proposals[start : start + batch_size]
            ]
            crops, taken = [crop for crop, _ in regions], [region for _, region in regions]
            sizes = [(side, side)] * len(crops)
            batch = pad_images(crops, original_sizes=sizes, ids=range(len(crops))).to(device)
            labels = torch.full((len(crops),), label, device=device)
            scores, deltas = model(batch, labels=labels)
            reference = torch.tensor(taken, dtype=torch.float32, device=device)
            boxes.append(model.box_coder.decode(reference, deltas).cpu())
            logits.append(scores.cpu())
    return torch.cat(logits), torch.cat(boxes)


def _in_view(
    model: ClassRPN,
    images: ImageBatch,
    labels: torch.Tensor,
    crop_side: int | None,
    device: torch.device,
) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """What is found in one view of a batch, boxes in the pixels of the files."""
    view, corners = images, [(0, 0)] * len(images)
    if crop_side is not None:
        corners = [
            tuple(max(0, (length - crop_side) // 2) for length in size) for size in images.sizes
        ]
        view = _cropped(images, corners, crop_side)
    for n, of_image in enumerate(model(view.to(device), labels=labels.to(device))):
        size, original, corner = images.sizes[n], images.original_sizes[n], corners[n]
        yield [_in_file(found, corner, size, original) for found in of_image]


def _cropped(images: ImageBatch, corners: list[tuple[int, int]], side: int) -> ImageBatch:
    """Squares of the images of a batch; of one that does not hold it, what there is."""
    crops = []
    for pixels, (top, left), (height, width) in zip(
        images.pixels, corners, images.sizes, strict=True
    ):
        within = pixels[:, top : min(top + side, height), left : min(left + side, width)]
        crops.append(within.permute(1, 2, 0).numpy())  # (3, h, w) -> (h, w, 3)
    return pad_images(crops, original_sizes=[crop.shape[:2] for crop in crops], ids=images.ids)


def _in_file(
    found: Detections,
    corner: tuple[int, int],
    size: tuple[int, int],
    original: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    top, left = corner
    boxes = found.boxes + found.boxes.new_tensor((left, top, left, top))
    boxes = scale_boxes(boxes, from_size=size, to_size=original)
    return boxes.cpu().numpy(), found.scores.cpu().numpy()


def _together(
    of_views: list[list[tuple[np.ndarray, np.ndarray]]], limit: int | None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The boxes of one image in all its views, guess by guess, best first."""
    merged = []
    for of_guess in zip(*of_views, strict=True):
        most = max(len(scores) for _, scores in of_guess) if limit is None else limit
        merged.append(tuple(column[:most] for column in _best_first(of_guess)))
    return merged


def _union(of_members: list[Proposals]) -> Proposals:
    """All that members propose, image by image and guess by guess, best first."""
    return [
        [_best_first(of_guess) for of_guess in zip(*of_image, strict=True)]
        for of_image in zip(*of_members, strict=True)
    ]


def _best_first(
    parts: tuple[tuple[np.ndarray, np.ndarray], ...],
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores of several parts as one, by falling score."""
    boxes = np.concatenate([boxes for boxes, _ in parts])
    scores = np.concatenate([scores for _, scores in parts])
    order = np.argsort(-scores, kind="stable")
    return boxes[order], scores[order]

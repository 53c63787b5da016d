"""Resizing and augmentation of an image together with its target."""

from __future__ import annotations

import os
import random

import numpy as np
import torch
from torch import Tensor

from detres.boxes import scale_boxes
from detres.detection.structures import Target
from detres.images.resize import Resizing, resize_image, resized_size

# Importing albumentations otherwise asks the package index for a newer version: seconds without a
# network.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations


class TrainTransform:
    """Resize to a random shorter side, flip at random, optionally jitter the colours.

    short_sides: px, the sides to choose from, evenly; max_side: px, the cap of the long side (see
    resized_size). flip: the probability of mirroring left-right, where x becomes W - x (continuous
    coordinates). color: strength s in [0, 1]; brightness, contrast and saturation are multiplied by
    factors from 1 - s to 1 + s and the hue moves by up to s / 10 of the circle; 0 leaves colours
    alone, as the paper's detector does.

    Raises ValueError for an empty `short_sides`, sides below 1, a cap below a side, a flip or color
    outside [0, 1]. resizing: see images.resize; images are whole grey levels afterwards.
    """

    def __init__(
        self,
        *,
        short_sides: tuple[int, ...],
        max_side: int,
        flip: float = 0.5,
        color: float = 0.0,
        resizing: Resizing = "cv2",
    ) -> None:
        if not short_sides or min(short_sides) < 1 or max_side < max(short_sides):
            raise ValueError(
                f"short_sides {short_sides} must hold sides from 1 px to max_side ({max_side} px)"
            )
        if not (0 <= flip <= 1 and 0 <= color <= 1):
            raise ValueError(f"flip {flip} and color {color} must be within 0 and 1")
        self.short_sides, self.max_side = tuple(short_sides), max_side
        self.resizing = resizing
        steps: list[albumentations.BasicTransform] = [albumentations.HorizontalFlip(p=flip)]
        if color > 0:
            factors = (1 - color, 1 + color)
            steps.append(
                albumentations.ColorJitter(
                    brightness=factors,
                    contrast=factors,
                    saturation=factors,
                    hue=(-color / 10, color / 10),
                    p=1.0,
                )
            )
        boxes = albumentations.BboxParams(
            format="pascal_voc", label_fields=["rows"], clip=True, filter_invalid_bboxes=True
        )
        self._augment = albumentations.Compose(steps, bbox_params=boxes)

    def largest(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (h, w) px that an image of `size` (h, w) is resized to at most."""
        return resized_size(
            *size,
            short_side=max(self.short_sides),
            max_side=self.max_side,
            resizing=self.resizing,
        )

    def __call__(self, image: np.ndarray, target: Target, seed: int) -> tuple[np.ndarray, Target]:
        """Return the changed image (h, w, 3) uint8 and target; a pure function of its arguments.

        image: (H, W, 3) uint8. Boxes (M, 4) are cut to the image and those without area dropped
        together with their label and flags; M may be 0. They pass through albumentations'
        normalised float32, which rounds by about 1e-4 px.
        """
        return self.with_proposals(image, target, None, seed)[:2]

    def with_proposals(
        self, image: np.ndarray, target: Target, proposals: Tensor | None, seed: int
    ) -> tuple[np.ndarray, Target, Tensor | None]:
        """As a call, with proposals (P, 4) float64 xyxy px, which go wherever the target's boxes
        go and are returned as (P', 4) float32; None: there are none. P may be 0.
        """
        rng = np.random.default_rng(seed)
        short_side = self.short_sides[rng.integers(len(self.short_sides))]
        image, target, proposals = _resize(
            image,
            target,
            proposals,
            short_side=short_side,
            max_side=self.max_side,
            resizing=self.resizing,
        )
        if image.dtype != np.uint8:  # what changes colours works on whole grey levels
            image = image.round().astype(np.uint8)
        boxes = target.boxes if proposals is None else torch.cat((target.boxes, proposals))
        # One stream for all steps; set_random_seed would give every step the same one, and flips
        # would go with colours.
        self._augment.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        changed = self._augment(image=image, bboxes=boxes.numpy(), rows=np.arange(len(boxes)))
        rows = torch.as_tensor(np.asarray(changed["rows"], dtype=np.int64))
        boxes = torch.as_tensor(np.asarray(changed["bboxes"], dtype=np.float32).reshape(-1, 4))
        given = rows >= len(target)  # the rows of both, in which the target's are the first
        proposals = None if proposals is None else boxes[given]
        rows, boxes = rows[~given], boxes[~given]
        target = Target(
            target.image_id, boxes, target.labels[rows], target.crowd[rows], target.difficult[rows]
        )
        return changed["image"], target, proposals


class EvalTransform:
    """Resize to one short side with a cap on the long one (px, see resized_size); raises ValueError
    as TrainTransform does.
    """

    def __init__(self, *, short_side: int, max_side: int, resizing: Resizing = "cv2") -> None:
        if short_side < 1 or max_side < short_side:
            raise ValueError(
                f"short_side must be from 1 px to max_side ({max_side} px), got {short_side}"
            )
        self.short_side, self.max_side, self.resizing = short_side, max_side, resizing

    def __call__(
        self,
        image: np.ndarray,
        target: Target,
        seed: int = 0,  # noqa: ARG002
    ) -> tuple[np.ndarray, Target]:
        """Return the resized image (h, w, 3), uint8 or as resize_image gives it, and its target,
        boxes only scaled; nothing is random, `seed` is unused.
        """
        return self.with_proposals(image, target, None)[:2]

    def with_proposals(
        self,
        image: np.ndarray,
        target: Target,
        proposals: Tensor | None,
        seed: int = 0,  # noqa: ARG002
    ) -> tuple[np.ndarray, Target, Tensor | None]:
        """As a call, with proposals (P, 4) float64 xyxy px, returned as (P, 4) float32; None: there
        are none.
        """
        return _resize(
            image,
            target,
            proposals,
            short_side=self.short_side,
            max_side=self.max_side,
            resizing=self.resizing,
        )


def _resize(
    image: np.ndarray,
    target: Target,
    proposals: Tensor | None,
    *,
    short_side: int,
    max_side: int,
    resizing: Resizing,
) -> tuple[np.ndarray, Target, Tensor | None]:
    """Resize the image and scale the boxes by the exact ratio of each axis, not by the nominal
    scale.
    """
    old = image.shape[:2]
    new = resized_size(*old, short_side=short_side, max_side=max_side, resizing=resizing)
    boxes = scale_boxes(target.boxes, from_size=old, to_size=new)
    target = Target(target.image_id, boxes, target.labels, target.crowd, target.difficult)
    if proposals is not None:
        proposals = scale_boxes(proposals, from_size=old, to_size=new).float()
    return resize_image(image, new, resizing), target, proposals

"""(image, target, seed) -> (image, target): resizing, and augmentation through albumentations."""

from __future__ import annotations

import os

import numpy as np
import torch

from detres.boxes import scale_boxes
from detres.image_io import resize_image, resized_size
from detres.structures import Target

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing it asks a server for news
import albumentations as A  # noqa: E402


class EvalTransform:
    """Resizes the shorter side to `shorter` px, the longer one to at most `longer`."""

    def __init__(self, *, shorter: int, longer: int) -> None:
        self.shorter = shorter
        self.longer = longer

    def __call__(self, image: np.ndarray, target: Target, seed: int) -> tuple[np.ndarray, Target]:  # noqa: ARG002 - one signature
        """Return the image (h, w, 3) uint8 and its boxes at the new size."""
        return _resize(image, target, self.shorter, self.longer)


class TrainTransform:
    """Resizes to one of `shorter` px at random, flips horizontally and changes colours.

    flip: probability (py-faster-rcnn adds every image's mirror image: 0.5). color: strength 0..1 of a jitter of brightness,
    contrast, saturation and hue; the paper's detector has none. The result is a pure function of the arguments and `seed`.
    """

    def __init__(self, *, shorter: tuple[int, ...], longer: int, flip: float, color: float) -> None:
        self.shorter = shorter
        self.longer = longer
        steps = [A.HorizontalFlip(p=flip)]
        if color > 0:
            jitter = A.ColorJitter(
                brightness=(1 - 0.4 * color, 1 + 0.4 * color),
                contrast=(1 - 0.4 * color, 1 + 0.4 * color),
                saturation=(1 - 0.4 * color, 1 + 0.4 * color),
                hue=(-0.1 * color, 0.1 * color),
                p=0.8,
            )
            steps.append(jitter)
        # Boxes that clipping leaves without area are filtered; `rows` says which are left, so that flags and labels follow.
        bbox_params = A.BboxParams(format="pascal_voc", label_fields=["rows"], clip=True, filter_invalid_bboxes=True)
        self.augment = A.Compose(steps, bbox_params=bbox_params)

    def __call__(self, image: np.ndarray, target: Target, seed: int) -> tuple[np.ndarray, Target]:
        """Return the augmented image (h, w, 3) uint8 and its target; boxes are exact to about 1e-4 px."""
        shorter = self.shorter[np.random.default_rng(seed).integers(len(self.shorter))]
        image, target = _resize(image, target, shorter, self.longer)
        self.augment.set_random_seed(seed)
        result = self.augment(image=image, bboxes=target.boxes.numpy(), rows=np.arange(len(target)))
        rows = torch.from_numpy(np.asarray(result["rows"]).astype(np.int64))  # albumentations returns floats
        boxes = torch.from_numpy(np.asarray(result["bboxes"], np.float32).reshape(-1, 4))
        return np.ascontiguousarray(result["image"]), Target(
            target.image_id, boxes, target.labels[rows], target.crowd[rows], target.difficult[rows]
        )


def _resize(image: np.ndarray, target: Target, shorter: int, longer: int) -> tuple[np.ndarray, Target]:
    old = image.shape[:2]
    new = resized_size(*old, shorter=shorter, longer=longer)
    boxes = scale_boxes(target.boxes, from_size=old, to_size=new)
    return resize_image(image, new), Target(target.image_id, boxes, target.labels, target.crowd, target.difficult)

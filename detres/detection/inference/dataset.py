"""Model + batches -> Predictions of a whole data set."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from detres.class_map import ClassMap
from detres.detection.inference.detector import detect_batch
from detres.detection.structures import ImageBatch, Predictions, Target


def detect_dataset(
    model: nn.Module,
    batches: Iterable[tuple[ImageBatch, list[Target]]],
    class_map: ClassMap,
    device: torch.device,
) -> Predictions:
    """Run `model` in eval mode over all batches and return what it finds, boxes in the pixels of
    the original files.

    model: called with an ImageBatch, returns one Detections an image. Its train/eval state is put
    back afterwards. No image or no detection: Predictions of length 0.
    """
    seen, image_ids, boxes, scores, labels = [], [], [], [], []
    # disable=None: on a terminal only
    for images, _ in tqdm(batches, desc="evaluating", unit="batch", leave=False, disable=None):
        seen.extend(images.ids)
        for image_id, found in zip(images.ids, detect_batch(model, images, device), strict=True):
            image_ids.extend([image_id] * len(found))
            boxes.append(found.boxes.numpy())
            scores.append(found.scores.numpy())
            labels.append(found.labels.numpy())
    return Predictions(
        class_map=class_map,
        image_ids=np.asarray(image_ids),
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *boxes]),
        scores=np.concatenate([np.zeros(0, np.float32), *scores]),
        labels=np.concatenate([np.zeros(0, np.int64), *labels]),
        seen=np.asarray(seen),
    )

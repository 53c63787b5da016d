"""Model + loader -> Predictions of a whole data set."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from detres.boxes import scale_boxes
from detres.structures import ClassMap, ImageBatch, Predictions, Target


@torch.inference_mode()
def detect(
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
    was_training = model.training
    model.eval()
    image_ids, boxes, scores, labels = [], [], [], []
    for images, _ in tqdm(
        batches, desc="scoring", unit="batch", leave=False, disable=None
    ):  # on a terminal only
        for n, found in enumerate(model(images.to(device))):
            found = found.to("cpu")
            image_ids.extend([images.ids[n]] * len(found))
            boxes.append(
                scale_boxes(
                    found.boxes, from_size=images.sizes[n], to_size=images.original_sizes[n]
                ).numpy()
            )
            scores.append(found.scores.numpy())
            labels.append(found.labels.numpy())
    model.train(was_training)
    return Predictions(
        class_map=class_map,
        image_ids=np.asarray(image_ids),
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *boxes]),
        scores=np.concatenate([np.zeros(0, np.float32), *scores]),
        labels=np.concatenate([np.zeros(0, np.int64), *labels]),
    )

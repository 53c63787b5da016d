"""Model + batches -> Predictions, or Proposals, of a whole data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn

from detres.boxes import scale_boxes
from detres.class_map import ClassMap
from detres.detection.annotations import Annotations
from detres.detection.inference.detect import detect_batch
from detres.detection.inference.fast import Precision, fast_copy
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.detection.models.rpn import ProposalCounts
from detres.detection.structures import ImageBatch, Predictions, Proposals, Target, label_of
from detres.eval_mode import evaluating
from detres.waiting import PASS_S, counted


def detect_dataset(
    model: nn.Module,
    batches: Iterable[tuple[ImageBatch, list[Target]]],
    class_map: ClassMap,
    device: torch.device,
    precision: Precision = "fp32",
) -> Predictions:
    """Run `model` in eval mode, rewritten for inference, over all batches and return what it finds,
    boxes in the pixels of the original files; of gaps of the class map, which no data have,
    nothing.

    model: on `device`, called with an ImageBatch, returns one Detections an image; it is left as it
    is. precision: see inference.fast. No image or no detection: Predictions of length 0.
    """
    model = fast_copy(model, precision)
    seen, image_ids, boxes, scores, labels = [], [], [], [], []
    gaps = torch.tensor([label_of(index) for index in class_map.gaps], dtype=torch.int64)
    for images, _ in counted(batches, "evaluating", "batches", soon=PASS_S):
        seen.extend(images.ids)
        for image_id, found in zip(images.ids, detect_batch(model, images, device), strict=True):
            kept = ~torch.isin(found.labels, gaps)
            image_ids.extend([image_id] * int(kept.sum()))
            boxes.append(found.boxes[kept].numpy())
            scores.append(found.scores[kept].numpy())
            labels.append(found.labels[kept].numpy())
    return Predictions(
        class_map=class_map,
        image_ids=np.asarray(image_ids),
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *boxes]),
        scores=np.concatenate([np.zeros(0, np.float32), *scores]),
        labels=np.concatenate([np.zeros(0, np.int64), *labels]),
        seen=np.asarray(seen),
    )


def joined_predictions(shares: Sequence[Predictions], image_ids: np.ndarray) -> Predictions:
    """Return what several processes found in their shares of a data set as one would have found it:
    in the order of `image_ids` (N,), the detections of an image in theirs.
    """
    place = {image_id: row for row, image_id in enumerate(image_ids.tolist())}
    whose = [image_id for share in shares for image_id in share.image_ids.tolist()]
    order = np.argsort(np.asarray([place[image_id] for image_id in whose], np.int64), kind="stable")
    seen = {image_id for share in shares for image_id in share.seen.tolist()}
    return Predictions(
        class_map=shares[0].class_map,
        image_ids=np.asarray(whose)[order],
        boxes=np.concatenate([share.boxes for share in shares])[order],
        scores=np.concatenate([share.scores for share in shares])[order],
        labels=np.concatenate([share.labels for share in shares])[order],
        seen=np.asarray([image_id for image_id in image_ids.tolist() if image_id in seen]),
    )


def propose_dataset(
    detector: FasterRCNN,
    batches: Iterable[tuple[ImageBatch, list[Target]]],
    truth: Annotations,
    counts: ProposalCounts,
    device: torch.device,
) -> Proposals:
    """Run the RPN of `detector`, in eval mode, over all batches and return what it proposes, boxes
    in the pixels of the original files.

    batches: of the images of `truth`, once and in their order. It is rewritten for inference, and
    itself left as it is.
    """
    detector = fast_copy(detector)
    boxes, scores = [np.zeros((0, 4))], [np.zeros(0, np.float32)]
    with evaluating(detector):
        for images, _ in counted(batches, "proposing", "batches", soon=PASS_S):
            found = detector.propose(images.to(device), counts)
            sizes = zip(images.sizes, images.original_sizes, strict=True)
            for (box, logits), (size, original) in zip(found, sizes, strict=True):
                # in float64, from which the float32 come back exactly: see Proposals
                box = scale_boxes(box.double(), from_size=size, to_size=original)
                boxes.append(box.cpu().numpy())
                scores.append(logits.sigmoid().cpu().numpy())
    return Proposals(
        source=f"the proposals for {truth.source}",
        image_ids=truth.image_ids,
        offsets=np.cumsum([len(each) for each in scores], dtype=np.int64),
        boxes=np.concatenate(boxes),
        scores=np.concatenate(scores),
    )

"""COCO's numbers by pycocotools itself, from a dict a box."""

from __future__ import annotations

import contextlib
import io

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detres.detection.annotations import Annotations
from detres.detection.structures import Predictions, label_of


def by_dicts(truth: Annotations, predictions: Predictions) -> COCOeval:
    """Return pycocotools' evaluation of a dict a box, images numbered in the order of their ids."""
    order = np.argsort(truth.image_ids)
    number_of = {int(truth.image_ids[row]): place + 1 for place, row in enumerate(order)}
    owners = np.repeat(truth.image_ids, np.diff(truth.offsets)).tolist()
    objects = [
        {"id": row + 1, "image_id": number_of[image], "category_id": label, "bbox": box}
        | {"area": area, "iscrowd": int(ignored)}
        for row, (image, label, box, area, ignored) in enumerate(
            zip(
                owners,
                truth.labels.tolist(),
                truth.xywh().tolist(),
                truth.areas.tolist(),
                (truth.crowd | truth.difficult).tolist(),
                strict=True,
            )
        )
    ]
    found = [
        {"id": row + 1, "image_id": number_of[image], "category_id": label, "bbox": box}
        | {"area": box[2] * box[3], "iscrowd": 0, "score": score}
        for row, (image, label, box, score) in enumerate(
            zip(
                predictions.image_ids.tolist(),
                predictions.labels.tolist(),
                predictions.xywh().tolist(),
                predictions.scores.astype(np.float64).tolist(),
                strict=True,
            )
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(*(_index(truth, records) for records in (objects, found)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def _index(truth: Annotations, records: list[dict]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": [{"id": number} for number in range(1, len(truth) + 1)],
        "categories": [{"id": label_of(index)} for index in range(len(truth.class_map))],
        "annotations": records,
    }
    coco.createIndex()
    return coco

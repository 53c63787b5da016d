"""Random COCO files whose overlaps, areas and scores lie on the protocol's thresholds, or next to
them.
"""

from __future__ import annotations

import numpy as np

IOUS = np.linspace(0.5, 0.95, 10)
AREAS = (32.0**2, 96.0**2)
NEXT_TO = (0.0, 1e-12, 1e-9, 1e-6, 1e-5, 1e-3, 1.0)


def coco_files(seed: int) -> tuple[dict, list[dict]]:
    """Return the contents of an annotation file and of a results file with at least one record.

    Coordinates are integers, decimals, what subtracting decimals leaves, or any floats, by the
    seed; ids are sparse and in no order, scores tie, some images have no objects or detections, and
    of every tenth seed more than 100 detections of a class.
    """
    rng = np.random.default_rng(seed)
    round_off = (_whole, _six_decimals, _two_decimals, _difference, float)[seed % 5]
    images = rng.choice(10_000, 4, replace=False).tolist()
    categories = rng.choice(500, 3, replace=False).tolist()
    num = int(rng.integers(1, 9))
    ids = (rng.choice(90_000, num, replace=False) + 1).tolist()
    annotations = [
        {
            "id": ids[m],
            "image_id": int(rng.choice(images[:-1])),
            "category_id": int(rng.choice(categories[:-1])),
            "bbox": _box(rng, round_off),
            "iscrowd": int(rng.random() < 0.15),
        }
        for m in range(num)
    ]
    for record in annotations:
        near = rng.choice(AREAS) + rng.choice((-1, 1)) * rng.choice(NEXT_TO)
        record["area"] = near if rng.random() < 0.5 else record["bbox"][2] * record["bbox"][3]
    found = [_found(rng, round_off, annotations) for _ in range(int(rng.integers(1, 20)))]
    if seed % 10 == 0:
        found += [found[0] | {"score": float(rng.random())} for _ in range(110)]
    strays = [
        {
            "image_id": int(rng.choice(images)),
            "category_id": int(rng.choice(categories)),
            "bbox": _box(rng, round_off),
            "score": _score(rng),
        }
        for _ in range(3)
    ]
    records = [*found, *strays]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 900, "height": 900} for i in images],
        "categories": [{"id": i, "name": f"c{i}"} for i in categories],
        "annotations": annotations,
    }
    return content, [records[row] for row in rng.permutation(len(records))]


def _found(rng: np.random.Generator, round_off, annotations: list[dict]) -> dict:
    """A detection that covers a share of an object, or is covered by it, that is a threshold."""
    target = annotations[rng.integers(len(annotations))]
    x, y, w, h = target["bbox"]
    share = float(rng.choice(IOUS)) * (1 + rng.choice((0, 0, 1e-9, -1e-9)))
    box = ([x, y, w, h * share], [x, y, w * share, h], [x, y, w, h / share], [x, y, w, h])
    return {
        "image_id": target["image_id"],
        "category_id": target["category_id"],
        "bbox": [round_off(value) for value in box[rng.integers(4)]],
        "score": _score(rng),
    }


def _box(rng: np.random.Generator, round_off) -> list[float]:
    corner = rng.uniform(0, 500, 2)
    sides = rng.choice((20.0, 32.0, 96.0), 2) if rng.random() < 0.5 else rng.uniform(4, 200, 2)
    return [round_off(value) for value in (*corner, *sides)]


def _score(rng: np.random.Generator) -> float:
    return float(rng.choice((rng.random(), 0.25, 0.5, 1)))


def _whole(value: float) -> int:
    return max(1, round(value))


def _six_decimals(value: float) -> float:
    return round(float(value), 6)


def _two_decimals(value: float) -> float:
    return round(float(value), 2)


def _difference(value: float) -> float:
    """A decimal with the error of a subtraction, as exporters of corners write sides."""
    return round(value + 333.3, 2) - 333.3

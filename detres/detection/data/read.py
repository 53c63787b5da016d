"""A data configuration -> annotations."""

from __future__ import annotations

from pathlib import Path

from detres.detection.annotations import Annotations
from detres.detection.config import DataConfig
from detres.detection.data.box_policy import BoxPolicy
from detres.detection.data.coco import read_coco
from detres.detection.data.shapes import ensure_shapes
from detres.detection.data.voc import read_voc


def read_split(data: DataConfig, split: str, *, box_policy: BoxPolicy | None = None) -> Annotations:
    """Read the `split` ("train" or "val") of a data configuration whose root is settled.

    box_policy: by default the configuration's for train; ground truth for evaluation is kept as it
    stands ("keep"), so that the numbers are those of the official tools. Raises what the readers
    raise.
    """
    policy = box_policy or (data.box_policy if split == "train" else "keep")
    if data.format == "shapes":
        cache = Path(data.root) if data.root else None
        root = ensure_shapes(cache, num_train=data.shapes_train, num_val=data.shapes_val)
        file, folder = root / "annotations" / f"{split}.json", root / split
        return read_coco(file, folder, classes=data.classes, box_policy=policy)
    root = Path(data.root)
    if data.format == "voc":
        splits = list(getattr(data, split))
        return read_voc(root, splits, classes=data.classes, box_policy=policy)
    files, folders = getattr(data, split), getattr(data, f"{split}_images")
    parts = [
        read_coco(root / file, root / folder, classes=data.classes, box_policy=policy)
        for file, folder in zip(files, folders, strict=True)
    ]
    return Annotations.concatenate(parts)

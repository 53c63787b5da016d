"""A data configuration -> annotations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from detres.class_map import LISTED_CLASSES
from detres.detection.annotations import Annotations
from detres.detection.config import DataConfig
from detres.detection.data.box_policy import BoxPolicy
from detres.detection.data.coco import read_coco
from detres.detection.data.ilsvrc import read_ilsvrc
from detres.detection.data.shapes import ensure_shapes
from detres.detection.data.voc import read_voc
from detres.user_files import tidied

_FOLDERS = {"voc": read_voc, "ilsvrc": read_ilsvrc}
"""Formats whose splits are lists in one folder."""


def read_split(data: DataConfig, split: str, *, box_policy: BoxPolicy | None = None) -> Annotations:
    """Read the `split` ("train" or "val") of a data configuration whose root is settled.

    box_policy: by default the configuration's for train; ground truth for evaluation is kept as it
    stands ("keep"), so that the numbers are those of the official tools. Classes without an object
    to learn from are noted. Raises what the readers raise, ValueError when held-out images of
    several files or folders have the same ids: results could not refer to them.
    """
    policy = box_policy or (data.box_policy if split == "train" else "keep")
    annotations = _read(data, split, policy)
    if split == "train":
        return _with_empty_classes_noted(annotations)
    if annotations.told_apart:
        raise ValueError(
            f"{annotations.source} have the same image ids, and results of held-out images refer "
            "to the ids of one: number or name the images otherwise, or evaluate on one alone"
        )
    return annotations


def _read(data: DataConfig, split: str, policy: BoxPolicy) -> Annotations:
    if data.format == "shapes":
        cache = Path(data.root) if data.root else None
        root = ensure_shapes(cache, num_train=data.shapes_train, num_val=data.shapes_val)
        file, folder = root / "annotations" / f"{split}.json", root / split
        return read_coco(file, folder, classes=data.classes, box_policy=policy)
    root = Path(data.root)
    if data.format in _FOLDERS:
        read, splits = _FOLDERS[data.format], list(getattr(data, split))
        return read(root, splits, classes=data.classes, box_policy=policy)
    files, folders = getattr(data, split), getattr(data, f"{split}_images")
    parts = [
        read_coco(
            tidied(root / file),
            tidied(root / folder),
            classes=data.classes,
            box_policy=policy,
            outside=data.outside,
        )
        for file, folder in zip(files, folders, strict=True)
    ]
    return Annotations.concatenate(parts)


def _with_empty_classes_noted(annotations: Annotations) -> Annotations:
    """The annotations with a note on classes that no object to learn from has."""
    learnt = ~(annotations.crowd | annotations.difficult)
    counts = np.bincount(annotations.class_indices[learnt], minlength=len(annotations.class_map))
    empty = [annotations.class_map.names[index] for index in np.flatnonzero(counts == 0)]
    if not empty or len(empty) == len(counts):  # of the latter, require_objects says more
        return annotations
    listed = ", ".join(empty[:LISTED_CLASSES]) + (", ..." if len(empty) > LISTED_CLASSES else "")
    note = f"no object to learn from of {len(empty)} of {len(counts)} classes: {listed}"
    return replace(annotations, notes=(*annotations.notes, note))

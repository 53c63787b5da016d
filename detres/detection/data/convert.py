"""Annotations -> a folder of COCO JSON files with their images."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from detres.class_map import ClassMap
from detres.detection.annotations import Annotations
from detres.detection.data.split import file_names
from detres.files import write_text, writing_folder
from detres.images.decode import read_size

ANNOTATIONS = "annotations/instances_{split}.json"
IMAGES = "images/{split}"


def write_coco(splits: Mapping[str, Annotations], folder: Path, *, link: bool = False) -> None:
    """Write data sets of the same classes as COCO, in one step: annotations/instances_SPLIT.json
    and images/SPLIT, which a folder of that kind is recognised by.

    splits: by name, at least one; the classes of the first. folder: empty, or not there. link:
    images become links to where they are, else copies; they are never moved. Boxes, areas and ids
    stay as they are where COCO has them: image ids that are text become 1..N, category ids 1..K
    where one is 0. Difficult objects, which COCO does not know, are written as crowds, which
    nothing learns from or counts either, with "difficult" beside it. A size that is not known is
    read from the image. Raises TakenFolderError for a folder that holds files, OSError for an image
    that cannot be read.
    """
    first = next(iter(splits.values()))
    with writing_folder(folder) as temporary:
        (temporary / "annotations").mkdir()
        for split, annotations in splits.items():
            matched = annotations.matched_to(first.class_map, first.source)
            names = file_names(matched.image_files.tolist())
            content = coco_content(matched, names, first.class_map)
            write_text(temporary / ANNOTATIONS.format(split=split), json.dumps(content))
            images = temporary / IMAGES.format(split=split)
            images.mkdir(parents=True)
            for file, name in zip(matched.image_files.tolist(), names, strict=True):
                (images / name).parent.mkdir(parents=True, exist_ok=True)
                put = os.symlink if link else shutil.copyfile
                put(os.path.abspath(file), images / name)


def coco_content(annotations: Annotations, names: list[str], class_map: ClassMap) -> dict:
    """Return N annotated images as the content of a COCO file.

    names: N file names. class_map: what the category ids are from. See `write_coco`.
    """
    ids = annotations.image_ids.tolist()
    if annotations.image_ids.dtype.kind != "i":
        ids = list(range(1, len(ids) + 1))
    categories = list(class_map.source_ids)
    if min(categories) < 1:
        categories = list(range(1, len(categories) + 1))
    sizes = annotations.image_sizes.tolist()
    sizes = [
        size if min(size) > 0 else read_size(file)
        for size, file in zip(sizes, annotations.image_files.tolist(), strict=True)
    ]
    owners = np.repeat(np.arange(len(ids)), np.diff(annotations.offsets)).tolist()
    records = []
    for row, box in enumerate(annotations.xywh().tolist()):
        difficult = bool(annotations.difficult[row])
        records.append(
            {
                "id": int(annotations.ids[row]),
                "image_id": ids[owners[row]],
                "category_id": categories[int(annotations.class_indices[row])],
                "bbox": box,
                "area": float(annotations.areas[row]),
                "iscrowd": int(difficult or annotations.crowd[row]),
            }
            | ({"difficult": 1} if difficult else {})
        )
    return {
        "images": [
            {"id": image_id, "file_name": name, "height": height, "width": width}
            for image_id, name, (height, width) in zip(ids, names, sizes, strict=True)
        ],
        "annotations": records,
        "categories": [
            {"id": number, "name": name}
            for number, name in zip(categories, class_map.names, strict=True)
        ],
    }

"""Small made-up folders in the layouts of PASCAL VOC and COCO as they are downloaded.

Each image is a light rectangle, its object, on dark ground, of a size of its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from detres.detection.data.voc import VOC_CLASSES

VOC_LISTS = {
    "VOC2007": {"trainval": ("000001", "000005"), "test": ("000002", "000003", "000004")},
    "VOC2012": {"trainval": ("2008_000001", "2008_000003"), "test": ("2008_000002", "2008_000005")},
}
"""Year -> list -> image ids; the objects of VOC2012's test are not known."""

COCO_CLASSES = {1: "person", 3: "car", 17: "cat", 90: "toothbrush"}
"""Some of COCO's, under its own ids."""

COCO_FILES = {
    "instances_train2014": ("train2014", (9, 25, 30)),
    "instances_val2014": ("val2014", (42, 73)),
    "image_info_test-dev2015": ("test2015", (1, 14, 27)),
}
"""Annotation file -> image folder, image ids."""


def write_picture(path: Path, number: int) -> tuple[int, int, tuple[int, int, int, int]]:
    """Write an image; return its height, its width and its object (x1, y1, x2, y2) px."""
    height, width = 40 + number % 7, 60 + number % 11
    box = (5 + number % 3, 4, 30 + number % 5, 30)
    pixels = np.full((height, width, 3), 30, np.uint8)
    pixels[box[1] : box[3], box[0] : box[2]] = 220
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return height, width, box


def write_voc(devkit: Path) -> Path:
    """Write VOC2007 and VOC2012 into a VOCdevkit, and return it.

    VOC2012 has the person layout of one test image beside the annotations of trainval, as its
    test archive has.
    """
    for year, lists in VOC_LISTS.items():
        folder = devkit / year
        (folder / "ImageSets" / "Main").mkdir(parents=True)
        (folder / "Annotations").mkdir()
        for split, stems in lists.items():
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems) + "\n")
            for row, stem in enumerate(stems):
                number = int(stem.replace("_", ""))
                picture = write_picture(folder / "JPEGImages" / f"{stem}.jpg", number)
                if (year, split) != ("VOC2012", "test"):
                    write_xml(folder, stem, VOC_CLASSES[(number + row) % 20], picture)
    write_xml(devkit / "VOC2012", "2008_000005", "person", (40, 60, (1, 1, 20, 20)))
    return devkit


def write_xml(
    folder: Path, stem: str, name: str, picture: tuple[int, int, tuple[int, int, int, int]]
) -> None:
    height, width, (x1, y1, x2, y2) = picture
    sides = {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2}
    box = "".join(f"<{side}>{value}</{side}>" for side, value in sides.items())
    (folder / "Annotations" / f"{stem}.xml").write_text(
        f"<annotation><folder>{folder.name}</folder><filename>{stem}.jpg</filename><size><width>"
        f"{width}</width><height>{height}</height><depth>3</depth></size><object><name>{name}"
        f"</name><pose>Left</pose><truncated>0</truncated><difficult>0</difficult><bndbox>{box}"
        "</bndbox></object></annotation>"
    )


def write_coco(root: Path) -> Path:
    """Write annotations/, train2014/, val2014/ and test2015/, and return their folder."""
    (root / "annotations").mkdir(parents=True)
    for file, (folder, ids) in COCO_FILES.items():
        images, annotations = [], []
        for row, image_id in enumerate(ids):
            name = f"COCO_{folder}_{image_id:012d}.jpg"
            height, width, (x1, y1, x2, y2) = write_picture(root / folder / name, image_id)
            images.append({"id": image_id, "file_name": name, "height": height, "width": width})
            annotations.append(
                {
                    "id": 100 + row,
                    "image_id": image_id,
                    "category_id": list(COCO_CLASSES)[row % 4],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                }
            )
        content = {
            "info": {},
            "images": images,
            "licenses": [],
            "categories": [{"id": i, "name": name} for i, name in COCO_CLASSES.items()],
        }
        if file.startswith("instances"):
            content["annotations"] = annotations
        (root / "annotations" / f"{file}.json").write_text(json.dumps(content))
    return root

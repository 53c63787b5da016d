"""Small made-up folders in the layouts of PASCAL VOC, COCO and ILSVRC as they are downloaded.

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


DET_CLASSES = {"n02672831": (1, "accordion"), "n02084071": (58, "dog"), "n02391049": (200, "zebra")}
"""Synset -> number and name of some of ILSVRC DET's, as its devkit has them."""

LOC_CLASSES = {
    "n02119789": (1, "kit_fox"),
    "n02100735": (2, "English_setter"),
    "n02110185": (3, "Siberian_husky"),
    "n02096294": (4, "Australian_terrier"),
    "n02102040": (5, "English_springer"),
    "n02066245": (6, "grey_whale"),
}
"""Some of CLS-LOC's, whose numbers are in no alphabetical order."""

ILSVRC_LISTS = {
    "DET": {
        "train_1": ("ILSVRC2013_train/n02084071/n02084071_7", "ILSVRC2013_train/n02391049/n_3"),
        "val": ("ILSVRC2012_val_00000002", "ILSVRC2012_val_00000001"),
        "val1": ("ILSVRC2012_val_00000001",),
        "test": ("ILSVRC2013_test_00000005", "ILSVRC2013_test_00000001", "ILSVRC2015_test_01"),
    },
    "CLS-LOC": {
        "train_loc": ("n02100735/n02100735_7", "n02066245/n02066245_3"),
        "val": ("ILSVRC2012_val_00000002", "ILSVRC2012_val_00000001"),
        "test": ("ILSVRC2012_test_00000003", "ILSVRC2012_test_00000001"),
    },
}
"""Task -> list -> images, numbered by their lines; those of the test lists are in no order of their
names, and their objects are not known.
"""


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


def write_ilsvrc(root: Path) -> Path:
    """Write Annotations, Data, ImageSets and devkit of both tasks, and return their folder."""
    maps = {"DET": ("map_det", DET_CLASSES), "CLS-LOC": ("map_clsloc", LOC_CLASSES)}
    (root / "devkit" / "data").mkdir(parents=True)
    for task, (file, classes) in maps.items():
        rows = [f"{wnid} {number} {name}\n" for wnid, (number, name) in classes.items()]
        (root / "devkit" / "data" / f"{file}.txt").write_text("".join(rows))
        (root / "ImageSets" / task).mkdir(parents=True)
        for name, images in ILSVRC_LISTS[task].items():
            lines = [f"{image} {number}\n" for number, image in enumerate(images, start=1)]
            (root / "ImageSets" / task / f"{name}.txt").write_text("".join(lines))
            part = next(part for part in ("train", "val", "test") if name.startswith(part))
            for row, image in enumerate(images):
                picture = write_picture(root / "Data" / task / part / f"{image}.JPEG", row + 7)
                wnid = next((each for each in classes if each in image), list(classes)[row % 3])
                if part != "test":
                    write_ilsvrc_xml(
                        root / "Annotations" / task / part / f"{image}.xml", wnid, picture
                    )
    return root


def write_ilsvrc_xml(
    path: Path, wnid: str, picture: tuple[int, int, tuple[int, int, int, int]]
) -> None:
    """Write the annotation of an image; inclusive pixels, counted from 0."""
    height, width, (x1, y1, x2, y2) = picture
    sides = {"xmin": x1, "xmax": x2 - 1, "ymin": y1, "ymax": y2 - 1}
    box = "".join(f"<{side}>{value}</{side}>" for side, value in sides.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f"<annotation><size><width>{width}</width><height>{height}</height></size><object><name>"
        f"{wnid}</name><bndbox>{box}</bndbox></object></annotation>"
    )

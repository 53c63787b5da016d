"""Annotated images written in the formats that other tools export; nothing of detres is used."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Picture:
    """An image file with its size in px and its objects: (class, (x1, y1, x2, y2)) px."""

    file: Path
    width: int
    height: int
    objects: tuple[tuple[str, Box], ...]

    @property
    def stem(self) -> str:
        return self.file.stem


Pictures = dict[str, list[Picture]]
"""Split -> its pictures."""


def names_of(pictures: Pictures) -> list[str]:
    return sorted({name for part in pictures.values() for p in part for name, _ in p.objects})


def put(picture: Picture, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    os.symlink(picture.file, folder / picture.file.name)


def short(number: float) -> str:
    return repr(round(number, 4))


def xml_of(picture: Picture) -> str:
    """VOC's XML: the first pixel is 1, and the far corner belongs to the object."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = picture.file.name
    size = ElementTree.SubElement(root, "size")
    for key, value in (("width", picture.width), ("height", picture.height), ("depth", 3)):
        ElementTree.SubElement(size, key).text = str(value)
    for name, (x1, y1, x2, y2) in picture.objects:
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = name
        ElementTree.SubElement(item, "difficult").text = "0"
        sides = ElementTree.SubElement(item, "bndbox")
        for key, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
            ElementTree.SubElement(sides, key).text = short(value)
    return ElementTree.tostring(root, encoding="unicode")


def write_voc(pictures: Pictures, out: Path) -> None:
    lists = out / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (out / "Annotations").mkdir()
    for split, part in pictures.items():
        (lists / f"{split}.txt").write_text("".join(f"{picture.stem}\n" for picture in part))
        for picture in part:
            put(picture, out / "JPEGImages")
            (out / "Annotations" / f"{picture.stem}.xml").write_text(xml_of(picture))


def write_plain_xml(pictures: Pictures, out: Path) -> None:
    for split, part in pictures.items():
        for picture in part:
            put(picture, out / split)
            (out / split / f"{picture.stem}.xml").write_text(xml_of(picture))


def coco_of(part: list[Picture], names: list[str], first: int) -> dict:
    records = [
        {
            "image_id": image_id,
            "category_id": names.index(name) + first,
            "bbox": [round(v, 4) for v in (x1, y1, x2 - x1, y2 - y1)],
            "area": (x2 - x1) * (y2 - y1),
            "iscrowd": 0,
        }
        for image_id, picture in enumerate(part)
        for name, (x1, y1, x2, y2) in picture.objects
    ]
    return {
        "info": {"description": "of another tool"},
        "categories": [{"id": n + first, "name": name} for n, name in enumerate(names)],
        "images": [
            {"id": n, "file_name": p.file.name, "height": p.height, "width": p.width}
            for n, p in enumerate(part)
        ],
        "annotations": [{"id": number, **record} for number, record in enumerate(records)],
    }


def write_coco(pictures: Pictures, out: Path) -> None:
    (out / "annotations").mkdir(parents=True)
    for split, part in pictures.items():
        content = coco_of(part, names_of(pictures), first=1)
        (out / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
        for picture in part:
            put(picture, out / f"{split}2017")


def write_roboflow_coco(pictures: Pictures, out: Path) -> None:
    """Its category 0 is the project, the supercategory of the others."""
    for split, part in pictures.items():
        folder = out / {"val": "valid"}.get(split, split)
        for picture in part:
            put(picture, folder)
        content = coco_of(part, names_of(pictures), first=1)
        content["categories"] = [
            {"id": 0, "name": "things", "supercategory": "none"},
            *({**category, "supercategory": "things"} for category in content["categories"]),
        ]
        (folder / "_annotations.coco.json").write_text(json.dumps(content))


def yolo_lines(picture: Picture, names: list[str]) -> str:
    lines = []
    for name, (x1, y1, x2, y2) in picture.objects:
        fractions = (
            (x1 + x2) / 2 / picture.width,
            (y1 + y2) / 2 / picture.height,
            (x2 - x1) / picture.width,
            (y2 - y1) / picture.height,
        )
        lines.append(" ".join([str(names.index(name)), *(f"{value:.6f}" for value in fractions)]))
    return "".join(f"{line}\n" for line in lines)


def write_yolo(pictures: Pictures, out: Path) -> None:
    names = names_of(pictures)
    for split, part in pictures.items():
        (out / split / "labels").mkdir(parents=True)
        for picture in part:
            put(picture, out / split / "images")
            text = yolo_lines(picture, names)
            (out / split / "labels" / f"{picture.stem}.txt").write_text(text)
    listed = "".join(f"  - {json.dumps(name)}\n" for name in names)
    paths = "".join(f"{split}: ../{split}/images\n" for split in pictures)
    (out / "data.yaml").write_text(f"{paths}\nnc: {len(names)}\nnames:\n{listed}")


def labelme_of(picture: Picture) -> dict:
    shapes = [
        {
            "label": name,
            "points": [[x2, y1], [x1, y2]] if number % 2 else [[x1, y1], [x2, y2]],
            "group_id": None,
            "shape_type": "rectangle",
            "flags": {},
        }
        for number, (name, (x1, y1, x2, y2)) in enumerate(picture.objects)
    ]
    return {
        "version": "5.4.1",
        "flags": {},
        "shapes": shapes,
        "imagePath": picture.file.name,
        "imageData": "/9j/" + "A" * 200,
        "imageHeight": picture.height,
        "imageWidth": picture.width,
    }


def write_labelme(pictures: Pictures, out: Path) -> None:
    for split, part in pictures.items():
        for picture in part:
            put(picture, out / split)
            text = json.dumps(labelme_of(picture), indent=2)
            (out / split / f"{picture.stem}.json").write_text(text)


def write_csv(pictures: Pictures, out: Path) -> None:
    header = ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"]
    for split, part in pictures.items():
        for picture in part:
            put(picture, out / split)
        with (out / split / "_annotations.csv").open("w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(header)
            for picture in part:
                of_image = [picture.file.name, picture.width, picture.height]
                for name, box in picture.objects:
                    lines.writerow([*of_image, name, *map(short, box)])
                if not picture.objects:
                    lines.writerow([*of_image, *[""] * 5])


WRITERS: dict[str, Callable[[Pictures, Path], None]] = {
    "VOC": write_voc,
    "plain XML": write_plain_xml,
    "COCO": write_coco,
    "Roboflow COCO": write_roboflow_coco,
    "YOLO": write_yolo,
    "LabelMe": write_labelme,
    "CSV": write_csv,
}


def pictures_of_voc(root: Path, splits: dict[str, str]) -> Pictures:
    """Those of a folder in VOC's layout, without boxes that have no area; splits: of ours -> the
    list there.
    """
    pictures: Pictures = {}
    for split, listed in splits.items():
        stems = (root / "ImageSets" / "Main" / f"{listed}.txt").read_text().split()
        pictures[split] = []
        for stem in stems:
            tree = ElementTree.parse(root / "Annotations" / f"{stem}.xml").getroot()
            objects = []
            for item in tree.iter("object"):
                x1, y1, x2, y2 = (
                    float(item.find(f"bndbox/{key}").text)
                    for key in ("xmin", "ymin", "xmax", "ymax")
                )
                if x2 > x1 and y2 > y1:
                    objects.append((item.find("name").text, (x1 - 1, y1 - 1, x2, y2)))
            width, height = (int(tree.find(f"size/{key}").text) for key in ("width", "height"))
            file = root / "JPEGImages" / f"{stem}.jpg"
            pictures[split].append(Picture(file, width, height, tuple(objects)))
    return pictures


def pictures_of_coco(root: Path) -> Pictures:
    """Those of coco_mini, without crowds, which the other formats do not know."""
    pictures: Pictures = {}
    for split in ("train", "val"):
        content = json.loads((root / "annotations" / f"instances_{split}2017.json").read_text())
        names = {category["id"]: category["name"] for category in content["categories"]}
        objects: dict[int, list] = {image["id"]: [] for image in content["images"]}
        for item in content["annotations"]:
            x, y, width, height = item["bbox"]
            if not item["iscrowd"]:
                box = (x, y, x + width, y + height)
                objects[item["image_id"]].append((names[item["category_id"]], box))
        pictures[split] = [
            Picture(
                root / f"{split}2017" / image["file_name"],
                image["width"],
                image["height"],
                tuple(objects[image["id"]]),
            )
            for image in content["images"]
        ]
    return pictures

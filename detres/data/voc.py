"""PASCAL VOC XML -> Annotations."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

import numpy as np
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import parse

from detres.data.box_policy import AnnotationError, BoxPolicy, apply_box_policy
from detres.data.coco import known_classes
from detres.image_io import IMAGE_SUFFIXES
from detres.structures import Annotations, ClassMap

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The twenty classes of PASCAL VOC in its own order, used when a data set has no other."""


def read_voc(
    root: str | Path,
    splits: Sequence[str],
    *,
    classes: Sequence[str] | None = None,
    boxes: BoxPolicy = "drop",
    check_images: bool = True,
) -> Annotations:
    """Read one or more splits of data in the VOC layout; image ids are file stems, source ids are 1..K.

    root: a VOCdevkit, with splits "VOC2007/trainval", or one year's folder (Annotations, ImageSets/Main, JPEGImages), with
    splits "trainval". Several splits are put together.
    classes: train on these only, in this order. Otherwise they come from the XML files of all images in the splits' folders,
    not only of the split, so that train and test agree: VOC's twenty in VOC's order when there is no other name, else all
    names found, sorted.
    Coordinates in the files are 1-based and inclusive: x1 and y1 lose 1, x2 and y2 stay, which makes them continuous.
    difficult is kept as a flag. boxes: see apply_box_policy; a box with xmax <= xmin or ymax <= ymin has no area.
    check_images: look for the image files (any usual suffix) in JPEGImages.

    Raises FileNotFoundError for a missing folder, split (naming those that exist), XML or image; AnnotationError for XML that
    is malformed or has entities, an object without name or box, an image id in two splits, an unknown class name.
    """
    root = Path(root)
    folders = [_folder_and_split(root, split) for split in splits]
    stems = [(folder, stem) for folder, split in folders for stem in _read_split(folder, split)]
    repeated = [stem for stem, count in Counter(stem for _, stem in stems).items() if count > 1]
    if repeated:
        raise AnnotationError(f"{root}: image {repeated[0]} is listed twice in {' + '.join(splits)} ({len(repeated)} such)")

    missing_xml = [folder / "Annotations" / f"{stem}.xml" for folder, stem in stems if not (folder / "Annotations" / f"{stem}.xml").is_file()]
    if missing_xml:
        raise FileNotFoundError(f"{len(missing_xml)} annotation files of {' + '.join(splits)} are missing, the first is {missing_xml[0]}")
    files = {folder: _image_files(folder) if check_images else {} for folder, _ in folders}
    missing = [folder / "JPEGImages" / stem for folder, stem in stems if check_images and stem not in files[folder]]
    if missing:
        raise FileNotFoundError(f"{len(missing)} of {len(stems)} images are missing, the first is {missing[0]}.*")

    records = {folder: {} for folder, _ in folders}
    for folder in records:
        for path in sorted((folder / "Annotations").glob("*.xml")):
            records[folder][path.stem] = _read_xml(path)
    names_found = sorted({name for folder in records for _, objects in records[folder].values() for name, _, _ in objects})
    class_map = _class_map(names_found, classes, str(root))

    dropped: Counter[str] = Counter()
    label_of = {name: k for k, name in enumerate(class_map.names, start=1)}
    sizes, counts, raw, labels, difficult, where = [], [], [], [], [], []
    for folder, stem in stems:
        size, objects = records[folder][stem]
        kept = [item for item in objects if item[0] in label_of]
        if len(kept) < len(objects):
            dropped["object of another class"] += len(objects) - len(kept)
        sizes.append(size)
        counts.append(len(kept))
        for number, (name, box, is_difficult) in enumerate(kept):
            raw.append(box)
            labels.append(label_of[name])
            difficult.append(is_difficult)
            where.append((folder / "Annotations" / f"{stem}.xml", number, name))
    image_rows = np.repeat(np.arange(len(stems)), counts)
    sizes = np.array(sizes, np.int32).reshape(-1, 2)
    inclusive = np.array(raw, np.float64).reshape(-1, 4)
    xyxy = inclusive - np.array((1, 1, 0, 0))
    if boxes != "keep":
        # A side of one number (xmin = xmax) is no area by the file's own reckoning, though 1 px wide once continuous.
        flat = (inclusive[:, 2:] <= inclusive[:, :2]).any(axis=1)
        xyxy[flat, 2:] = xyxy[flat, :2]
    xyxy, keep, reasons = apply_box_policy(
        xyxy, sizes[image_rows], boxes, lambda row: f"{where[row][0]}: object {where[row][1] + 1} ({where[row][2]}), bndbox {raw[row]}"
    )
    dropped.update(reasons)
    areas = (xyxy[:, 2] - xyxy[:, 0]) * (xyxy[:, 3] - xyxy[:, 1])
    num_kept = int(keep.sum())
    return Annotations(
        source=f"{root}: {' + '.join(splits)}",
        class_map=class_map,
        image_ids=np.array([stem for _, stem in stems], dtype=str),
        image_files=np.array([str(files[folder].get(stem, stem)) for folder, stem in stems], dtype=str),
        image_sizes=sizes,
        offsets=np.concatenate(([0], np.cumsum(np.bincount(image_rows[keep], minlength=len(stems))))).astype(np.int64),
        boxes=xyxy[keep],
        labels=np.array(labels, np.int64)[keep],
        areas=areas[keep],
        crowd=np.zeros(num_kept, bool),
        difficult=np.array(difficult, bool)[keep],
        ids=np.arange(1, num_kept + 1),
        dropped=dict(dropped),
    )


def _folder_and_split(root: Path, split: str) -> tuple[Path, str]:
    year, _, name = split.rpartition("/")
    candidates = [root / year, root / f"VOC{year}"] if year else [root]
    for folder in candidates:
        if (folder / "ImageSets" / "Main").is_dir():
            return folder, name
    years = sorted(str(path.parent.parent.name) for path in root.glob("*/ImageSets/Main"))
    hint = f"; {root} has {', '.join(years)}: write {years[0]}/{name}" if years else ""
    raise FileNotFoundError(f"split {split}: no folder {candidates[0] / 'ImageSets' / 'Main'}{hint}")


def _read_split(folder: Path, split: str) -> list[str]:
    """The stems of ImageSets/Main/SPLIT.txt; of a class list ("STEM 1", "STEM -1") those that are not -1."""
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt")))
        raise FileNotFoundError(f"no split file {path}; there are: {known or 'none'}")
    fields = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    stems = [field[0] for field in fields if len(field) == 1 or field[1] != "-1"]
    if not stems:
        raise AnnotationError(f"{path} lists no image")
    return stems


def _image_files(folder: Path) -> dict[str, str]:
    images = folder / "JPEGImages"
    if not images.is_dir():
        raise FileNotFoundError(f"no image folder {images}")
    return {
        os.path.splitext(entry.name)[0]: entry.path
        for entry in os.scandir(images)
        if os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES
    }


def _read_xml(path: Path) -> tuple[tuple[int, int], list[tuple[str, tuple[float, ...], bool]]]:
    """Return ((h, w), 0 where not given) and (name, (xmin, ymin, xmax, ymax) as written, difficult) for every object."""
    try:
        tree = parse(path, forbid_dtd=True).getroot()
    except DefusedXmlException as error:
        raise AnnotationError(f"{path}: refused, it declares a document type or entities ({type(error).__name__}); VOC files have none") from None
    except ParseError as error:
        raise AnnotationError(f"{path} is not well-formed XML: {error}") from None
    size = tuple(int(float(tree.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
    return size, [_read_object(node, number, path) for number, node in enumerate(tree.iter("object"), start=1)]


def _read_object(node: Element, number: int, path: Path) -> tuple[str, tuple[float, ...], bool]:
    name = (node.findtext("name") or "").strip()
    if not name:
        raise AnnotationError(f"{path}: object {number} has no name")
    try:
        box = tuple(float(node.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
    except (TypeError, ValueError):
        raise AnnotationError(f"{path}: object {number} ({name}) has no bndbox with the numbers xmin, ymin, xmax, ymax") from None
    return name, box, (node.findtext("difficult") or "0").strip() not in ("", "0")


def _class_map(found: list[str], classes: Sequence[str] | None, source: str) -> ClassMap:
    if classes is not None:
        names = tuple(known_classes(classes, found, source))
    elif set(found) <= set(VOC_CLASSES):
        names = VOC_CLASSES
    else:
        names = tuple(found)
    if not names:
        raise AnnotationError(f"{source}: no object in any annotation file, so there are no classes")
    return ClassMap(names=names, source_ids=tuple(range(1, len(names) + 1)))

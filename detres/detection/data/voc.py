"""A PASCAL VOC folder -> Annotations."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detres.class_map import ClassMap
from detres.console import shortened
from detres.detection.annotations import Annotations, offsets_of
from detres.detection.data.box_policy import AnnotationError, BoxPolicy, known_classes
from detres.detection.data.read_each import read_each
from detres.detection.data.voc_xml import XmlImages, XmlRecord, annotations_of, read_xml
from detres.images.decode import IMAGE_SUFFIXES, read_size
from detres.images.locate import Spellings, require_usable, respelled
from detres.user_files import fault_of, is_hidden, read_text

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
"""The twenty classes of PASCAL VOC in its own order, which its own folders keep whichever of them
occur.
"""
VOC_YEAR = re.compile(r"VOC\d{4}")

VOC_CORNER = 1
"""Of VOC's images, the number that the first pixel has."""


def read_voc(
    root: str | Path,
    splits: Sequence[str],
    *,
    classes: Sequence[str] | None = None,
    box_policy: BoxPolicy = "drop",
    check_images: bool = True,
    may_lack_truth: bool = False,
    names: Sequence[str] = (),
) -> Annotations:
    """Read one or more splits of data in the VOC layout; image ids are file stems, behind their
    folder ("VOC2007/000001") where folders share some, source ids are 1..K.

    root: a VOCdevkit, with splits "VOC2007/trainval" or "2007/trainval", or one year's folder
    (Annotations, ImageSets/Main, JPEGImages), with splits "trainval". Several splits are put
    together. Of a class's own list ("STEM -1" where the class is absent) the images without it are
    left out. classes: train on these only, in this order; other objects are left out and counted.
    Otherwise the classes come from every XML file in the splits' Annotations folders, not only
    those of the split, so that train and test agree: VOC's twenty in VOC's order when the folders
    are named VOCyyyy and there is no other name, else all names found, sorted. Coordinates in the
    files are 1-based and inclusive: x1 and y1 lose 1, x2 and y2 stay, which makes them continuous.
    difficult is kept as a flag, written as detres.values says. The image of a stem has any of
    IMAGE_SUFFIXES; a stem that is not there as listed is looked for in other spellings (see
    images.locate.Spellings), and without the image suffix it may be listed with; what the XML says
    of file names is ignored. Names that start with a dot are passed over. box_policy: see
    apply_box_policy; a box with xmax <= xmin or ymax <= ymin has no area. check_images: False looks
    for no image file (to evaluate results, none is needed); image_files then hold the stems.

    Raises FileNotFoundError for a missing folder, split (naming those that exist), XML or image,
    and for a dangling link or anything but a file in their place; AnnotationError for XML that is
    malformed, no VOC annotation or declares entities, an object without name or box, a flag that is
    none, a side beyond LARGEST_SIDE, an image in two splits of a folder, an unknown class name, and
    when no file has an object; TextError for a list in an unknown encoding.
    """
    root = Path(root)
    source = f"{root}: {' + '.join(splits)}"
    images = [image for split in splits for image in _read_split(root, split)]
    if not images:
        raise AnnotationError(f"{root}: no split is given")
    folders = list(dict.fromkeys(image.folder for image in images))
    xml_files = _xml_files(folders)
    lacking = _matched(images, xml_files)[2] if may_lack_truth else []
    if lacking:
        found = _names_of(_read_all(xml_files).values(), folders, names)
        without_truth = (
            f"{len(lacking)} of {len(images)} have no XML file in Annotations, such as "
            f"{shortened(lacking[0].stem)}"
        )
        class_map = _class_map(found, classes, str(root))
        return _read_images(images, folders, source, class_map, without_truth)
    images, notes = _respell(images, xml_files, "annotation", source)
    _require_once(images, source)
    image_ids, told_apart, said = _image_ids(images, folders)
    notes += said
    files = [image.stem for image in images]
    if check_images:
        _, files, said = _files_of(images, folders, source)
        notes += said
    records = _read_all(xml_files)
    class_map = _class_map(_names_of(records.values(), folders), classes, str(root))

    paths = [xml_files[image.folder][image.stem] for image in images]
    return annotations_of(
        XmlImages(
            source=source,
            ids=image_ids,
            files=files,
            paths=paths,
            records=[records[path] for path in paths],
            told_apart=told_apart,
        ),
        class_map,
        {name: index for index, name in enumerate(class_map.names)},
        corner=VOC_CORNER,
        box_policy=box_policy,
        notes=notes,
    )


class _Listed(NamedTuple):
    """An image of a split: its year's folder, its stem, and the list and line that name it."""

    folder: Path
    stem: str
    where: str


def _require_once(images: list[_Listed], source: str) -> None:
    counts = Counter((image.folder, image.stem) for image in images)
    repeated = [key for key, count in counts.items() if count > 1]
    if repeated:
        folder, stem = repeated[0]
        first, second = [
            image.where for image in images if (image.folder, image.stem) == (folder, stem)
        ][:2]
        raise AnnotationError(
            f"{source}: image {shortened(stem)} is listed twice, in {first} and {second} "
            f"({len(repeated)} such)"
        )


def _image_ids(images: list[_Listed], folders: list[Path]) -> tuple[np.ndarray, bool, list[str]]:
    """The ids (N,) str of images: their stems, told apart by the folder where folders share some;
    whether they had to be, and what is to be said about it.
    """
    stems = [image.stem for image in images]
    if len(set(stems)) == len(images):
        return np.array(stems, dtype=str), False, []
    last = os.path.commonpath(folders)
    named = [f"{image.folder.relative_to(last).as_posix()}/{image.stem}" for image in images]
    note = (
        f"image ids are told apart by their folder: {len(folders)} folders have some of the same "
        "file names"
    )
    return np.array(named, dtype=str), True, [note]


def _files_of(
    images: list[_Listed], folders: list[Path], source: str
) -> tuple[list[_Listed], list[str], list[str]]:
    """Every image listed as its file is spelt, that file, and what is to be said about them."""
    found = {folder: _image_files(folder / "JPEGImages") for folder in folders}
    images, notes = _respell(images, found, "image", source)
    files = [found[image.folder][image.stem] for image in images]
    require_usable([(file, fault_of(file)) for file in files], len(files), source)
    return images, files, notes


def _read_images(
    images: list[_Listed],
    folders: list[Path],
    source: str,
    class_map: ClassMap,
    without_truth: str,
) -> Annotations:
    """The images of a test set whose objects are not known, their sizes as their headers tell."""
    images, files, notes = _files_of(images, folders, source)
    _require_once(images, source)
    image_ids, told_apart, said = _image_ids(images, folders)
    return Annotations(
        source=source,
        class_map=class_map,
        image_ids=image_ids,
        image_files=np.array(files, dtype=str),
        image_sizes=np.array(read_each(files, read_size, "images"), np.int32),
        offsets=offsets_of(np.zeros(0, np.int64), len(images)),
        boxes=np.zeros((0, 4)),
        labels=np.zeros(0, np.int64),
        areas=np.zeros(0),
        crowd=np.zeros(0, bool),
        difficult=np.zeros(0, bool),
        ids=np.zeros(0, np.int64),
        dropped={},
        notes=(*notes, *said),
        told_apart=told_apart,
        without_truth=without_truth,
    )


def _read_all(xml_files: dict[Path, dict[str, Path]]) -> dict[Path, XmlRecord]:
    """What every XML file says."""
    paths = [path for of_folder in xml_files.values() for path in of_folder.values()]
    return dict(zip(paths, read_each(paths, read_xml), strict=True))


def _xml_files(folders: list[Path]) -> dict[Path, dict[str, Path]]:
    """Folder -> stem -> XML file, of all in the folder but hidden ones."""
    return {
        folder: {
            path.stem: path for path in sorted((folder / "Annotations").glob("[!.]*.[xX][mM][lL]"))
        }
        for folder in folders
    }


Found = dict[Path, dict[str, Path | str]]
"""Folder -> stem -> file."""


def _matched(
    images: list[_Listed], found: Found
) -> tuple[list[_Listed], list[tuple[str, str]], list[_Listed]]:
    """Every image listed with its stem as it is `found`; (listed, found) of those that are spelt
    otherwise; and those that are not there in any spelling, as they are listed.
    """
    missing = {row for row, image in enumerate(images) if image.stem not in found[image.folder]}
    if not missing:
        return images, [], []
    spellings = {folder: Spellings(stems) for folder, stems in found.items()}
    images, lost, pairs = list(images), [], []
    for row in sorted(missing):
        folder, stem, _ = images[row]
        bare, suffix = os.path.splitext(stem)
        spelt = spellings[folder].match(stem)
        if spelt is None and suffix.lower() in IMAGE_SUFFIXES:
            spelt = bare if bare in found[folder] else spellings[folder].match(bare)
        if spelt is None:
            lost.append(images[row])
        else:
            images[row] = images[row]._replace(stem=spelt)
            pairs.append((stem, spelt))
    return images, pairs, lost


def _respell(
    images: list[_Listed], found: Found, what: str, source: str
) -> tuple[list[_Listed], list[str]]:
    """Every image listed with its stem as it is `found`, and what is to be said about
    it; raises FileNotFoundError for stems that are not there in any spelling.
    """
    images, pairs, lost = _matched(images, found)
    if lost:
        places = {"image": ("JPEGImages", "*"), "annotation": ("Annotations", "xml")}
        below, suffix = places[what]
        first = ", ".join(
            shortened(str(image.folder / below / f"{image.stem}.{suffix}"), 200)
            for image in lost[:3]
        )
        folder, stem, where = lost[0]
        others = {image.stem for image in images if image.folder == folder}
        near = Spellings(set(found[folder]) - others).nearest(stem)
        raise FileNotFoundError(
            f"{source}: {len(lost)} {what} file{'s' if len(lost) > 1 else ''} missing: {first}"
            + (", ..." if len(lost) > 3 else "")
            + f" (listed in {where})"
            + (f"; the nearest to the first is {near}" if near else "")
        )
    return images, respelled(pairs, len(images), what)


def _names_of(
    records: Iterable[XmlRecord], folders: list[Path], known: Sequence[str] | None = None
) -> tuple[str, ...]:
    """The classes of all records: VOC's twenty in its own folders, else those found, sorted.

    known: those of a test set without truth, of which the records may tell a few or none.
    """
    names = {item.name for record in records for item in record.objects}
    its_own = all(VOC_YEAR.fullmatch(folder.resolve().name) for folder in folders)
    if its_own and (names or known is not None) and names <= set(VOC_CLASSES):
        return VOC_CLASSES
    return tuple(known) if known and names <= set(known) else tuple(sorted(names))


def split_folder(root: Path, split: str) -> tuple[Path, str]:
    """Return the folder that a split is in, and the name of its list in ImageSets/Main.

    root, split: as `read_voc` takes them. Raises FileNotFoundError where there is no such folder.
    """
    year, _, name = split.rpartition("/")
    folders = [root / year, root / f"VOC{year}"] if year else [root]
    folder = next((folder for folder in folders if (folder / "ImageSets" / "Main").is_dir()), None)
    if folder is None:
        years = sorted(path.parent.parent.name for path in root.glob("*/ImageSets/Main"))
        hint = f"; {root} has {', '.join(years)}: write {years[0]}/{name}" if years else ""
        raise FileNotFoundError(
            f"split {split}: no folder {folders[0] / 'ImageSets' / 'Main'}{hint}"
        )
    return folder, name


def _read_split(root: Path, split: str) -> list[_Listed]:
    """Every image of a split."""
    folder, name = split_folder(root, split)
    path = folder / "ImageSets" / "Main" / f"{name}.txt"
    if fault_of(path) == "does not exist":
        known = ", ".join(sorted(other.stem for other in path.parent.glob("[!.]*.txt")))
        raise FileNotFoundError(f"split {split}: no file {path}; there are: {known or 'none'}")
    written = enumerate(read_text(path, "image list").splitlines(), start=1)
    lines = {number: line.strip() for number, line in written if line.strip()}
    if not lines:
        raise AnnotationError(f"{path} lists no image")
    fields = {number: line.rsplit(maxsplit=1) for number, line in lines.items()}
    if all(
        len(field) == 2 and field[1] in ("1", "0", "-1") for field in fields.values()
    ):  # else a stem may hold spaces
        lines = {number: stem for number, (stem, flag) in fields.items() if flag != "-1"}
    return [_Listed(folder, stem, f"{path}:{number}") for number, stem in lines.items()]


def _image_files(folder: Path) -> dict[str, str]:
    """Stem -> path; of several images with one stem, the suffix that stands first in
    IMAGE_SUFFIXES.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no image folder {folder}")
    files = [(os.path.splitext(entry.name), entry.path) for entry in os.scandir(folder)]
    images = [
        (IMAGE_SUFFIXES.index(suffix.lower()), stem, path)
        for (stem, suffix), path in files
        if suffix.lower() in IMAGE_SUFFIXES and not is_hidden(stem)
    ]
    return {stem: path for _, stem, path in sorted(images, reverse=True)}


def _class_map(names: tuple[str, ...], classes: Sequence[str] | None, source: str) -> ClassMap:
    if not names:
        raise AnnotationError(
            f"{source}: no object in any annotation file, so there are no classes"
        )
    if classes is not None:
        names = known_classes(classes, names, source)
    return ClassMap.of_names(names)

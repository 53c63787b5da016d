"""An ILSVRC folder, of the detection (DET) or the localisation task (CLS-LOC) -> Annotations."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

import numpy as np

from detres.class_map import ClassMap
from detres.console import one_line, shown
from detres.detection.annotations import Annotations
from detres.detection.data.box_policy import AnnotationError, BoxPolicy, known_classes
from detres.detection.data.read_each import read_each
from detres.detection.data.voc_xml import XmlImages, XmlRecord, annotations_of, read_xml
from detres.images.locate import locate
from detres.user_files import fault_of, is_hidden, read_text

CORNER = 0
"""Of ILSVRC's boxes, the number that the first pixel has; some end a pixel outside their image."""

TASKS = {"DET": ("map_det.txt",), "CLS-LOC": ("map_clsloc.txt", "LOC_synset_mapping.txt")}
"""Task -> the files that list its synsets: of the devkit, and of the packages on Kaggle."""

NUM_CLASSES = {"DET": 200, "CLS-LOC": 1000}
"""Of each task; its server's numbers of them count from 1 (devkit, readme)."""

PARTS = ("train", "val", "test")
WHOLES = {*PARTS, "train_cls"}
"""Lists that hold every image of their part; CLS-LOC's train_cls, also those of train_loc."""

_NOTHING = XmlRecord((0, 0), [])


def read_ilsvrc(
    root: str | Path,
    splits: Sequence[str],
    *,
    classes: Sequence[str] | None = None,
    box_policy: BoxPolicy = "drop",
    check_images: bool = True,
) -> Annotations:
    """Read one or more lists of an ILSVRC task as downloaded; image ids are as listed, behind their
    folder where folders share some.

    root: the folder of Annotations, Data and ImageSets. splits: "DET/val", "CLS-LOC/train_loc" and
    so on, TASK/LIST of ImageSets/TASK/LIST.txt, with * in LIST for all that fit; all of one task. A
    list whose name begins with train, val or test is of the images in that folder of Data/TASK. Its
    lines are "IMAGE NUMBER", where -1 leaves the image out (DET's own lists of a class: it is known
    not to be there); an image in several lists counts once. An image without an XML file has no
    objects, and this is noted; where none of a test list has one, they are not known
    (without_truth). Of CLS-LOC/val, those on the devkit's blacklist are left out.

    Classes are those of the devkit's map_det.txt or map_clsloc.txt (or Kaggle's
    LOC_synset_mapping.txt) in root, root/devkit/data or the folder above, in its order and with its
    numbers as source ids; without it, all synsets in the XML files of the task, sorted. DET's are
    named as the map names them, CLS-LOC's by their synset ("n01440764"), as the folders of ImageNet
    classification are. classes: these only, in this order. Boxes are inclusive and count from 0.
    box_policy: see apply_box_policy. check_images: False looks for no image file; image_files then
    hold the ids.

    Raises FileNotFoundError for a missing folder, list (naming those that exist) or image, and when
    no image of a list has its XML file; AnnotationError for lists and maps that are not as above
    and what voc_xml refuses; OutsideFolderError for an image that leads out of its folder.
    """
    root = Path(root)
    source = f"{root}: {' + '.join(splits)}"
    task = _task_of(splits)
    if not (root / "ImageSets" / task).is_dir():
        inside = next((p.parents[1] for p in sorted(root.glob(f"*/ImageSets/{task}"))), None)
        hint = f"; {inside} has one: give it as the data folder" if inside else ""
        raise FileNotFoundError(f"{source}: no folder {root / 'ImageSets' / task}{hint}")
    images, notes = _listed(root, task, splits)
    images, left_out = _without_blacklisted(root, task, images)
    names = [name for _, name in images]
    files, respelt = names, []
    if check_images:
        files, respelt = _files_of(root / "Data" / task, images, source)
    paths = [root / "Annotations" / task / part / f"{name}.xml" for part, name in images]
    records = read_each(
        paths, lambda path: _NOTHING if fault_of(path) == "does not exist" else read_xml(path)
    )
    missing = sum(record is _NOTHING for record in records)
    if missing == len(images) and any(part != "test" for part, _ in images):
        raise FileNotFoundError(f"{source}: none of its images has an annotation file: {paths[0]}")
    notes += [*left_out, *respelt]
    lacks_truth = 0 < missing == len(images)
    if missing and not lacks_truth:
        notes.append(
            f"{source}: {missing} of {len(images)} images have no annotation file, which says that "
            "they have no objects"
        )
    told_apart = len(set(names)) < len(names)
    if told_apart:
        names = [f"{part}/{name}" for part, name in images]
        notes.append("image ids are told apart by their folder: some have the same file names")
    synsets = _synsets(root, task) or _synsets_in(root / "Annotations" / task)
    if classes is not None:
        by_name = {synset.name: synset for synset in synsets}
        synsets = [by_name[name] for name in known_classes(classes, list(by_name), source)]
    result = annotations_of(
        XmlImages(source, np.array(names, dtype=str), files, paths, records, told_apart),
        ClassMap(
            tuple(synset.name for synset in synsets), tuple(synset.source_id for synset in synsets)
        ),
        {synset.wnid: index for index, synset in enumerate(synsets)},
        corner=CORNER,
        box_policy=box_policy,
        notes=notes,
    )
    if lacks_truth:
        return replace(result, without_truth="no image of a test list has an annotation file")
    return result


def lists_overlap(one: str, other: str) -> bool:
    """Whether two entries, TASK/LIST, may have images in common: the same list, or one that names
    with * both stand for, or a part and the whole that it is of, as DET's val1 and val are.
    """
    (task, _, name), (its_task, _, its_name) = one.partition("/"), other.partition("/")
    if task != its_task:
        return False
    if _share_a_name(name, its_name):
        return True
    same_part = any(name.startswith(part) and its_name.startswith(part) for part in PARTS)
    return same_part and not WHOLES.isdisjoint((name, its_name))


def _share_a_name(one: str, other: str) -> bool:
    """Whether some name fits both patterns; ? and [ are taken to fit as much as * does."""
    (start, *rest), (its_start, *its_rest) = (re.split(r"[*?[]", each) for each in (one, other))
    if not rest or not its_rest:
        return fnmatchcase(one, other) or fnmatchcase(other, one)
    end, its_end = rest[-1], its_rest[-1]
    starts = start.startswith(its_start) or its_start.startswith(start)
    return starts and (end.endswith(its_end) or its_end.endswith(end))


def image_numbers(root: str | Path, entry: str) -> dict[str, int]:
    """Return image -> its number in results, of one list, TASK/LIST of ImageSets, in its order: the
    second column, and where no line has one the place of the line, from 1.

    Raises FileNotFoundError for no such list; AnnotationError naming file and line for an image or
    a number that is there twice, no number where other lines have one, one below 1 (-1 leaves an
    image out), and in train, val and test, which are whole, one that is not the line's place.
    """
    task, _, name = entry.partition("/")
    path = Path(root) / "ImageSets" / task / f"{name}.txt"
    lines = _lines_of(path)
    numbered = any(line.number is not None for line in lines)
    numbers: dict[str, int] = {}
    images: dict[int, str] = {}
    for place, line in enumerate(lines, start=1):
        number = line.number if numbered else place
        where = f"{path}:{line.at}: {shown(line.image)}"
        if number is None or number < 1:
            given = "no number" if number is None else f"the number {number}"
            raise AnnotationError(
                f"{where} has {given}, and results refer to an image by its number in the list, "
                "from 1"
            )
        if line.image in numbers:
            raise AnnotationError(f"{where} is in it more than once")
        if number in images:
            raise AnnotationError(f"{where} has the number {number}, as {shown(images[number])}")
        if name in PARTS and number != place:
            raise AnnotationError(
                f"{where} has the number {number}, expected {place}: the images of a whole set are "
                "numbered by their lines"
            )
        numbers[line.image], images[number] = number, line.image
    return numbers


def require_class_numbers(root: str | Path, task: str) -> None:
    """Raise AnnotationError unless a map of the task is found that gives its classes the numbers
    that ILSVRC's results have, 1..NUM_CLASSES: the devkit's, not Kaggle's, which gives none.
    """
    root, largest = Path(root), NUM_CLASSES[task]
    synsets = _synsets(root, task)
    if not synsets or not all(synset.numbered for synset in synsets):
        raise AnnotationError(
            f"{root}: its server knows classes by the numbers of {TASKS[task][0]}, which is not "
            f"there: put that of the devkit into {root / 'devkit' / 'data'}"
        )
    wrong = next((each for each in synsets if not 1 <= each.source_id <= largest), None)
    if wrong is not None:
        raise AnnotationError(
            f"{root}: {TASKS[task][0]} gives {wrong.wnid} the number {wrong.source_id}, expected "
            f"the devkit's 1..{largest}"
        )


class _Synset(NamedTuple):
    """A class: its id in WordNet, as objects are called in XML files, its number, its name, and
    whether the number is written, not only its place.
    """

    wnid: str
    source_id: int
    name: str
    numbered: bool = False


def _task_of(splits: Sequence[str]) -> str:
    tasks = list(dict.fromkeys(split.partition("/")[0] for split in splits))
    wrong = [task for task in tasks if task not in TASKS]
    if not tasks or wrong or any(not split.partition("/")[2] for split in splits):
        given = ", ".join(map(shown, splits)) or "none"
        raise AnnotationError(
            "splits of an ILSVRC folder are TASK/LIST, such as DET/val or CLS-LOC/train_loc; given "
            f"is {given}"
        )
    if len(tasks) > 1:
        raise AnnotationError(
            f"splits of {' and '.join(tasks)} have different classes: give those of one task"
        )
    return tasks[0]


def _listed(
    root: Path, task: str, splits: Sequence[str]
) -> tuple[list[tuple[str, str]], list[str]]:
    """(part, image) of every image in the lists, each once, and what is to be said."""
    folder = root / "ImageSets" / task
    known = sorted(path.stem for path in folder.glob("*.txt") if not is_hidden(path.name))
    images: dict[tuple[str, str], None] = {}
    negatives = 0
    for split in splits:
        pattern = split.partition("/")[2]
        lists = [name for name in known if fnmatchcase(name, pattern)]
        if not lists:
            more = ", ..." if len(known) > 20 else ""
            raise FileNotFoundError(
                f"split {split}: no file {folder / pattern}.txt; there are: "
                f"{', '.join(known[:20]) or 'none'}{more}"
            )
        for name in lists:
            part = next((part for part in PARTS if name.startswith(part)), None)
            if part is None:
                raise AnnotationError(
                    f"{folder / name}.txt: a list is named after the folder of its images, so that "
                    "it begins with train, val or test"
                )
            kept, out = _read_list(folder / f"{name}.txt")
            images.update(dict.fromkeys((part, image) for image in kept))
            negatives += out
    if not images:
        raise AnnotationError(f"{folder}: {', '.join(splits)} list no image")
    said = f"{negatives} lines are of images known to lack the class of the list (-1): left out"
    return list(images), [said] if negatives else []


class _Line(NamedTuple):
    """A line of a list: which it is, from 1, its image and the number behind it."""

    at: int
    image: str
    number: int | None


def _lines_of(path: Path) -> list[_Line]:
    """The lines of a list, empty ones left out."""
    lines = []
    for at, line in enumerate(read_text(path, "image list").splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) > 2 or not re.fullmatch(
            r"-?\d{1,18}", fields[-1] if len(fields) > 1 else "0"
        ):
            raise AnnotationError(
                f"{path}:{at}: {shown(line)}, expected an image and, behind a space, a number"
            )
        lines.append(_Line(at, fields[0], int(fields[1]) if len(fields) > 1 else None))
    return lines


def _read_list(path: Path) -> tuple[list[str], int]:
    """The images of a list, and how many it has as -1."""
    lines = _lines_of(path)
    kept = [line.image for line in lines if line.number != -1]
    return kept, len(lines) - len(kept)


def _without_blacklisted(
    root: Path, task: str, images: list[tuple[str, str]]
) -> tuple[list[tuple[str, str]], list[str]]:
    """The images but those of CLS-LOC's validation set whose boxes are no good, by the devkit, and
    what is to be said about it.
    """
    path = next(iter(sorted(root.glob("devkit/data/*clsloc_validation_blacklist.txt"))), None)
    if task != "CLS-LOC" or path is None:
        return images, []
    numbers = set(read_text(path, "blacklist").split())
    if not all(number.isdigit() for number in numbers):
        raise AnnotationError(f"{path}: expected the numbers of validation images, one a line")
    kept = [
        (part, name)
        for part, name in images
        if part != "val" or name.rpartition("_")[2].lstrip("0") not in numbers
    ]
    if len(kept) == len(images):
        return images, []
    return kept, [f"{len(images) - len(kept)} images are on the blacklist {path}: left out"]


def _synsets(root: Path, task: str) -> list[_Synset]:
    """Those of the task's map; none where it has no map."""
    folders = (root / "devkit" / "data", root, root.parent)
    paths = [folder / name for folder in folders for name in TASKS[task]]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return []
    found = []
    for number, line in enumerate(read_text(path, "list of synsets").splitlines(), start=1):
        if not line.strip():
            continue
        wnid, rest = [*line.split(maxsplit=1), ""][:2]
        counted = re.fullmatch(r"(\d+)\s+(\S.*)", rest.strip())
        name = counted[2] if counted else rest.partition(",")[0].strip()
        if not re.fullmatch(r"n\d{8}", wnid) or not name:
            raise AnnotationError(
                f"{path}:{number}: {shown(line)}, expected a synset, its number and its name, such "
                "as n02672831 1 accordion"
            )
        source_id = int(counted[1]) if counted else number
        found.append(_Synset(wnid, source_id, one_line(name), counted is not None))
    for what in ("wnid", "source_id"):
        repeated = [v for v, n in Counter(getattr(each, what) for each in found).items() if n > 1]
        if repeated:
            raise AnnotationError(f"{path}: {repeated[0]} is in it more than once")
    if task == "CLS-LOC":
        return [each._replace(name=each.wnid) for each in found]
    counts = Counter(each.name for each in found)
    return [
        each if counts[each.name] == 1 else each._replace(name=f"{each.name} ({each.wnid})")
        for each in found
    ]


def _synsets_in(folder: Path) -> list[_Synset]:
    """Those of all XML files in and below a folder, sorted."""
    files = [path for path in sorted(folder.rglob("*.xml")) if not is_hidden(path.name)]
    records = read_each(files, read_xml)
    wnids = sorted({item.name for record in records for item in record.objects})
    if not wnids:
        raise AnnotationError(
            f"{folder}: no object in any annotation file, so there are no classes"
        )
    return [_Synset(wnid, number, wnid) for number, wnid in enumerate(wnids, start=1)]


def _files_of(
    folder: Path, images: list[tuple[str, str]], source: str
) -> tuple[list[str], list[str]]:
    """The image file of every image listed, and what is to be said about them."""
    files: dict[tuple[str, str], str] = {}
    notes: list[str] = []
    for part in dict.fromkeys(part for part, _ in images):
        own = [image for image in images if image[0] == part]
        names = [f"{name}.JPEG" for _, name in own]
        found, respelt = locate(folder / part, names, source=source)
        files.update(zip(own, found, strict=True))
        notes += respelt
    return [files[image] for image in images], notes

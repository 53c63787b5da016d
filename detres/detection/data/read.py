"""A data configuration -> annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from detres.class_map import LISTED_CLASSES, ClassMap
from detres.console import plural
from detres.detection.annotations import Annotations
from detres.detection.config import SPLITS, TRAINING_SPLITS, DataConfig
from detres.detection.data.box_policy import AnnotationError, BoxPolicy, known_classes
from detres.detection.data.coco import read_coco
from detres.detection.data.csv_boxes import csv_names, read_csv_boxes
from detres.detection.data.ilsvrc import lists_overlap, read_ilsvrc
from detres.detection.data.labelme import labelme_names, read_labelme
from detres.detection.data.learnt_images import LearntImages
from detres.detection.data.plain_xml import read_plain_xml, xml_names
from detres.detection.data.shapes import ensure_shapes
from detres.detection.data.split import Split, drawn_split, file_names, read_split_file
from detres.detection.data.voc import read_voc
from detres.detection.data.yolo import read_yolo
from detres.held_out import held_out_rows
from detres.user_files import tidied


class NoSplitError(ValueError):
    """A split that a configuration does not say the place of, or of which nothing is left."""


def read_split(data: DataConfig, split: str, *, box_policy: BoxPolicy | None = None) -> Annotations:
    """Read the `split` ("train" or "val") of a data configuration whose root is settled.

    box_policy: by default the configuration's for train; ground truth for evaluation is kept as it
    stands ("keep"), so that the numbers are those of the official tools. Classes without an object
    to learn from are noted. With hold_out, train is without these images, and val is these. Raises
    what the readers raise, ValueError when held-out images of several files or folders have the
    same ids: results could not refer to them.
    """
    policy = box_policy or (data.box_policy if split == "train" else "keep")
    annotations = _read_part(data, split, policy)
    if split == "train":
        return _with_empty_classes_noted(annotations)
    _require_own_ids(annotations)
    return annotations


def splits_of(data: DataConfig) -> list[str]:
    """Return the names of the splits that a data configuration has."""
    made = TRAINING_SPLITS if data.format == "shapes" or data.val_from_train else ()
    return [name for name in SPLITS if name in made or getattr(data, name)]


def read_to_detect(
    data: DataConfig, split: str, class_map: ClassMap, learnt: Sequence[LearntImages] = ()
) -> Annotations:
    """Read the `split` ("train", "val" or "test") of a data configuration whose root is settled,
    for a detector of the classes `class_map`: ground truth as it stands, and in "test", where it is
    not known, the images alone (Annotations.without_truth).

    learnt: what is known of the images that detectors have learned from: where val is drawn from
    train, it is then all of train but these, so that data which have moved are the ones held out,
    and others are looked at whole. The result has the classes of its files; those of `class_map`
    where a test set in VOC's layout tells none. Raises NoSplitError for a split that is not
    configured, and where all images were learned from, and as `read_split` does.
    """
    configured = splits_of(data)
    if split not in configured:
        raise NoSplitError(
            f"data.{split} is not given, so there is no split {split}; there is "
            f"{', '.join(configured)}"
        )
    if split == "val" and data.is_drawn and learnt:
        annotations = _not_learnt(_read(data, "train", "keep", class_map.names), learnt)
    else:
        annotations = _read_part(data, split, "keep", class_map.names)
    _require_own_ids(annotations)
    return annotations


def _not_learnt(whole: Annotations, learnt: Sequence[LearntImages]) -> Annotations:
    """The images of `whole` that were not learned from, which is noted."""
    files = whole.image_files.tolist()
    seen = np.logical_or.reduce([one.seen(files) for one in learnt])
    held = np.flatnonzero(~seen)
    if not len(held):
        raise NoSplitError(
            f"{whole.source}: all {len(whole)} images were trained on, so none is left to evaluate "
            "on; the split train is these"
        )
    if len(held) == len(whole):
        note = f"none of these {plural(len(whole), 'image')} was trained on: all are evaluated on"
        return replace(whole, notes=(*whole.notes, note))
    note = f"{len(held)} of {len(whole)} images were not trained on, and are evaluated on"
    part = whole.subset(held, f"{whole.source} held out {len(held)}")
    return replace(part, notes=(*part.notes, note))


def read_as_written(data: DataConfig, split: str, class_map: ClassMap | None = None) -> Annotations:
    """Read the `split` ("train", "val" or "test") of a data configuration whose root is settled, to
    look for what is wrong with it: no box is left out, clipped or refused for its numbers.

    class_map: of the training set, for a test set that tells no classes. Raises what the readers
    raise.
    """
    return _read_part(data, split, "as_written", class_map.names if class_map else ())


def read_all(data: DataConfig) -> dict[str, Annotations]:
    """Return every split of a data configuration whose root is settled, by its name, train first:
    ground truth as it stands; of a test set whose objects are not known the images alone.

    Raises as `read_split` and `read_to_detect` do.
    """
    splits: dict[str, Annotations] = {}
    for split in splits_of(data):
        names = next(iter(splits.values())).class_map.names if splits else ()
        splits[split] = _read_part(data, split, "keep", names)
    return splits


def trained_on(trained: DataConfig, data: DataConfig, split: str) -> list[str]:
    """Return those entries of a `split` of `data` that `trained` trains on, or on part of: the same
    files and lists at the same place, in VOC's layout also train and val of a trainval, in
    ILSVRC's those that `lists_overlap` tells; no file is read.

    Both with their roots settled. Of train itself and of shapes: none, and none of held-out images
    where `trained` holds out them, or more, of the same entries.
    """
    if "shapes" in (trained.format, data.format) or split == "train":
        return []
    entries = getattr(data, split)
    if split == "val" and data.val_from_train:
        if _holds_out_too(trained, data) and _same_train(trained, data):
            return []
        entries = data.train
    return [
        entry
        for entry in entries
        if any(_share_images(trained, learnt, data, entry) for learnt in trained.train)
    ]


def _share_images(one: DataConfig, entry: str, other: DataConfig, its_entry: str) -> bool:
    """Whether two entries may have images in common, by their names and places."""
    if one.format == other.format == "ilsvrc":
        same_place = tidied(Path(one.root or "")) == tidied(Path(other.root or ""))
        return same_place and lists_overlap(entry, its_entry)
    places = _places(one, entry, whole=True), _places(other, its_entry, whole=True)
    return bool(set.intersection(*places))


def _holds_out_too(trained: DataConfig, data: DataConfig) -> bool:
    """Whether the images of train that `data` holds out `trained` does too, of the same train."""
    drawn = [(one.val_share, one.split_seed, one.split) for one in (trained, data)]
    return drawn[0] == drawn[1] and trained.hold_out >= data.hold_out


def _same_train(one: DataConfig, other: DataConfig) -> bool:
    """Whether both train on the same entries, in the same order: of what is drawn from, held-out
    images are the same.
    """
    places, others = (
        [_places(data, entry, whole=False) for entry in data.train] for data in (one, other)
    )
    return len(places) == len(others) and all(map(set.intersection, places, others))


def _places(data: DataConfig, entry: str, *, whole: bool) -> set[Path]:
    """The paths that an entry may stand for; whole: with those of the lists it is made of."""
    root = Path(data.root or "")
    if data.format not in ("voc", "ilsvrc"):
        return {tidied(root / entry)}
    year, _, name = entry.rpartition("/")
    names = [name, "train", "val"] if whole and name == "trainval" else [name]
    folders = [root / year, root / f"VOC{year}"] if year else [root]
    return {tidied(folder) / each for folder in folders for each in names}


def _require_own_ids(annotations: Annotations) -> None:
    if annotations.told_apart:
        raise ValueError(
            f"{annotations.source} have the same image ids, and results of held-out images refer "
            "to the ids of one: number or name the images otherwise, or evaluate on one alone"
        )


def _read_part(
    data: DataConfig, split: str, policy: BoxPolicy, names: tuple[str, ...] = ()
) -> Annotations:
    """A split, val and train told apart where images of the latter are held out."""
    if split == "test" or not data.val_from_train:
        return _read(data, split, policy, names)
    whole = _read(data, "train", policy, names)
    if data.hold_out:
        kept, held = held_out_rows(len(whole), data.hold_out, whole.source)
        number = data.hold_out
    else:
        made = split_of_train(data, whole)
        kept, held, number = made.train, made.val, len(made.val)
        if split == "val":
            whole = replace(whole, notes=(*whole.notes, made.note))
    if split == "train":
        return whole.subset(kept, f"{whole.source} without {number}")
    return whole.subset(held, f"{whole.source} held out {number}")


def split_of_train(data: DataConfig, whole: Annotations) -> Split:
    """Return which of the images of all of train are val, by val_share or by the file `split`;
    raises what `drawn_split` and `read_split_file` raise.
    """
    files = whole.image_files.tolist()
    if data.split is not None:
        return read_split_file(Path(data.split), files, whole.source)
    names = file_names(files)
    shown = whole.classes_shown()
    return drawn_split(names, data.val_share, data.split_seed, whole.source, shown)


def _read(data: DataConfig, split: str, policy: BoxPolicy, names: tuple[str, ...]) -> Annotations:
    if data.format == "shapes":
        cache = Path(data.root) if data.root else None
        root = ensure_shapes(cache, num_train=data.shapes_train, num_val=data.shapes_val)
        file, folder = root / "annotations" / f"{split}.json", root / split
        return read_coco(file, folder, classes=data.classes, box_policy=policy)
    root = Path(data.root)
    entries, folders = list(getattr(data, split)), list(getattr(data, f"{split}_images"))
    if not entries:
        raise NoSplitError(f"data.{split} is not given, so there is nothing to read")
    if data.format == "voc":
        return read_voc(
            root,
            entries,
            classes=data.classes,
            box_policy=policy,
            may_lack_truth=split == "test",
            names=names,
        )
    if data.format == "ilsvrc":
        return read_ilsvrc(root, entries, classes=data.classes, box_policy=policy)
    if data.format == "coco":
        parts = [
            read_coco(
                tidied(root / file),
                tidied(root / folder),
                classes=data.classes,
                box_policy=policy,
                outside=data.outside,
                may_lack_truth=split == "test",
            )
            for file, folder in zip(entries, folders, strict=True)
        ]
        return Annotations.concatenate(parts)
    if data.format == "yolo":
        class_names = tidied(root / data.class_names)
        return read_yolo(
            root, entries, folders, class_names, classes=data.classes, box_policy=policy
        )
    class_map = _class_map(data, root, names)
    if data.format == "xml":
        return read_plain_xml(root, entries, folders, class_map, box_policy=policy)
    if data.format == "labelme":
        return read_labelme(root, entries, folders, class_map, box_policy=policy)
    return read_csv_boxes(
        root, entries, folders, class_map, box_policy=policy, outside=data.outside
    )


def _class_map(data: DataConfig, root: Path, known: tuple[str, ...]) -> ClassMap:
    """The classes of data whose files name the class of every object: those of all splits, sorted,
    so that train and val agree; where all are among the `known` ones of a detector, which these
    data may not have all of, those.
    """
    found: set[str] = set()
    for split in SPLITS:
        entries, folders = getattr(data, split), getattr(data, f"{split}_images")
        if data.format == "csv":
            found |= csv_names(root, entries)
        else:
            names_in = {"xml": xml_names, "labelme": labelme_names}[data.format]
            found |= names_in(root, entries, folders)
    names = list(known) if found <= set(known) else sorted(found)
    if not names:
        raise AnnotationError(f"{root}: no object in any annotation file, so there are no classes")
    if data.classes is not None:
        names = known_classes(data.classes, names, str(root))
    return ClassMap.of_names(names)


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

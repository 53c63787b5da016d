"""Label files, one an image, and the images that they are of, whatever the folders are called."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from detres.detection.data.box_policy import AnnotationError
from detres.detection.data.found_files import FoundFiles
from detres.images.decode import IMAGE_SUFFIXES
from detres.images.locate import Spellings
from detres.user_files import fault_of, tidied


@dataclass(frozen=True)
class LabelledFiles:
    """N image files, and the label file of each, None where it has none. notes: what is to be said
    of them.
    """

    images: list[str]
    labels: list[Path | None]
    notes: list[str]


def match_labels(
    root: Path,
    entries: Sequence[str],
    folders: Sequence[str],
    *,
    suffix: str,
    image_named_in: Callable[[Path], str] | None = None,
    keep_unlabelled: bool = False,
    others: frozenset[str] = frozenset(),
) -> LabelledFiles:
    """Return the images of label files in folders and the folders in them.

    entries: folders of labels below `root`. folders: that of the images of each; () where they lie
    with their labels. suffix: of label files, in small letters. A label file is of the image that
    has its path below the folder, but for the suffix; else of the one image of its stem, of another
    spelling of it, or of the name that the label file has in it. image_named_in: label file -> that
    name, "" for none; of a file that is no label it raises AnnotationError. keep_unlabelled:
    whether images without label file are among the images, as such without objects; else they are
    counted. others: names of files with that suffix that are no labels. Raises FileNotFoundError
    for a folder that is not there, AnnotationError for a folder without label files, where more
    label files than not have no image, and where two have the same.
    """
    parts = [
        _match_folder(
            tidied(root / entry),
            tidied(root / folder),
            suffix,
            image_named_in,
            keep_unlabelled=keep_unlabelled,
            others=others,
        )
        for entry, folder in zip(entries, folders or entries, strict=True)
    ]
    return LabelledFiles(
        images=[image for part in parts for image in part.images],
        labels=[label for part in parts for label in part.labels],
        notes=[note for part in parts for note in part.notes],
    )


def _match_folder(
    folder: Path,
    image_folder: Path,
    suffix: str,
    image_named_in: Callable[[Path], str] | None,
    *,
    keep_unlabelled: bool,
    others: frozenset[str],
) -> LabelledFiles:
    for path, what in ((folder, "annotation folder"), (image_folder, "image folder")):
        if not path.is_dir():
            fault = fault_of(path) or "is a file"
            raise FileNotFoundError(f"no {what} {path}: it {fault}")
    labels = [
        path
        for path in FoundFiles.below(folder).ending(suffix)
        if PurePosixPath(path).name not in others
    ]
    if not labels:
        raise AnnotationError(f"{folder} has no {suffix} file")
    images = _ImageNames(FoundFiles.below(image_folder).images)
    of_label = {label: images.of(label) for label in labels}
    for label in [label for label, image in of_label.items() if image is None]:
        name = _named_in(folder / label, image_named_in)
        of_label[label] = images.of_name(name) if name else None
    lost = [label for label, image in of_label.items() if image is None]
    if 2 * len(lost) > len(labels):
        first = images.names[0] if images.names else "none"
        raise AnnotationError(
            f"{len(lost)} of {len(labels)} {suffix} files in {folder} belong to no image in "
            f"{image_folder}, such as {lost[0]}: they are of another set, or the images are "
            f"elsewhere (there are {len(images.names)}: {first})"
        )
    label_of = {}
    for label, image in of_label.items():
        if image in label_of:
            raise AnnotationError(
                f"{folder}: {label_of[image]} and {label} are both of image {image_folder / image}"
            )
        if image is not None:
            label_of[image] = label
    unlabelled = [image for image in images.names if image not in label_of]
    wanted = [image for image in images.names if image in label_of or keep_unlabelled]
    said = {
        f"{suffix} files belong to no image and are left out": lost,
        "images have no label file and count as without objects"
        if keep_unlabelled
        else f"images have no {suffix} file and are left out": unlabelled,
    }
    return LabelledFiles(
        images=[os.path.join(image_folder, image) for image in wanted],
        labels=[folder / label_of[image] if image in label_of else None for image in wanted],
        notes=[f"{folder}: {len(at)} {what}, such as {at[0]}" for what, at in said.items() if at],
    )


def _named_in(label: Path, image_named_in: Callable[[Path], str] | None) -> str:
    """The image that a label file names; "" for none, and for a file that is no label."""
    if image_named_in is None:
        return ""
    try:
        return image_named_in(label)
    except AnnotationError:
        return ""


class _ImageNames:
    """Images by what label files have in common with them; names: their paths, of several that
    differ in their suffix alone the one whose stands first in IMAGE_SUFFIXES.
    """

    def __init__(self, images: Sequence[str]) -> None:
        self.by_path: dict[str, str] = {}
        for image in sorted(images, key=_place_of_suffix):
            self.by_path.setdefault(_without_suffix(image), image)
        self.names = sorted(self.by_path.values())
        self.by_stem: dict[str, list[str]] = {}
        for path, image in self.by_path.items():
            self.by_stem.setdefault(path.rpartition("/")[2], []).append(image)
        self.spellings = Spellings(self.by_path)

    def of(self, label: str) -> str | None:
        """Return the image of a label file by their names; None: there is none, or several."""
        path = _without_suffix(label)
        if path in self.by_path:
            return self.by_path[path]
        of_stem = self.by_stem.get(path.rpartition("/")[2], [])
        if len(of_stem) == 1:
            return of_stem[0]
        spelt = self.spellings.match(path)
        return self.by_path[spelt] if spelt is not None else None

    def of_name(self, name: str) -> str | None:
        """Return the one image that has the last part of a file name as a label file has it."""
        return self.of(PurePosixPath(name.replace("\\", "/")).name)


def _without_suffix(path: str) -> str:
    return os.path.splitext(path)[0]


def _place_of_suffix(image: str) -> int:
    return IMAGE_SUFFIXES.index(os.path.splitext(image)[1].lower())


def image_ids(files: Sequence[str]) -> np.ndarray:
    """Return the ids (N,) str of image files, full paths: their stems; where those are not all
    different, their paths below the folder they have in common, without the suffix, and with it
    where even those are not.
    """
    paths = [Path(file) for file in files]
    stems = [path.stem for path in paths]
    if len(set(stems)) < len(stems):
        common = os.path.commonpath([path.parent for path in paths])
        below = [path.relative_to(common) for path in paths]
        stems = [path.with_suffix("").as_posix() for path in below]
        if len(set(stems)) < len(stems):
            stems = [path.as_posix() for path in below]
    return np.array(stems, dtype=str)

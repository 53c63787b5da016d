"""What the test servers of COCO, PASCAL VOC and ImageNet (ILSVRC) take: detections, and what was
localised, as files of theirs, and the archive that is uploaded.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from detres.console import shown
from detres.detection.annotations import Annotations
from detres.detection.evaluation.result_files import (
    to_coco_results,
    to_det_results,
    to_loc_results,
    to_voc_results,
)
from detres.detection.structures import Predictions
from detres.files import writing_folder

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9.+-]+")

_COCO_PREFIXES = ("image_info_", "instances_")
"""Of COCO's own annotation files; behind them is the name that its server has for the set."""


class SubmissionError(ValueError):
    """What no test server takes as it is meant: detections of a part of a set, or ids and names
    that its files cannot hold.
    """


@dataclass(frozen=True)
class CocoServer:
    """COCO's: detections_TESTSET_ALGORITHM_results.json, in a .zip of that name.

    test_set: as the server calls it, such as test-dev2017. algorithm: the name of the detector.
    """

    test_set: str
    algorithm: str

    @property
    def archive(self) -> str:
        """The file to upload."""
        return f"{self._stem}.zip"

    @property
    def _stem(self) -> str:
        return _file_name("detections", self.test_set, self.algorithm, "results")

    def require_written(self, images: Annotations) -> None:
        """Nothing to check: JSON holds every id and name."""

    def files(self, predictions: Predictions) -> dict[str, str]:
        """Return path -> text: one file of COCO results, image and category ids the data set's."""
        return {f"{self._stem}.json": json.dumps(to_coco_results(predictions))}

    def packed(self, files: dict[str, str]) -> bytes:
        """Return the archive of `files`; the same files give the same bytes."""
        return _zipped(files)


@dataclass(frozen=True)
class VocServer:
    """PASCAL VOC's: results/VOC2012/Main/comp4_det_test_CLASS.txt, one a class, also of those
    without a detection, in results.tar.gz.

    year: the folder the images are of, such as VOC2012. image_list: their list in ImageSets/Main.
    competition: comp3 for detectors trained on VOC's data alone; else comp4.
    """

    year: str
    image_list: str
    competition: str = "comp4"
    archive = "results.tar.gz"

    def require_written(self, images: Annotations) -> None:
        """Raise SubmissionError for a class that cannot be part of a file name, and an image id
        with a space, which separates the fields of a line.
        """
        for name in images.class_map.names:
            if set(name) & set("/\\\0"):
                raise SubmissionError(
                    f"{images.source}: class {shown(name)} cannot be part of a file's name, and "
                    "VOC's results are a file a class: rename it in the annotations"
                )
        spaced = [
            image_id for image_id in images.image_ids.tolist() if image_id.split() != [image_id]
        ]
        if spaced:
            raise SubmissionError(
                f"{images.source}: image id {shown(spaced[0])} holds a space, which separates the "
                f"fields of VOC's results ({len(spaced)} such): rename the image"
            )

    def files(self, predictions: Predictions) -> dict[str, str]:
        """Return path -> text: a file a class."""
        of_classes = to_voc_results(
            predictions, split=self.image_list, competition=self.competition
        )
        return {f"results/{self.year}/Main/{name}": text for name, text in of_classes.items()}

    def packed(self, files: dict[str, str]) -> bytes:
        """Return the archive of `files`; the same files give the same bytes."""
        buffer = io.BytesIO()
        with (
            gzip.GzipFile(fileobj=buffer, mode="wb", filename="", mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w") as archive,
        ):
            for name, text in files.items():
                data = text.encode()
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(data), 0o644
                archive.addfile(entry, io.BytesIO(data))
        return buffer.getvalue()


@dataclass(frozen=True)
class ImageNetServer:
    """ILSVRC's: one text file, TASK_LIST_ALGORITHM.txt, and its .zip.

    task, image_list: of ImageSets/TASK/LIST.txt. algorithm: the name of the detector or localiser.
    numbers: image id -> its number, of every image in the list, as image_numbers gives them.
    """

    task: Literal["DET", "CLS-LOC"]
    image_list: str
    algorithm: str
    numbers: Mapping[str, int]

    @property
    def archive(self) -> str:
        """The file to upload."""
        return f"{self._stem}.zip"

    @property
    def _stem(self) -> str:
        return _file_name(self.task, self.image_list, self.algorithm)

    def require_written(self, images: Annotations) -> None:
        """Raise SubmissionError for an image of the list that is not one of `images`."""
        known = set(images.image_ids.tolist())
        left_out = [image_id for image_id in self.numbers if image_id not in known]
        if left_out:
            raise SubmissionError(
                f"{images.source}: {len(left_out)} of the {len(self.numbers)} images of its list "
                f"are left out, such as {left_out[0]}, and a submission is of all"
            )

    def files(self, predictions: Predictions) -> dict[str, str]:
        """Return path -> text: one file, classes by the numbers of the data set; raises what
        to_loc_results raises.
        """
        if self.task == "DET":
            text = to_det_results(predictions, self.numbers)
        else:
            text = to_loc_results(predictions, self.numbers)
        return {f"{self._stem}.txt": text}

    def packed(self, files: dict[str, str]) -> bytes:
        """Return the archive of `files`; the same files give the same bytes."""
        return _zipped(files)


Server = CocoServer | VocServer | ImageNetServer


def coco_test_set(annotation_file: str) -> str:
    """Return what COCO's server calls the set of an annotation file: test-dev2017 of
    image_info_test-dev2017.json, val2014 of instances_val2014.json; others by their stem.
    """
    stem = Path(annotation_file).stem
    prefix = next((prefix for prefix in _COCO_PREFIXES if stem.startswith(prefix)), "")
    return stem.removeprefix(prefix) or stem


def write_submission(
    folder: Path, images: Annotations, predictions: Predictions, server: Server
) -> Path:
    """Write what `server` takes of `predictions`, of all `images`, into `folder`, whole or not at
    all; return the archive, which is to be uploaded.

    images: with truth or without. Raises SubmissionError when an image was not looked at, or more
    than once, or it is not known which were; what Annotations.rows_of raises for detections in
    other images, of other classes, or that are not finite; and what `writing_folder` raises.
    """
    _require_whole(images, predictions)
    files = server.files(predictions)
    with writing_folder(folder) as temporary:
        for name, text in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        (temporary / server.archive).write_bytes(server.packed(files))
    return folder / server.archive


def _file_name(*parts: str) -> str:
    """A name, without its ending, that every file system has."""
    return "_".join(_NOT_IN_A_NAME.sub("_", part) for part in parts)


def _zipped(files: dict[str, str]) -> bytes:
    """A .zip of path -> text; the same files give the same bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            entry = zipfile.ZipInfo(name)  # of 1980: the time of writing is not part of it
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, text)
    return buffer.getvalue()


def _require_whole(images: Annotations, predictions: Predictions) -> None:
    images.rows_of(predictions)
    if predictions.seen is None:
        raise SubmissionError(
            f"{images.source}: it is not known in which images was looked for objects, and a "
            "submission is of all"
        )
    times = Counter(predictions.seen.tolist())
    wanted = images.image_ids.tolist()
    missing = [image_id for image_id in wanted if image_id not in times]
    foreign = sorted(times.keys() - set(wanted), key=str)
    repeated = [image_id for image_id, count in times.items() if count > 1]
    for ids, what in (
        (missing, "were not looked at"),
        (foreign, "are not of this set"),
        (repeated, "were looked at more than once"),
    ):
        if ids:
            raise SubmissionError(
                f"{images.source}: {len(ids)} images {what}, such as {ids[0]}; a submission is of "
                f"all its {len(wanted)} images, each once"
            )

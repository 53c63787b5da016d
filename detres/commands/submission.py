"""`eval --submission`: what is known, and refused, before a detector runs for hours."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Literal

from detres.class_map import ClassMap
from detres.cli.flags import given_of
from detres.detection.annotations import Annotations
from detres.detection.config import DataConfig, DetectionConfig, EvalConfig
from detres.detection.data.ilsvrc import image_numbers, require_class_numbers
from detres.detection.data.voc import VOC_YEAR, split_folder
from detres.detection.evaluation.submission import (
    CocoServer,
    ImageNetServer,
    Server,
    SubmissionError,
    VocServer,
    coco_test_set,
)
from detres.detection.weights_file import started_from
from detres.files import require_free_folder
from detres.runs.folder import DETECTOR_WEIGHTS


def require_wanted(arguments: argparse.Namespace, images: Annotations) -> None:
    """Raise ValueError where numbers are asked for and the objects in `images` are not known."""
    if not (arguments.submission or arguments.save_detections):
        images.require_truth()
    given = given_of(arguments, ("--json", "--protocol", "--iou"))
    if given and images.without_truth is not None:
        raise ValueError(
            f"{given[0]} goes with numbers, and {images.source} gives none, its objects are not "
            f"known: {images.without_truth}. Leave it out"
        )


def plan_submission(
    folder: Path, images: Annotations, *, detector: ClassMap, name: str, server: Server
) -> None:
    """Make sure, before detecting, that a submission can be written: the folder made, empty.

    detector: the classes of a detector or localiser; name: of it, for messages. Raises
    ClassMismatchError unless its classes, but for gaps, are those of `images`, and what
    `require_written` of the server and require_free_folder raise.
    """
    gaps = {detector.names[index] for index in detector.gaps}
    if set(detector.names) - gaps != set(images.class_map.names) - gaps:
        detector.require_same(images.class_map, name, images.source)
    server.require_written(images)
    require_free_folder(folder)


def server_of(data: DataConfig, split: str, *, weights: list[str], competition: str) -> Server:
    """Return the server whose files a `split` of `data` gets of detectors, by its format.

    Raises SubmissionError for a format that is of no server, a split that is no single list or
    annotation file of its own, and another task of ILSVRC's than detection; for that also what
    image_numbers and require_class_numbers raise.
    """
    if data.format == "shapes":
        raise SubmissionError(
            "data.format is shapes, and a submission is what the test server of COCO, VOC or "
            "ImageNet takes; --save-detections writes detections of any data as COCO results"
        )
    entry = _entry_of(data, split)
    if data.format == "ilsvrc":
        return _imagenet_server(data, entry, "DET", weights)
    if data.format == "coco":
        return CocoServer(test_set=coco_test_set(entry), algorithm=algorithm_name(weights))
    folder, image_list = split_folder(Path(data.root), entry)
    year = folder.name if VOC_YEAR.fullmatch(folder.name) else folder.resolve().name
    return VocServer(year=year, image_list=image_list, competition=competition)


def localisation_server_of(data: DataConfig, split: str, *, weights: list[str]) -> ImageNetServer:
    """Return the server whose file a `split` of `data` gets of localisers, that of ILSVRC's
    CLS-LOC; raises as `server_of`.
    """
    if data.format != "ilsvrc":
        raise SubmissionError(
            f"data.format is {data.format}, and what localisers find is for the test server of "
            "ImageNet's CLS-LOC: data.format=ilsvrc"
        )
    return _imagenet_server(data, _entry_of(data, split), "CLS-LOC", weights)


def _entry_of(data: DataConfig, split: str) -> str:
    """The one list or annotation file that a split is."""
    way = data.val_from_train
    if way and split != "test":
        raise SubmissionError(
            f"{split} is part of data.train (data.{way}={getattr(data, way)}), and no server has it"
        )
    entries = getattr(data, split)
    if len(entries) > 1:
        raise SubmissionError(
            f"a submission is of one set, and data.{split} has {len(entries)}: give one of them, "
            f"--set data.{split}=[{entries[0]}]"
        )
    return entries[0]


def _imagenet_server(
    data: DataConfig, entry: str, task: Literal["DET", "CLS-LOC"], weights: list[str]
) -> ImageNetServer:
    own, _, image_list = entry.partition("/")
    if own != task:
        who = {"DET": "detectors", "CLS-LOC": "localisers"}
        raise SubmissionError(
            f"{entry}: what {who[task]} find is for the server of {task}; {own} takes what "
            f"{who.get(own, 'others')} find"
        )
    if set(image_list) & set("*?["):
        raise SubmissionError(f"a submission is of one list, and {entry} may be several: name one")
    require_class_numbers(data.root, task)
    numbers = image_numbers(data.root, entry)
    return ImageNetServer(task, image_list, algorithm_name(weights), numbers)


def algorithm_name(weights: list[str]) -> str:
    """Return what a submission calls detectors or localisers: the names of their run folders, or of
    files that are called otherwise than in one.
    """
    names = []
    for file in map(Path, weights):
        in_a_run = file.name == DETECTOR_WEIGHTS
        names.append(file.absolute().parent.name if in_a_run else file.stem)
    return "+".join(names)


def require_competition(
    evaluation: EvalConfig, weights: list[str], trained: list[DetectionConfig]
) -> None:
    """Raise ValueError where competition comp3 is claimed and data beside VOC's were used, or may
    have been, by a detector that training started from.

    weights: the files of the detectors; trained: their configurations.
    """
    if evaluation.competition != "comp3":
        return
    for file, config in zip(weights, trained, strict=True):
        start, detector = config.model.backbone.weights, started_from(Path(file))
        used = {
            f"training started from the detector {detector}": detector is not None,
            f"the backbone started from {start}": start is not None,
            f"{config.data.format} data": config.data.format != "voc",
        }
        if any(used.values()):
            said = next(text for text, so in used.items() if so)
            raise ValueError(
                f"eval.competition: comp3 is for VOC's data alone, and what {file} used is "
                f"otherwise: {said}. Give eval.competition=comp4"
            )

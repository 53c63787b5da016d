"""`eval --submission`: what is known, and refused, before a detector runs for hours."""

from __future__ import annotations

from pathlib import Path

from detres.class_map import ClassMap
from detres.detection.annotations import Annotations
from detres.detection.config import DataConfig, DetectionConfig, EvalConfig
from detres.detection.data.voc import VOC_YEAR, split_folder
from detres.detection.evaluation.submission import (
    CocoServer,
    SubmissionError,
    VocServer,
    coco_test_set,
)
from detres.files import require_free_folder
from detres.runs.folder import DETECTOR_WEIGHTS


def plan_submission(
    folder: Path,
    images: Annotations,
    *,
    detector: ClassMap,
    name: str,
    server: CocoServer | VocServer,
) -> None:
    """Make sure, before detecting, that a submission can be written: the folder made, empty.

    detector: its classes; name: of it, for messages. Raises ClassMismatchError unless its classes
    are those of `images`, and what VocServer.require_written and require_free_folder raise.
    """
    if set(detector.names) != set(images.class_map.names):
        detector.require_same(images.class_map, name, images.source)
    server.require_written(images)
    require_free_folder(folder)


def server_of(
    data: DataConfig, split: str, *, weights: list[str], competition: str
) -> CocoServer | VocServer:
    """Return the server whose files a `split` of `data` gets, by its format.

    Raises SubmissionError for a format that is neither COCO's nor VOC's, and for a split that is no
    single list or annotation file of its own.
    """
    if data.format not in ("coco", "voc"):
        raise SubmissionError(
            f"data.format is {data.format}, and a submission is what the test server of COCO or "
            "VOC takes; --save-detections writes detections of any data as COCO results"
        )
    if data.hold_out and split != "test":
        raise SubmissionError(
            f"{split} is part of data.train (data.hold_out={data.hold_out}), and no server has it"
        )
    entries = getattr(data, split)
    if len(entries) > 1:
        raise SubmissionError(
            f"a submission is of one set, and data.{split} has {len(entries)}: give one of them, "
            f"--set data.{split}=[{entries[0]}]"
        )
    if data.format == "coco":
        return CocoServer(test_set=coco_test_set(entries[0]), algorithm=algorithm_name(weights))
    folder, image_list = split_folder(Path(data.root), entries[0])
    year = folder.name if VOC_YEAR.fullmatch(folder.name) else folder.resolve().name
    return VocServer(year=year, image_list=image_list, competition=competition)


def algorithm_name(weights: list[str]) -> str:
    """Return what a submission calls detectors: the names of their run folders, or of files that
    are called otherwise than in one.
    """
    names = []
    for file in map(Path, weights):
        in_a_run = file.name == DETECTOR_WEIGHTS
        names.append(file.absolute().parent.name if in_a_run else file.stem)
    return "+".join(names)


def require_competition(evaluation: EvalConfig, trained: list[DetectionConfig]) -> None:
    """Raise ValueError where competition comp3 is claimed and data beside VOC's were used.

    trained: the configurations of the detectors.
    """
    if evaluation.competition != "comp3":
        return
    for config in trained:
        start = config.model.backbone.weights
        used = f"the backbone started from {start}" if start else f"{config.data.format} data"
        if start or config.data.format != "voc":
            raise ValueError(
                f"eval.competition: comp3 is for VOC's data alone, and what was used is otherwise: "
                f"{used}. Give eval.competition=comp4"
            )

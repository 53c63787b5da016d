"""Detect in images and draw what was found, or classify them:
`predict --weights FILE IMAGE_OR_FOLDER... --out DIR`.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from detres.classification.classifier import Classifier
from detres.classification.weights_file import is_classifier
from detres.cli.flags import CommandParser, add_device_flag, ending, notice, say
from detres.console import one_line
from detres.detection.evaluation.result_files import to_coco_results
from detres.detection.inference.detector import Detector
from detres.detection.inference.pictures import PictureError, captions_of, write_jpeg
from detres.detection.structures import Detections, Predictions, index_of
from detres.files import write_text
from detres.images.decode import ImageReadError, read_image
from detres.images.draw import draw_boxes
from detres.images.source import find_images, left_out
from detres.predictors import load
from detres.runs.folder import PREDICTIONS
from detres.user_files import expanded

DRAWN_SCORE = 0.5
LISTED = 5
"""Of files that are left out, so many are named in a line."""

Images = Iterator[tuple[Path, np.ndarray]]


def main(argv: list[str] | None = None) -> int:
    """Parse, load, detect or classify, write; returns the exit status."""
    parser = CommandParser(
        description="detect in images and draw what was found, or classify them, by what the "
        "weights are of"
    )
    parser.add_argument("images", metavar="IMAGE_OR_FOLDER", type=expanded, nargs="+")
    parser.add_argument(
        "--weights",
        type=expanded,
        metavar="FILE",
        required=True,
        help="best.safetensors (detector) or weights.safetensors (classifier) of a run",
    )
    parser.add_argument(
        "--out",
        type=expanded,
        metavar="DIR",
        default="predictions",
        help="where pictures and predictions.json go (default: %(default)s)",
    )
    parser.add_argument(
        "--score",
        type=float,
        help="lowest score that is drawn (default: of each class the one that was best on the "
        f"held-out images of its training, {DRAWN_SCORE} where the weights have none); the file "
        "has all",
    )
    add_device_flag(parser)
    arguments = parser.parse_args(argv)
    with ending(parser) as end:
        predict(arguments)
    return end.status


def predict(arguments: argparse.Namespace) -> None:
    """Detect or classify, by what the weights are of, in every image named.

    Raises ImageReadError at the end when images could not be read; the others are written by then.
    """
    named = [Path(item) for item in arguments.images]
    if others := left_out(named):
        listed = ", ".join(one_line(file.name) for file in others[:LISTED])
        notice(
            f"{len(others)} image files of other formats are left out: {listed}"
            f"{', ...' if len(others) > LISTED else ''}; convert them to JPEG or PNG"
        )
    files = find_images(named)
    out, unread = Path(arguments.out), []
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    pictures = picture_names(files)
    classifies = is_classifier(Path(arguments.weights))
    if classifies and arguments.score is not None:
        raise ValueError(
            f"--score goes with a detector's boxes; {arguments.weights} is a classifier"
        )
    require_free(out, [*([] if classifies else pictures.values()), PREDICTIONS])
    predictor = load(arguments.weights, notice).to(arguments.device)
    if classifies:
        name_classes(predictor, out, readable(files, unread))
    else:
        lowest = lowest_scores(predictor, arguments.score)
        draw_detections(predictor, lowest, out, pictures, readable(files, unread))
    if unread:
        raise ImageReadError(
            f"{len(unread)} of {len(files)} images could not be read and are not in {out}: "
            f"{unread[0]}"
        )


def lowest_scores(detector: Detector, given: float | None) -> torch.Tensor:
    """Return the lowest score (K,) that is drawn of each class: the one that is `given`, else those
    in the weights, which is said, else DRAWN_SCORE.
    """
    names = detector.class_map.names
    if given is not None or detector.score_thresholds is None:
        return torch.full((len(names),), DRAWN_SCORE if given is None else given)
    pairs = zip(names, detector.score_thresholds, strict=True)
    listed = [one_line(f"{name} {score:.2f}") for name, score in pairs]
    say(
        f"drawn from the score on that was best on held-out images: {', '.join(listed[:LISTED])}"
        f"{', ...' if len(listed) > LISTED else ''}; --score S draws from S on"
    )
    return torch.tensor(detector.score_thresholds)


def draw_detections(
    detector: Detector, lowest: torch.Tensor, out: Path, pictures: dict[Path, str], images: Images
) -> None:
    """Write a picture an image, with the boxes from the `lowest` score (K,) of their class on, and
    predictions.json: COCO results whose image_id is the file as given. A picture that cannot be
    written is passed over, its detections are kept.
    """
    found: dict[Path, Detections] = {}
    undrawn = 0
    for file, image in images:
        detections = found[file] = detector.predict(image)[0]
        shown = detections.scores >= lowest[index_of(detections.labels)]
        labels = detections.labels[shown].numpy()
        captions = captions_of(detector.class_map, labels, detections.scores[shown].numpy())
        boxes = detections.boxes[shown].numpy()
        say(f"{one_line(str(file))}: {', '.join(captions) or 'nothing'}")
        try:
            write_jpeg(out / pictures[file], draw_boxes(image, boxes, labels.tolist(), captions))
        except PictureError as error:
            undrawn += 1
            notice(f"{one_line(str(file))}: no picture of it, {one_line(str(error))}")
    ids = [str(file) for file, each in found.items() for _ in range(len(each))]
    predictions = Predictions(
        class_map=detector.class_map,
        image_ids=np.array(ids, dtype=str),
        boxes=torch.cat([each.boxes for each in found.values()]).numpy(),
        scores=torch.cat([each.scores for each in found.values()]).numpy(),
        labels=torch.cat([each.labels for each in found.values()]).numpy(),
    )
    write_text(out / PREDICTIONS, json.dumps(to_coco_results(predictions)))
    drawn = len(found) - undrawn
    say(f"{drawn} pictures and {PREDICTIONS} ({len(predictions)} detections) in {out}")


def name_classes(classifier: Classifier, out: Path, images: Images) -> None:
    """Write predictions.json: an image's file as given, and the likeliest classes of its centre
    square with their probabilities.
    """
    records = []
    for file, image in images:
        (best,) = classifier.predict(image)
        records.append({"image": str(file), "classes": best})
        named = ", ".join(f"{name} {probability:.2f}" for name, probability in best.items())
        say(f"{one_line(str(file))}: {named}")
    write_text(out / PREDICTIONS, json.dumps(records, indent=1))
    say(f"{PREDICTIONS} ({len(records)} images) in {out}")


def readable(files: list[Path], unread: list[str]) -> Images:
    """Yield files with their images (H, W, 3) uint8 RGB; what is wrong with one that cannot be read
    goes into `unread`.

    Raises ImageReadError when none can.
    """
    for file in files:
        try:
            image = read_image(file)
        except ImageReadError as error:
            unread.append(str(error))
            say(f"{one_line(str(file))}: passed over, it cannot be read")
        else:
            yield file, image
    if len(unread) == len(files):
        raise ImageReadError(f"none of {len(files)} images could be read: {unread[0]}")


def require_free(out: Path, names: list[str]) -> None:
    """Raise ValueError when one of `names` is in the folder."""
    taken = [name for name in names if (out / name).exists()]
    if taken:
        raise ValueError(
            f"--out {out} already holds {taken[0]}; give another folder, nothing is overwritten"
        )


def picture_names(files: list[Path]) -> dict[Path, str]:
    """Return file -> name of its picture: STEM.jpg, or STEM-2.jpg and so on where stems repeat."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    number_of: Counter[str] = Counter()
    for file in files:
        name = f"{file.stem}.jpg"
        while name in taken:
            number_of[file.stem] += 1
            name = f"{file.stem}-{number_of[file.stem] + 1}.jpg"
        taken.add(name)
        names[file] = name
    return names

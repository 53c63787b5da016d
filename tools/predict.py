"""Detect in images and draw what was found, or classify them:
`python tools/predict.py --weights FILE IMAGE_OR_FOLDER... --out DIR`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from detres.build import load_detector
from detres.build_classifier import is_classifier, load_classifier
from detres.data.crops import CenterCrop
from detres.draw import draw_boxes
from detres.engine.checkpoint import replacing, write_text
from detres.evaluation.detection_files import to_coco_results
from detres.image_io import IMAGE_SUFFIXES, ImageReadError, read_image
from detres.structures import CropBatch, Detections, Predictions
from detres.tools.command_line import add_device_flag, run

DRAWN_SCORE = 0.5
NAMED_CLASSES = 5
PREDICTIONS = "predictions.json"


def main(argv: list[str] | None = None) -> int:
    """Parse, load, detect or classify, write; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="detect in images and draw what was found, or classify them, by what the "
        "weights are of"
    )
    parser.add_argument("images", metavar="IMAGE_OR_FOLDER", nargs="+")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        required=True,
        help="best.safetensors (detector) or weights.safetensors (classifier) of a run",
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        default="predictions",
        help="where pictures and predictions.json go (default: %(default)s)",
    )
    parser.add_argument(
        "--score",
        type=float,
        help=f"lowest score that is drawn (default: {DRAWN_SCORE}); the file has all",
    )
    add_device_flag(parser)
    arguments = parser.parse_args(argv)
    return run(lambda: predict(arguments))


def predict(arguments: argparse.Namespace) -> None:
    """Detect or classify, by what the weights are of, in every image named.

    Raises ImageReadError at the end when images could not be read; the others are written by then.
    """
    files = find_images([Path(item) for item in arguments.images])
    out, unread = Path(arguments.out), []
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    if is_classifier(Path(arguments.weights)):
        if arguments.score is not None:
            raise ValueError(
                f"--score goes with a detector's boxes; {arguments.weights} is a classifier"
            )
        name_classes(arguments, out, files, unread)
    else:
        draw_detections(arguments, out, files, unread)
    if unread:
        raise ImageReadError(
            f"{len(unread)} of {len(files)} images could not be read and are not in {out}: "
            f"{unread[0]}"
        )


def draw_detections(
    arguments: argparse.Namespace, out: Path, files: list[Path], unread: list[str]
) -> None:
    """Write a picture an image, and predictions.json: COCO results whose image_id is the file as
    given.
    """
    pictures = picture_names(files)
    require_free(out, [*pictures.values(), PREDICTIONS])
    detector, _, class_map = load_detector(Path(arguments.weights))
    detector.to(arguments.device)
    lowest = DRAWN_SCORE if arguments.score is None else arguments.score
    found: dict[Path, Detections] = {}
    for file, image in readable(files, unread):
        detections = found[file] = detector.predict([image])[0]
        shown = detections.scores >= lowest
        labels = detections.labels[shown].tolist()
        captions = [
            f"{class_map.name_of(k)} {score:.2f}"
            for k, score in zip(labels, detections.scores[shown].tolist(), strict=True)
        ]
        picture = draw_boxes(image, detections.boxes[shown].numpy(), labels, captions)
        with replacing(out / pictures[file]) as temporary:
            temporary.write_bytes(cv2.imencode(".jpg", picture[:, :, ::-1])[1].tobytes())
        sys.stdout.write(f"{file}: {', '.join(captions) or 'nothing'}\n")
    predictions = Predictions(
        class_map=class_map,
        image_ids=np.array(
            [str(file) for file, each in found.items() for _ in range(len(each))], dtype=str
        ),
        boxes=torch.cat([each.boxes for each in found.values()]).numpy(),
        scores=torch.cat([each.scores for each in found.values()]).numpy(),
        labels=torch.cat([each.labels for each in found.values()]).numpy(),
    )
    write_text(out / PREDICTIONS, json.dumps(to_coco_results(predictions)))
    sys.stdout.write(
        f"{len(found)} pictures and {PREDICTIONS} ({len(predictions)} detections) in {out}\n"
    )


@torch.inference_mode()
def name_classes(
    arguments: argparse.Namespace, out: Path, files: list[Path], unread: list[str]
) -> None:
    """Write predictions.json: an image's file as given, and the likeliest classes of its centre
    square with their probabilities.
    """
    require_free(out, [PREDICTIONS])
    model, _, class_map = load_classifier(Path(arguments.weights))
    model.to(arguments.device)
    spec = model.net.input_spec
    crop = CenterCrop(shorter=spec.resize, crop=spec.crop)
    records = []
    for file, image in readable(files, unread):
        pixels = torch.from_numpy(crop(image, 0)).permute(2, 0, 1)[None].to(arguments.device)
        probabilities, indices = (
            model(CropBatch(pixels, (str(file),)))
            .softmax(dim=1)[0]
            .cpu()
            .topk(min(NAMED_CLASSES, len(class_map)))
        )
        best = dict(
            zip((class_map.names[k] for k in indices.tolist()), probabilities.tolist(), strict=True)
        )
        records.append({"image": str(file), "classes": best})
        sys.stdout.write(
            f"{file}: "
            f"{', '.join(f'{name} {probability:.2f}' for name, probability in best.items())}\n"
        )
    write_text(out / PREDICTIONS, json.dumps(records, indent=1))
    sys.stdout.write(f"{PREDICTIONS} ({len(records)} images) in {out}\n")


def readable(files: list[Path], unread: list[str]) -> Iterator[tuple[Path, np.ndarray]]:
    """Yield files with their images; what is wrong with one that cannot be read goes into `unread`.
    Raises ImageReadError when none can.
    """
    for file in files:
        try:
            image = read_image(file)
        except ImageReadError as error:
            unread.append(str(error))
            sys.stdout.write(f"{file}: passed over, it cannot be read\n")
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


def find_images(items: list[Path]) -> list[Path]:
    """Return the image files named, and those in the folders named, sorted; raises when there is
    none or one is missing.
    """
    files = []
    for item in items:
        if item.is_dir():
            inside = sorted(
                path for path in item.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES
            )
            if not inside:
                raise ValueError(
                    f"no image ({', '.join(IMAGE_SUFFIXES)}) in folder {item} (folders in it are "
                    "not searched)"
                )
            files += inside
        elif item.is_file():
            files.append(item)
        else:
            raise FileNotFoundError(f"no image or folder {item}")
    return list(dict.fromkeys(files))


def picture_names(files: list[Path]) -> dict[Path, str]:
    """Return file -> name of its picture: STEM.jpg, or STEM-2.jpg and so on where stems repeat."""
    names: dict[Path, str] = {}
    for file in files:
        name, number = f"{file.stem}.jpg", 1
        while name in names.values():
            number += 1
            name = f"{file.stem}-{number}.jpg"
        names[file] = name
    return names


if __name__ == "__main__":
    sys.exit(main())

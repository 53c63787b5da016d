"""Detect in images and draw what was found: `python tools/predict.py --weights FILE IMAGE_OR_FOLDER... --out DIR`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import torch

from detres.build import load_detector
from detres.draw import draw_boxes
from detres.engine.checkpoint import replacing, write_text
from detres.evaluation.detection_files import to_coco_results
from detres.image_io import IMAGE_SUFFIXES, ImageReadError, read_image
from detres.structures import Detections, Predictions
from detres.tools.command_line import add_device_flag, run


def main(argv: list[str] | None = None) -> int:
    """Parse, load, detect, write; returns the exit status."""
    parser = argparse.ArgumentParser(description="detect in images and draw what was found")
    parser.add_argument("images", metavar="IMAGE_OR_FOLDER", nargs="+")
    parser.add_argument("--weights", metavar="FILE", required=True, help="best.safetensors of a run")
    parser.add_argument("--out", metavar="DIR", default="predictions", help="where pictures and predictions.json go (default: %(default)s)")
    parser.add_argument("--score", type=float, default=0.5, help="lowest score that is drawn (default: %(default)s); the file has all")
    add_device_flag(parser)
    arguments = parser.parse_args(argv)
    return run(lambda: predict(arguments))


def predict(arguments: argparse.Namespace) -> None:
    """Write a picture an image, and predictions.json: COCO results whose image_id is the file as given.

    Raises ImageReadError at the end when images could not be read; the others are written by then.
    """
    out = Path(arguments.out)
    files = find_images([Path(item) for item in arguments.images])
    pictures = picture_names(files)
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {out} is a file; give a folder")
    taken = [out / name for name in pictures.values() if (out / name).exists()]
    if taken or (out / "predictions.json").exists():
        name = taken[0].name if taken else "predictions.json"
        raise ValueError(f"--out {out} already holds {name}; give another folder, nothing is overwritten")
    detector, _, class_map = load_detector(Path(arguments.weights))
    detector.to(arguments.device)
    found: dict[Path, Detections] = {}
    unread: list[str] = []
    for file in files:
        try:
            image = read_image(file)
        except ImageReadError as error:
            unread.append(str(error))
            sys.stdout.write(f"{file}: passed over, it cannot be read\n")
            continue
        detections = found[file] = detector.predict([image])[0]
        shown = detections.scores >= arguments.score
        labels = detections.labels[shown].tolist()
        captions = [f"{class_map.name_of(k)} {score:.2f}" for k, score in zip(labels, detections.scores[shown].tolist(), strict=True)]
        picture = draw_boxes(image, detections.boxes[shown].numpy(), labels, captions)
        with replacing(out / pictures[file]) as temporary:
            temporary.write_bytes(cv2.imencode(".jpg", picture[:, :, ::-1])[1].tobytes())
        sys.stdout.write(f"{file}: {', '.join(captions) or 'nothing'}\n")
    if not found:
        raise ImageReadError(f"none of {len(files)} images could be read: {unread[0]}")
    predictions = Predictions(
        class_map=class_map,
        image_ids=np.array([str(file) for file, each in found.items() for _ in range(len(each))], dtype=str),
        boxes=torch.cat([each.boxes for each in found.values()]).numpy(),
        scores=torch.cat([each.scores for each in found.values()]).numpy(),
        labels=torch.cat([each.labels for each in found.values()]).numpy(),
    )
    write_text(out / "predictions.json", json.dumps(to_coco_results(predictions)))
    sys.stdout.write(f"{len(found)} pictures and predictions.json ({len(predictions)} detections) in {out}\n")
    if unread:
        raise ImageReadError(f"{len(unread)} of {len(files)} images could not be read and are not in {out}: {unread[0]}")


def find_images(items: list[Path]) -> list[Path]:
    """Return the image files named, and those in the folders named, sorted; raises when there is none or one is missing."""
    files = []
    for item in items:
        if item.is_dir():
            inside = sorted(path for path in item.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise ValueError(f"no image ({', '.join(IMAGE_SUFFIXES)}) in folder {item} (folders in it are not searched)")
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

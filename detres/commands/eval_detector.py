"""The part of `eval` that judges detectors: `eval --weights FILE ...`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from detres.class_map import ClassMap
from detres.cli.flags import notice, say
from detres.commands.configured import evaluated_by, require_settings_of
from detres.commands.eval_detections import own_backend, own_iou, report, require_room, show
from detres.commands.submission import (
    plan_submission,
    require_competition,
    require_wanted,
    server_of,
)
from detres.config import given_settings
from detres.console import plural
from detres.detection.annotations import Annotations
from detres.detection.build import build_ensemble, build_val_set, eval_loader, saved_proposals
from detres.detection.config import DetectionConfig
from detres.detection.data.learnt_images import LearntImages
from detres.detection.data.read import read_to_detect, trained_on
from detres.detection.evaluation.protocol import evaluate
from detres.detection.evaluation.result_files import to_coco_results
from detres.detection.evaluation.submission import Server, write_submission
from detres.detection.inference.dataset import detect_dataset
from detres.detection.inference.ensemble import Ensemble
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.detection.own_data import data_to_evaluate, says_where
from detres.detection.structures import Predictions
from detres.detection.weights_file import learnt_images_of, load_members
from detres.engine.probes import native_precision
from detres.files import CheckpointError, write_text
from detres.reproduction.evaluated import evaluated


def evaluate_detectors(arguments: argparse.Namespace) -> None:
    """Run a detector, or several as an ensemble, over held-out images and evaluate them by the
    first one's data and settings, or those of --cfg.

    Raises CheckpointError for weights of another kind, ValueError for flags that do not go
    together, and what the readers raise.
    """
    require_settings_of(arguments, "data.", "eval.")
    require_room(arguments.out)
    members, class_map = members_of(arguments.weights)
    config = evaluated_by(arguments, members[0][1])
    given = given_settings(DetectionConfig, arguments.set)
    config = data_to_evaluate(config, arguments.data, given, say)
    learnt = [learnt_images_of(Path(file)) for file in arguments.weights]
    known = [] if arguments.cfg or says_where(given) else [one for one in learnt if one is not None]
    detecting = build_ensemble([(model, own.model) for model, own in members], config.eval)
    protocol = arguments.protocol or config.eval.protocol
    iou_thresh = own_iou(protocol, arguments.iou)
    backend = own_backend(protocol, arguments.backend, config.eval.backend)
    images = read_to_detect(config.data, arguments.split or "val", class_map, known)
    require_wanted(arguments, images)
    if arguments.out:
        images.require_truth()
    trained = [own for _, own in members]
    server = server_for(arguments, images, class_map, config, trained)
    say_what_was_trained_on(arguments, config, trained)
    if arguments.split != "train" and not (known and config.data.is_drawn):
        say_what_was_learned_from(arguments.weights, learnt, images)
    truth = images.matched_to(class_map, arguments.weights[0])
    found = detect(arguments, detecting, truth, members[0][1], config)
    if arguments.save_detections:
        write_text(Path(arguments.save_detections), json.dumps(to_coco_results(found)))
    if server is not None:
        archive = write_submission(Path(arguments.submission), truth, found, server)
        say(f"{len(found)} detections in {len(truth)} images for the test server: {archive}")
    if truth.without_truth is not None:
        say(f"{truth.describe()}\n{len(found)} detections, not evaluated here")
        return
    result = evaluate(protocol, truth, found, iou_thresh=iou_thresh, backend=backend)
    evaluation = config.eval.model_copy(update={"protocol": protocol})
    of = evaluated(
        arguments.weights,
        config.model_copy(update={"eval": evaluation}),
        split=arguments.split or "val",
        iou=iou_thresh,
    )
    report(truth, result, arguments.json, how=detecting.describe(), of=of)
    show(result, arguments.out)


def members_of(weights: list[str]) -> tuple[list[tuple[FasterRCNN, DetectionConfig]], ClassMap]:
    """Return the detectors of the files with their configurations, and their classes; raises what
    `load_members` raises, with what bare weights need.
    """
    try:
        return load_members([*map(Path, weights)], notice)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. Bare weights of a classifier are evaluated with --cfg, which says their "
            "network and data"
        ) from None


def server_for(
    arguments: argparse.Namespace,
    images: Annotations,
    class_map: ClassMap,
    config: DetectionConfig,
    trained: list[DetectionConfig],
) -> Server | None:
    """Return the test server that --submission is for, None without it; what cannot be submitted is
    refused before anything is detected.

    images: of the split. class_map: the detectors' classes. trained: the detectors' configurations.
    Raises what `plan_submission` and the like raise.
    """
    if not arguments.submission:
        return None
    require_competition(config.eval, arguments.weights, trained)
    server = server_of(
        config.data,
        arguments.split,
        weights=arguments.weights,
        competition=config.eval.competition,
    )
    plan_submission(
        Path(arguments.submission),
        images,
        detector=class_map,
        name=arguments.weights[0],
        server=server,
    )
    return server


def say_what_was_trained_on(
    arguments: argparse.Namespace, config: DetectionConfig, trained: list[DetectionConfig]
) -> None:
    """Say which parts of the split a detector has seen in training."""
    for file, own in zip(arguments.weights, trained, strict=True):
        for entry in trained_on(own.data, config.data, arguments.split or "val"):
            say(
                f"note: {file} was trained on {entry}: its numbers are better than on unseen images"
            )


def say_what_was_learned_from(
    weights: list[str], learnt: list[LearntImages | None], images: Annotations
) -> None:
    """Say how many of the images a detector that remembers its own has learned from."""
    for file, own in zip(weights, learnt, strict=True):
        number = 0 if own is None else int(own.seen(images.image_files.tolist()).sum())
        if number:
            of = plural(len(images), "image")
            say(
                f"note: {file} was trained on {number} of these {of}: its numbers are better than "
                "on unseen images"
            )


def detect(
    arguments: argparse.Namespace,
    detecting: Ensemble,
    truth: Annotations,
    first: DetectionConfig,
    config: DetectionConfig,
) -> Predictions:
    """Return what is found in the images of `truth`, which the first detector's input brings to
    size and `config` reads; in those that training held out, from saved proposals where it has
    some.
    """
    of_val = config.data.val_proposals if (arguments.split or "val") == "val" else None
    proposals = saved_proposals(of_val, truth)
    if proposals is not None:
        say(f"note: it looks at {proposals.source}, not at its RPN's")
    batches = eval_loader(
        build_val_set(first.model, truth, detecting.other_scales, proposals),
        batch_size=config.eval.batch_size,
        num_workers=config.data.workers,
    )
    device, precision = arguments.device, arguments.precision or config.eval.precision
    if precision == "auto":
        precision, reason = native_precision(device)
        say(f"precision {precision}: {reason}")
    if precision != "fp32":
        say(f"precision {precision}: AP differs from float32's by some thousandths")
    return detect_dataset(detecting.to(device), batches, truth.class_map, device, precision)

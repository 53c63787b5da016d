"""Score a detector or a classifier, `python tools/eval.py --weights FILE`, or results,
`--detections FILE --annotations FILE`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np

from backbones import PUBLISHED, Backbone
from detres.build import build_evaluation, is_detector, load_detector, read_split, with_data_root
from detres.build_classifier import (
    Images,
    bare_classifier,
    class_scores,
    is_classifier,
    load_classifier,
    protocol_of,
    published_classifier,
    read_held_out,
)
from detres.cls_config import ClassificationConfig, is_classification
from detres.config import load_config, with_overrides
from detres.data.coco import read_coco
from detres.data.voc import read_voc
from detres.engine.checkpoint import CheckpointError, replacing, write_text
from detres.evaluation.classify import ensemble, score_classes
from detres.evaluation.coco_ap import CocoResult, evaluate_coco
from detres.evaluation.detection_files import read_coco_results, read_voc_results, to_coco_results
from detres.evaluation.diagnose import explain
from detres.evaluation.voc_ap import VocResult, evaluate_voc
from detres.models.classifier import Classifier
from detres.structures import Annotations, ClassMap, Predictions
from detres.tools.command_line import add_config_flags, config_path, run

PROTOCOLS = ("coco", "voc07", "voc12")
WEIGHTS_FLAGS = ("--cfg", "--set", "--data", "--save-detections", "--save-scores")
DETECTIONS_FLAGS = ("--annotations", "--split")


def main(argv: list[str] | None = None) -> int:
    """Parse, read or detect, score; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="score the weights of a detector or a classifier, or a detections file"
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--weights",
        metavar="FILE",
        nargs="+",
        help="a run's best.safetensors (detector) or weights.safetensors (classifier; several "
        "make an ensemble), "
        "which know their model, classes, data and protocol; or, with --cfg, published "
        "classifiers by name, and weights of "
        "another origin for the network of the configuration",
    )
    what.add_argument(
        "--detections",
        metavar="FILE_OR_FOLDER",
        help="COCO results JSON, or a folder of VOC comp3/comp4 text files",
    )
    parser.add_argument(
        "--annotations",
        metavar="FILE_OR_FOLDER",
        help="with --detections: COCO JSON, or VOCdevkit/VOCyyyy",
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="with a VOC folder: the list in ImageSets/Main (default: test, else val)",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="default: the weights' own; coco for JSON; voc07 or voc12 by the year of a VOC folder",
    )
    parser.add_argument(
        "--iou",
        type=float,
        metavar="T",
        help="VOC protocols: IoU from which a detection is right (default: 0.5)",
    )
    parser.add_argument(
        "--json", metavar="OUT", help="also write the numbers, as fractions, to this file"
    )
    parser.add_argument(
        "--save-detections",
        metavar="OUT",
        help="with --weights: also write the detections as COCO results",
    )
    parser.add_argument(
        "--save-scores",
        metavar="OUT",
        help="with a classifier's --weights: also write probabilities and labels, .npz",
    )
    add_config_flags(parser)
    arguments = parser.parse_args(argv)
    if arguments.detections and not arguments.annotations:
        parser.error("--detections needs --annotations")
    foreign = WEIGHTS_FLAGS if arguments.detections else DETECTIONS_FLAGS
    given = [
        flag for flag in foreign if getattr(arguments, flag.removeprefix("--").replace("-", "_"))
    ]
    if given:
        parser.error(
            f"{', '.join(given)} does not go with "
            f"{'--detections' if arguments.detections else '--weights'}"
        )
    if arguments.json and Path(arguments.json).is_dir():
        parser.error(f"--json {arguments.json} is a folder; give a file")
    return run(
        lambda: score_weights(arguments) if arguments.weights else score_detections(arguments)
    )


def score_weights(arguments: argparse.Namespace) -> None:
    """Score a detector, or classifiers, by what the first of the files is; where it does not tell,
    by what --cfg configures.
    """
    first = arguments.weights[0]
    for weights in arguments.weights:
        if weights not in PUBLISHED and not Path(weights).is_file():
            raise FileNotFoundError(f"no weights file at {weights}")
        if Path(weights).name == "last.pt":
            raise ValueError(
                f"{weights} is the state of a run, for --resume; a detector's weights are "
                "best.safetensors of its run, "
                "a classifier's weights.safetensors"
            )
    detector = first not in PUBLISHED and is_detector(Path(first))
    if (
        first in PUBLISHED
        or is_classifier(Path(first))
        or (arguments.cfg and not detector and is_classification(config_path(arguments.cfg)))
    ):
        score_classifiers(arguments)
    elif detector and (len(arguments.weights) > 1 or arguments.save_scores):
        raise ValueError(
            f"{first} is a detector: several --weights, and --save-scores, go with classifiers"
        )
    else:
        score_detector(arguments)


def score_classifiers(arguments: argparse.Namespace) -> None:
    """Run one classifier, or several as an ensemble, over held-out images and score them by the
    first one's protocol.
    """
    bare = [
        weights
        for weights in arguments.weights
        if weights not in PUBLISHED and not is_classifier(Path(weights))
    ]
    require_classifier_flags(arguments, bare)
    models, config, class_map = load_classifiers(arguments, bare)
    config = config.model_copy(update={"data": with_data_root(config.data, arguments.data)})
    images = read_held_out(config.data, class_map)
    if class_map is not None:
        class_map.require_same(images.class_map, ", ".join(arguments.weights), images.source)
    else:
        sys.stdout.write(
            f"note: {', '.join(arguments.weights)} names no classes: its outputs are taken in "
            f"this order, {order_of(images)}\n"
        )
    scores = ensemble(
        [
            class_scores(config, model.to(arguments.device), images, arguments.device)
            for model in models
        ]
    )
    result = score_classes(scores, images.class_map.names, protocol_of(config))
    for weights, model in zip(arguments.weights, models, strict=True):
        if weights in bare:
            sys.stdout.write(
                f"note: {model.net.load_report}\n  taken as {assumptions(model.net)}\n"
            )
    sys.stdout.write(
        f"{images.source}\n{', '.join(arguments.weights)}\n{result.table(per_class=True)}\n"
    )
    if class_map is None and result.no_better_than_guessing:
        sys.stdout.write(
            "note: no better than guessing: are these the classes the weights were trained on, "
            "and in that order?\n"
        )
    if arguments.save_scores:
        with replacing(Path(arguments.save_scores)) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                probabilities=scores.probabilities,
                labels=scores.labels,
                classes=np.array(images.class_map.names),
            )
    if arguments.json:
        write_text(Path(arguments.json), json.dumps(result.to_dict(), indent=2) + "\n")


def order_of(images: Images) -> str:
    """Return the first classes of held-out images, in the order of their labels, and where they are
    from.
    """
    names = images.class_map.names
    return f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''} of {images.source}"


def require_classifier_flags(arguments: argparse.Namespace, bare: list[str]) -> None:
    """Raise ValueError for flags that do not go with classifiers, and without --cfg where the
    weights, `bare` ones among them, need it.
    """
    for flag, value in (
        ("--protocol", arguments.protocol),
        ("--iou", arguments.iou),
        ("--save-detections", arguments.save_detections),
    ):
        if value is not None:
            raise ValueError(
                f"{flag} goes with detectors; a classifier's protocol is set by --set "
                "eval.views=ten_crop, and so on"
            )
    sections = ("data.", "eval.", "model.") if bare else ("data.", "eval.")
    foreign = [setting for setting in arguments.set if not setting.startswith(sections)]
    if foreign:
        raise ValueError(
            f"--set {foreign[0]}: only {', '.join(f'{section}*' for section in sections)} say how "
            "weights are scored"
        )
    if not arguments.cfg and bare:
        what = (
            "is a detector"
            if is_detector(Path(bare[0]))
            else "does not say what network it is of: say so with --cfg"
        )
        raise ValueError(f"{bare[0]} {what}")
    if not arguments.cfg and set(arguments.weights) <= PUBLISHED.keys():
        raise ValueError(
            f"{arguments.weights[0]} is published: say how and on what to score it with --cfg "
            "configs/imagenet_resnet50.yaml"
        )


def load_classifiers(
    arguments: argparse.Namespace, bare: list[str]
) -> tuple[list[Classifier], ClassificationConfig, ClassMap | None]:
    """Return the classifiers, the configuration to score them by (--cfg, or the first run's), and
    the classes where a run says them.
    """
    config = (
        load_config(config_path(arguments.cfg), arguments.set, ClassificationConfig)
        if arguments.cfg
        else None
    )
    models, class_map, class_source = [], None, None
    for weights in arguments.weights:
        if weights in PUBLISHED:
            models.append(published_classifier(weights))
        elif weights in bare:
            models.append(bare_classifier(config.model, Path(weights)))
        else:
            model, own_config, own_classes = load_classifier(Path(weights))
            config = config or own_config
            if class_map is None:
                class_map, class_source = own_classes, weights
            class_map.require_same(own_classes, class_source, weights)
            models.append(model)
    if arguments.set and not arguments.cfg:
        config = with_overrides(config, arguments.set, arguments.weights[0])
    return models, config, class_map


def assumptions(net: Backbone) -> str:
    """Return in words what weights of another origin were taken to expect, which their tensors do
    not show.
    """
    spec = net.input_spec
    traits = [f"{name} {value}" for name, value in net.traits.items()]
    return ", ".join(
        [
            *traits,
            f"{spec.channel_order} images, mean {list(spec.mean)}, deviation {list(spec.std)}",
        ]
    )


def score_detector(arguments: argparse.Namespace) -> None:
    """Run a detector over held-out images and score it."""
    weights = arguments.weights[0]
    try:
        detector, config, class_map = load_detector(Path(weights))
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. Bare weights of a classifier are scored with --cfg, which says their "
            "network and data"
        ) from None
    data, evaluation = config.data, config.eval
    if arguments.cfg or arguments.set:
        if not arguments.cfg:
            raise ValueError(
                "--set changes a configuration: give it with --cfg; without --cfg the weights' "
                "own data and protocol are used"
            )
        given = load_config(config_path(arguments.cfg), arguments.set)
        data, evaluation = given.data, given.eval
    protocol = arguments.protocol or evaluation.protocol
    require_own_iou(protocol, arguments.iou)
    config = config.model_copy(
        update={
            "data": with_data_root(data, arguments.data),
            "eval": evaluation.model_copy(update={"protocol": protocol}),
        }
    )
    truth = read_split(config.data, "val")
    class_map.require_same(truth.class_map, weights, truth.source)
    result, predictions = build_evaluation(
        config, detector.to(arguments.device), truth, arguments.device
    )()
    if arguments.iou is not None:
        result = score(truth, predictions, protocol, arguments.iou)
    if arguments.save_detections:
        write_text(Path(arguments.save_detections), json.dumps(to_coco_results(predictions)))
    report(truth, predictions, result, arguments.json)


def score_detections(arguments: argparse.Namespace) -> None:
    """Score a results file or folder against annotations; no image is needed."""
    annotations, detections = Path(arguments.annotations), Path(arguments.detections)
    truth, usual_protocol, split = read_truth(annotations, arguments.split)
    protocol = arguments.protocol or usual_protocol
    require_own_iou(protocol, arguments.iou)
    if detections.is_dir():
        predictions, absent, of_split = read_voc_results(detections, truth)
        if of_split != split:
            sys.stdout.write(
                f"note: the results are named after the split {of_split}, and are scored on "
                f"{split or annotations}\n"
            )
        if absent:
            sys.stdout.write(
                f"note: no results file for {', '.join(absent)}: taken as no detections\n"
            )
    else:
        predictions, by_name = read_coco_results(detections, truth)
        if by_name:
            sys.stdout.write(
                f"note: the images of {by_name} detections were told by their file names, folders "
                "apart\n"
            )
    report(truth, predictions, score(truth, predictions, protocol, arguments.iou), arguments.json)


def read_truth(path: Path, split: str | None) -> tuple[Annotations, str, str | None]:
    """Read ground truth as it stands; return it with the protocol that goes with it, and a VOC
    folder's split.
    """
    if not path.is_dir():
        if split:
            raise ValueError(
                "--split goes with a VOC folder; a COCO JSON file is a split by itself"
            )
        return read_coco(path, None, boxes="keep"), "coco", None
    lists = {file.stem for file in (path / "ImageSets" / "Main").glob("*.txt")}
    split = split or ("test" if "test" in lists else "val")
    year = re.search(r"(19|20)\d\d$", path.resolve().name)
    protocol = "voc12" if year and int(year[0]) >= 2010 else "voc07"
    return read_voc(path, [split], boxes="keep", check_images=False), protocol, split


def require_own_iou(protocol: str, iou: float | None) -> None:
    """Raise ValueError for an IoU threshold where the protocol fixes its own."""
    if protocol == "coco" and iou is not None:
        raise ValueError(
            "--iou goes with --protocol voc07 or voc12: COCO averages over .50:.05:.95 and gives "
            "AP50 and AP75 beside it"
        )


def score(
    truth: Annotations, predictions: Predictions, protocol: str, iou: float | None
) -> CocoResult | VocResult:
    """Score by name of protocol."""
    if protocol == "coco":
        return evaluate_coco(truth, predictions)
    return evaluate_voc(truth, predictions, metric=protocol, iou_thresh=0.5 if iou is None else iou)


def report(
    truth: Annotations, predictions: Predictions, result: CocoResult | VocResult, out: str | None
) -> None:
    """Print the table, AP of each class and what explains a score of nothing; write JSON when
    asked.
    """
    sys.stdout.write(f"{truth.describe()}\n{len(predictions)} detections\n{result.table()}\n")
    for cause in explain(
        truth, predictions, result.metrics["AP" if isinstance(result, CocoResult) else "mAP"]
    ):
        sys.stdout.write(f"note: {cause}\n")
    if out:
        write_text(Path(out), json.dumps(result.to_dict(), indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())

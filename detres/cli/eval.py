"""Evaluate a detector or a classifier, `eval --weights FILE`, results,
`eval --detections FILE --annotations FILE`, or proposals, `eval --weights FILE --proposals`.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import get_args

import numpy as np

from backbones import PUBLISHED, Backbone
from backbones.weights import recognise_file
from detres.class_map import ClassMap
from detres.classification.config import ClassificationConfig, is_classification
from detres.classification.data.read import read_held_out
from detres.classification.evaluation.protocol import class_probabilities, protocol_of
from detres.classification.evaluation.top_k import ensemble, top_k_errors
from detres.classification.model import ClassificationModel
from detres.classification.weights_file import (
    bare_classifier,
    is_classifier,
    load_classifier,
    published_classifier,
)
from detres.cli.eval_localisation import evaluate_localiser
from detres.cli.eval_proposals import (
    OWN,
    add_proposal_flags,
    evaluate_own_proposals,
    evaluate_saved_proposals,
    fault_of,
)
from detres.cli.flags import (
    CommandParser,
    add_config_flags,
    config_path,
    ending,
    notice,
    read_config,
    say,
)
from detres.cli.submission import plan_submission, require_competition, server_of
from detres.config import with_overrides
from detres.detection.annotations import Annotations
from detres.detection.build import build_ensemble, build_val_set, eval_loader, saved_proposals
from detres.detection.config import SPLITS, DetectionConfig, EvalConfig
from detres.detection.data.coco import read_coco
from detres.detection.data.ilsvrc import read_ilsvrc
from detres.detection.data.read import read_to_detect, trained_on
from detres.detection.data.voc import read_voc
from detres.detection.evaluation.protocol import DetectionEvaluation, evaluate
from detres.detection.evaluation.result_files import (
    read_coco_results,
    read_voc_results,
    to_coco_results,
)
from detres.detection.evaluation.submission import write_submission
from detres.detection.inference.dataset import detect_dataset
from detres.detection.localisation.weights_file import is_localiser
from detres.detection.weights_file import is_detector, load_members
from detres.files import CheckpointError, replacing, write_text
from detres.images.source import LabelledImages
from detres.reproduction.evaluated import evaluated
from detres.runs.folder import CLASSIFIER_WEIGHTS, DETECTOR_WEIGHTS, STATE
from detres.runs.settings import with_data_root
from detres.user_files import expanded

PROTOCOLS = get_args(EvalConfig.model_fields["protocol"].annotation)
WEIGHTS_FLAGS = ("--cfg", "--set", "--data", "--save-detections", "--save-probabilities")
WEIGHTS_FLAGS += ("--submission", "--classifier")
DETECTIONS_FLAGS = ("--annotations",)


def main(argv: list[str] | None = None) -> int:
    """Parse, read or detect, evaluate; returns the exit status."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if fault := fault_of(arguments):
        parser.error(fault)
    if arguments.proposals is None and not (arguments.weights or arguments.detections):
        parser.error("one of the arguments --weights --detections --proposals is required")
    if arguments.detections and not arguments.annotations:
        parser.error("--detections needs --annotations")
    foreign = WEIGHTS_FLAGS if arguments.detections else DETECTIONS_FLAGS
    foreign = () if arguments.proposals else foreign
    given = [
        flag for flag in foreign if getattr(arguments, flag.removeprefix("--").replace("-", "_"))
    ]
    if given:
        parser.error(
            f"{', '.join(given)} does not go with "
            f"{'--detections' if arguments.detections else '--weights'}"
        )
    if arguments.weights and arguments.split not in (None, *SPLITS):
        parser.error(f"--split {arguments.split}: with --weights, one of {', '.join(SPLITS)}")
    if arguments.submission and arguments.split is None:
        parser.error("--submission needs --split: test, val or train")
    if arguments.json and Path(arguments.json).is_dir():
        parser.error(f"--json {arguments.json} is a folder; give a file")
    with ending(parser) as end:
        if arguments.proposals:
            evaluate_proposals(arguments)
        elif arguments.weights:
            evaluate_weights(arguments)
        else:
            evaluate_detections(arguments)
    return end.status


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of this command's flags."""
    parser = CommandParser(
        description="evaluate the weights of a detector, a classifier or a localiser, a "
        "detections file, or proposals"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--weights",
        type=expanded,
        metavar="FILE",
        nargs="+",
        help="a run's best.safetensors (detector) or weights.safetensors (classifier), which know "
        "their model, classes, data and protocol; several of one kind make an ensemble; or, with "
        "--cfg, published classifiers by name, and weights of another origin for the network of "
        "the configuration",
    )
    what.add_argument(
        "--detections",
        type=expanded,
        metavar="FILE_OR_FOLDER",
        help="COCO results JSON, or a folder of VOC comp3/comp4 text files",
    )
    parser.add_argument(
        "--annotations",
        type=expanded,
        metavar="FILE_OR_FOLDER",
        help="with --detections or --proposals FILE: COCO JSON, VOCdevkit/VOCyyyy, or an ILSVRC "
        "folder (DET)",
    )
    parser.add_argument(
        "--split",
        metavar="NAME",
        help="with a detector's --weights: train, val or test of its data (default: val); with "
        "--annotations of a VOC folder: the list in ImageSets/Main (default: test, else val, else "
        "the only one); with --weights --proposals: train or val (default)",
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="default: the weights' own; coco for JSON; voc07 or voc12 by the year of a VOC "
        "folder, imagenet_det for an ILSVRC one",
    )
    parser.add_argument(
        "--iou",
        type=float,
        metavar="T",
        help="VOC protocols: IoU from which a detection is right (default: 0.5)",
    )
    parser.add_argument(
        "--json",
        type=expanded,
        metavar="OUT",
        help="also write the numbers, as fractions, to this file",
    )
    parser.add_argument(
        "--save-detections",
        type=expanded,
        metavar="OUT",
        help="with --weights: also write the detections as COCO results",
    )
    parser.add_argument(
        "--submission",
        type=expanded,
        metavar="DIR",
        help="with --weights and --split: also write what the test server of COCO or VOC takes",
    )
    parser.add_argument(
        "--save-probabilities",
        "--save-scores",
        type=expanded,
        metavar="OUT",
        help="with a classifier's --weights: also write probabilities and labels, .npz",
    )
    parser.add_argument(
        "--classifier",
        type=expanded,
        metavar="FILE",
        help="with a localiser's --weights: a classifier's weights.safetensors, which predicts the "
        "classes (default: they are given)",
    )
    add_proposal_flags(parser)
    add_config_flags(parser)
    return parser


def evaluate_weights(arguments: argparse.Namespace) -> None:
    """Evaluate a detector, a localiser, or classifiers, by what the first of the files is; where it
    does not tell, by what --cfg configures.

    Raises FileNotFoundError for a file that is missing, ValueError for a last.pt and for flags that
    go with the other kind.
    """
    first = arguments.weights[0]
    for weights in arguments.weights:
        if weights not in PUBLISHED and not Path(weights).exists():
            raise FileNotFoundError(f"no weights file at {weights}")
        if Path(weights).name == STATE:
            raise ValueError(
                f"{weights} is the state of a run, for --resume; a detector's weights are "
                f"{DETECTOR_WEIGHTS} of its run, a classifier's {CLASSIFIER_WEIGHTS}"
            )
    if first not in PUBLISHED and is_localiser(Path(first)):
        evaluate_localiser(arguments)
        return
    if arguments.classifier:
        raise ValueError(f"--classifier goes with a localiser, and {first} is none")
    detector = first not in PUBLISHED and is_detector(Path(first))
    classifier = first in PUBLISHED or is_classifier(Path(first))
    if not classifier and not detector and arguments.cfg:
        classifier = is_classification(config_path(arguments.cfg))
    if not (classifier or detector or arguments.cfg):
        require_said(first)
    if classifier:
        evaluate_classifiers(arguments)
    elif detector and arguments.save_probabilities:
        raise ValueError(f"{first} is a detector: --save-probabilities goes with classifiers")
    else:
        evaluate_detectors(arguments)


def require_said(weights: str) -> None:
    """Raise ValueError for the bare weights of a network, naming it and what is needed to evaluate
    it; WeightsError for a file that cannot be read.
    """
    looks_like = recognise_file(weights)
    if looks_like is not None:
        what = f"{weights} holds the weights of a network alone, by its tensors {looks_like.words}"
        if not looks_like.settings:
            raise ValueError(what)
        settings = " ".join(f"model.network.{key}={v}" for key, v in looks_like.settings.items())
        raise ValueError(
            f"{what}: evaluate it as a classifier with --cfg, which says its data, and --set "
            f"{settings}"
        )


def evaluate_classifiers(arguments: argparse.Namespace) -> None:
    """Run one classifier, or several as an ensemble, over held-out images and evaluate them by the
    first one's protocol.
    """
    device, names = arguments.device, ", ".join(arguments.weights)
    bare = [
        weights
        for weights in arguments.weights
        if weights not in PUBLISHED and not is_classifier(Path(weights))
    ]
    require_classifier_flags(arguments, bare)
    models, config, class_map = load_classifiers(arguments, bare)
    data = with_data_root(config.data, arguments.data)
    config = config.model_copy(update={"data": data})
    images = read_held_out(data, class_map, say)
    if class_map is not None:
        class_map.require_same(images.class_map, names, images.source)
    else:
        order = order_of(images)
        say(f"note: {names} names no classes: its outputs are taken in this order, {order}")
    members = [class_probabilities(config, model.to(device), images, device) for model in models]
    found = ensemble(members)
    result = top_k_errors(found, images.class_map.names, protocol_of(config))
    for weights, model in zip(arguments.weights, models, strict=True):
        if weights in bare:
            say(f"note: {model.net.load_report}\n  taken as {assumptions(model.net)}")
    say(f"{images.source}\n{names}\n{result.table(per_class=True)}")
    if class_map is None and result.no_better_than_guessing:
        say(
            "note: no better than guessing: are these the classes the weights were trained on, and "
            "in that order?"
        )
    if arguments.save_probabilities:
        columns = {"probabilities": found.probabilities, "labels": found.labels}
        with replacing(arguments.save_probabilities) as path, path.open("wb") as file:
            np.savez(file, **columns, classes=np.array(images.class_map.names))
    if arguments.json:
        numbers = {**result.to_dict(), "evaluated": evaluated(arguments.weights, config)}
        write_text(Path(arguments.json), json.dumps(numbers, indent=2) + "\n")


def order_of(images: LabelledImages) -> str:
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
        ("--split", arguments.split),
        ("--submission", arguments.submission),
    ):
        if value is not None:
            raise ValueError(
                f"{flag} goes with detectors; a classifier's protocol is set by --set "
                "eval.views=ten_crop, and so on"
            )
    require_settings_of(arguments, "data.", "eval.", *(["model."] if bare else []))
    if not arguments.cfg and bare:
        what = (
            "is a detector"
            if is_detector(Path(bare[0]))
            else "does not say what network it is of: say so with --cfg"
        )
        raise ValueError(f"{bare[0]} {what}")
    if not arguments.cfg and set(arguments.weights) <= PUBLISHED.keys():
        raise ValueError(
            f"{arguments.weights[0]} is published: say how and on what to evaluate it with --cfg "
            "configs/imagenet_resnet50.yaml"
        )


def require_settings_of(arguments: argparse.Namespace, *sections: str) -> None:
    """Raise ValueError for a --set of another section of the configuration than these."""
    foreign = [setting for setting in arguments.set if not setting.startswith(sections)]
    if foreign:
        raise ValueError(
            f"--set {foreign[0]}: only {', '.join(f'{section}*' for section in sections)} say how "
            "weights are evaluated"
        )


def load_classifiers(
    arguments: argparse.Namespace, bare: list[str]
) -> tuple[list[ClassificationModel], ClassificationConfig, ClassMap | None]:
    """Return the classifiers, the configuration to evaluate them by (--cfg, or the first run's),
    and the classes where a run says them.
    """
    config = (
        read_config(config_path(arguments.cfg), ClassificationConfig, arguments.set)
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
            model, own_config, own_classes = load_classifier(Path(weights), notice)
            config = config or own_config
            if class_map is None:
                class_map, class_source = own_classes, weights
            class_map.require_same(own_classes, class_source, weights)
            models.append(model)
    if arguments.set and not arguments.cfg:
        config = with_overrides(config, arguments.set, arguments.weights[0], notice=notice)
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


def evaluate_detectors(arguments: argparse.Namespace) -> None:
    """Run a detector, or several as an ensemble, over held-out images and evaluate them by the
    first one's data and settings, or those of --cfg.

    Raises CheckpointError for weights of another kind, ValueError for flags that do not go
    together, and what the readers raise.
    """
    weights, device = arguments.weights[0], arguments.device
    require_settings_of(arguments, "data.", "eval.")
    try:
        members, class_map = load_members([*map(Path, arguments.weights)], notice)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. Bare weights of a classifier are evaluated with --cfg, which says their "
            "network and data"
        ) from None
    configs = [config for _, config in members]
    given = config = configs[0]
    if arguments.cfg:
        given = read_config(config_path(arguments.cfg), DetectionConfig, arguments.set)
    elif arguments.set:
        given = with_overrides(config, arguments.set, weights, notice=notice)
    data, evaluation = given.data, given.eval
    detecting = build_ensemble([(model, own.model) for model, own in members], evaluation)
    protocol = arguments.protocol or evaluation.protocol
    iou_thresh = own_iou(protocol, arguments.iou)
    data = with_data_root(data, arguments.data)
    images = read_to_detect(data, arguments.split or "val", class_map)
    require_wanted(arguments, images)
    server = None
    if arguments.submission:
        require_competition(evaluation, configs)
        server = server_of(
            data, arguments.split, weights=arguments.weights, competition=evaluation.competition
        )
        plan_submission(
            Path(arguments.submission), images, detector=class_map, name=weights, server=server
        )
    for file, own in zip(arguments.weights, configs, strict=True):
        for entry in trained_on(own.data, data, arguments.split or "val"):
            say(
                f"note: {file} was trained on {entry}: its numbers are better than on unseen images"
            )
    truth = images.matched_to(class_map, weights)
    of_val = data.val_proposals if (arguments.split or "val") == "val" else None
    proposals = saved_proposals(of_val, truth)
    if proposals is not None:
        say(f"note: it looks at {proposals.source}, not at its RPN's")
    batches = eval_loader(
        build_val_set(config.model, truth, detecting.other_scales, proposals),
        batch_size=evaluation.batch_size,
        num_workers=data.workers,
    )
    found = detect_dataset(detecting.to(device), batches, truth.class_map, device)
    if arguments.save_detections:
        write_text(Path(arguments.save_detections), json.dumps(to_coco_results(found)))
    if server is not None:
        archive = write_submission(Path(arguments.submission), truth, found, server)
        say(f"{len(found)} detections in {len(truth)} images for the test server: {archive}")
    if truth.without_truth is not None:
        say(f"{truth.describe()}\n{len(found)} detections, not evaluated here")
        return
    result = evaluate(protocol, truth, found, iou_thresh=iou_thresh)
    used = given.model_copy(update={"eval": evaluation.model_copy(update={"protocol": protocol})})
    split = arguments.split or "val"
    of = evaluated(arguments.weights, used, split=split, iou=iou_thresh)
    report(truth, result, arguments.json, how=detecting.describe(), of=of)


def require_wanted(arguments: argparse.Namespace, images: Annotations) -> None:
    """Raise ValueError where numbers are asked for and the objects in `images` are not known."""
    if not (arguments.submission or arguments.save_detections):
        images.require_truth()
    given = [flag for flag in ("json", "protocol", "iou") if getattr(arguments, flag) is not None]
    if given and images.without_truth is not None:
        raise ValueError(
            f"--{given[0]} goes with numbers, and {images.source} gives none, its objects are not "
            f"known: {images.without_truth}. Leave it out"
        )


def evaluate_proposals(arguments: argparse.Namespace) -> None:
    """Evaluate the proposals of a detector, or of a file, by their recall."""
    if arguments.proposals == OWN:
        evaluate_own_proposals(arguments)
        return
    truth = None
    if arguments.annotations:
        truth, _, _ = read_truth(Path(arguments.annotations), arguments.split)
    evaluate_saved_proposals(arguments, truth)


def evaluate_detections(arguments: argparse.Namespace) -> None:
    """Evaluate a results file or folder against annotations; no image is needed."""
    annotations, detections = Path(arguments.annotations), Path(arguments.detections)
    truth, usual_protocol, split = read_truth(annotations, arguments.split)
    others = {path.stem for path in (annotations / "Annotations").glob("[!.]*.[xX][mM][lL]")}
    protocol = arguments.protocol or usual_protocol
    iou_thresh = own_iou(protocol, arguments.iou)
    if detections.is_dir():
        predictions, notes, of_split = read_voc_results(detections, truth, others=others)
        if of_split != split:
            notes.append(
                f"the results are named after the split {of_split}, and are evaluated on "
                f"{split or annotations}"
            )
    else:
        predictions, notes = read_coco_results(detections, truth, others=others)
    for note in notes:
        say(f"note: {note}")
    result = evaluate(protocol, truth, predictions, iou_thresh=iou_thresh)
    report(truth, result, arguments.json)


def read_truth(path: Path, split: str | None) -> tuple[Annotations, str, str | None]:
    """Read ground truth as it stands; return it with the protocol that goes with it, and the split
    of a VOC or an ILSVRC folder.

    Raises ValueError for a split of a file, and what the readers raise.
    """
    if not path.is_dir():
        if split:
            raise ValueError(
                "--split goes with a VOC folder or an ILSVRC one; a COCO JSON file is a split"
            )
        return read_coco(path, None, box_policy="keep"), "coco", None
    if (path / "ImageSets" / "DET").is_dir():
        split = split or "val"
        truth = read_ilsvrc(path, [f"DET/{split}"], box_policy="keep", check_images=False)
        return truth, "imagenet_det", split
    lists = {file.stem for file in (path / "ImageSets" / "Main").glob("[!.]*.txt")}
    usual = "test" if "test" in lists else "val"
    split = split or (min(lists) if len(lists) == 1 else usual)
    year = re.search(r"(19|20)\d\d$", path.resolve().name)
    protocol = "voc12" if year and int(year[0]) >= 2010 else "voc07"
    return read_voc(path, [split], box_policy="keep", check_images=False), protocol, split


def own_iou(protocol: str, given: float | None) -> float:
    """Return the IoU threshold of a VOC protocol; raises ValueError for one that is given where the
    protocol fixes its own.
    """
    fixed = {
        "coco": "COCO averages over .50:.05:.95 and gives AP50 and AP75 beside it",
        "imagenet_det": "ImageNet DET has one for each object, by its size",
    }
    if protocol in fixed and given is not None:
        raise ValueError(f"--iou goes with --protocol voc07 or voc12: {fixed[protocol]}")
    return 0.5 if given is None else given


def report(
    truth: Annotations,
    result: DetectionEvaluation,
    out: str | None,
    *,
    how: str = "",
    of: dict | None = None,
) -> None:
    """Print the table, AP of each class and what explains a low number; write JSON when asked.

    how: what the detections were made with beyond one plain detector, in words. of: the weights and
    settings that were evaluated, as `evaluated` has them.
    """
    made = f" by {how}" if how else ""
    say(f"{truth.describe()}\n{len(result.predictions)} detections{made}\n{result.table()}")
    if out:
        numbers = {**result.result.to_dict(), **({"detected_by": how} if how else {})}
        numbers |= {} if of is None else {"evaluated": of}
        write_text(Path(out), json.dumps(numbers, indent=2) + "\n")

"""The part of `eval` that judges proposals: `eval --weights FILE --proposals`, of a detector's RPN,
and `eval --proposals FILE --weights FILE` or `--annotations FILE`, of a saved file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from detres.cli.flags import evaluated_by, given_of, notice, require_settings_of, say
from detres.detection.alternating import described, propose_split
from detres.detection.annotations import Annotations
from detres.detection.config import TRAINING_SPLITS, DetectionConfig
from detres.detection.data.proposals import read_proposals, save_proposals
from detres.detection.data.read import read_split
from detres.detection.evaluation.proposal_recall import COUNTS, proposal_recall
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.detection.models.rpn import ProposalCounts
from detres.detection.structures import Proposals
from detres.detection.weights_file import load_detector
from detres.files import write_text
from detres.runs.settings import with_data_root
from detres.user_files import expanded

OWN = "own"
"""What --proposals without a file means."""

FLAGS = ("--counts", "--save-proposals", "--pre-nms")


def add_proposal_flags(parser: argparse.ArgumentParser) -> None:
    """Add --proposals and what goes with it."""
    parser.add_argument(
        "--proposals",
        type=expanded,
        metavar="FILE",
        nargs="?",
        const=OWN,
        help="judge proposals by their recall: those that --weights make, or those of a file, "
        "for the images of --weights or of --annotations",
    )
    parser.add_argument(
        "--counts",
        type=int,
        metavar="N",
        nargs="+",
        help="with --proposals: recall of so many of an image's best, rising (default: "
        f"{' '.join(map(str, COUNTS))}); the last is how many are made",
    )
    parser.add_argument(
        "--pre-nms",
        type=int,
        metavar="N",
        help="with --weights --proposals: how many boxes enter NMS, 0 for all (default: the "
        "weights' own for testing)",
    )
    parser.add_argument(
        "--save-proposals",
        type=expanded,
        metavar="OUT",
        help="with --weights --proposals: also write them, for data.train_proposals and "
        "data.val_proposals",
    )


def fault_of(arguments: argparse.Namespace) -> str | None:
    """Return what is wrong with the flags together; None: nothing."""
    given = given_of(arguments, FLAGS)
    if arguments.proposals is None:
        return f"{given[0]} goes with --proposals" if given else None
    if arguments.detections:
        return "--detections and --proposals are two things to judge: give one"
    if bool(arguments.weights) == bool(arguments.annotations):
        return (
            "--proposals needs --weights, which make them or say what a file of them is for, or a "
            "FILE and --annotations"
        )
    if arguments.proposals == OWN and not arguments.weights:
        return "--proposals without a FILE are made by --weights"
    others = ("--protocol", "--iou", "--save-detections", "--save-probabilities")
    others += ("--submission", "--classifier", "--out")
    if arguments.proposals != OWN:
        others += ("--save-proposals", "--pre-nms")
    if arguments.annotations:
        others += ("--cfg", "--set", "--data")
    if given := given_of(arguments, others):
        what = "--proposals" if arguments.proposals == OWN else "--proposals FILE"
        return f"{', '.join(given)} does not go with {what}"
    counts = arguments.counts
    if counts is not None and (min(counts) < 1 or counts != sorted(set(counts))):
        return f"--counts {' '.join(map(str, counts))}: expected numbers from 1 on that rise"
    if arguments.pre_nms is not None and arguments.pre_nms < 0:
        return f"--pre-nms {arguments.pre_nms}: expected 1 or more, or 0 for all"
    if arguments.weights and len(arguments.weights) > 1:
        return "--proposals takes one file of --weights"
    if arguments.weights and arguments.split not in (None, *TRAINING_SPLITS):
        named = " and ".join(TRAINING_SPLITS)
        return f"--split {arguments.split}: --proposals are judged on the splits {named}"
    if arguments.save_proposals and Path(arguments.save_proposals).is_dir():
        return f"--save-proposals {arguments.save_proposals} is a folder; give a file"
    return None


def evaluate_own_proposals(arguments: argparse.Namespace) -> None:
    """Make, judge and maybe save what the RPN of a detector proposes; raises what the readers
    raise.
    """
    detector, config, counts = _detector_of(arguments)
    split = arguments.split or "val"
    truth, found = propose_split(detector, config, split, counts, arguments.device)
    made_by = described(Path(arguments.weights[0]), counts, config.model.rpn.nms_thresh)
    if arguments.save_proposals:
        save_proposals(arguments.save_proposals, found, truth, made_by)
    report(truth, found, made_by, arguments)


def evaluate_saved_proposals(arguments: argparse.Namespace, truth: Annotations | None) -> None:
    """Judge the proposals of a file; truth: what they are for, None: what --weights are evaluated
    on. Raises ProposalsError, and what the readers raise.
    """
    if truth is None:
        _, config, _ = _detector_of(arguments)
        truth = read_split(config.data, arguments.split or "val")
    found, made_by = read_proposals(arguments.proposals, truth)
    report(truth, found, made_by, arguments)


def _detector_of(
    arguments: argparse.Namespace,
) -> tuple[FasterRCNN, DetectionConfig, ProposalCounts]:
    """The detector of --weights, its configuration with the data that are asked for, and how many
    proposals are.
    """
    require_settings_of(arguments, "data.", "eval.")
    detector, config, _ = load_detector(Path(arguments.weights[0]), notice)
    by = evaluated_by(arguments, config)
    data = with_data_root(by.data, arguments.data)
    entering = arguments.pre_nms
    if entering is None:
        entering = config.model.rpn.test_pre_nms_top_n
    counts = ProposalCounts(entering or None, (arguments.counts or COUNTS)[-1])
    return detector, config.model_copy(update={"data": data, "eval": by.eval}), counts


def report(
    truth: Annotations, found: Proposals, made_by: str, arguments: argparse.Namespace
) -> None:
    """Print what was judged and its recall; write JSON when asked."""
    result = proposal_recall(truth, found, tuple(arguments.counts or COUNTS))
    mean = len(found.scores) / len(found)
    say(
        f"{truth.describe()}\n{len(found.scores)} proposals, {mean:.1f} an image, made by "
        f"{made_by}\n{result.table()}"
    )
    if arguments.json:
        write_text(Path(arguments.json), json.dumps(result.to_dict(), indent=2) + "\n")

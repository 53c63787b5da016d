"""The flags of `eval --proposals`."""

from __future__ import annotations

import argparse
from pathlib import Path

from detres.cli.flags import given_of
from detres.detection.choices import COUNTS, TRAINING_SPLITS
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
    others = ("--protocol", "--backend", "--iou", "--save-detections", "--save-probabilities")
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

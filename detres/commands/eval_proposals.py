"""The part of `eval` that judges proposals: `eval --weights FILE --proposals`, of a detector's RPN,
and `eval --proposals FILE --weights FILE` or `--annotations FILE`, of a saved file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from detres.cli.flags import notice, say
from detres.commands.configured import evaluated_by, require_settings_of
from detres.detection.alternating import described, propose_split
from detres.detection.annotations import Annotations
from detres.detection.choices import COUNTS
from detres.detection.config import DetectionConfig
from detres.detection.data.proposals import read_proposals, save_proposals
from detres.detection.data.read import read_split
from detres.detection.evaluation.proposal_recall import proposal_recall
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.detection.models.rpn import ProposalCounts
from detres.detection.structures import Proposals
from detres.detection.weights_file import load_detector
from detres.files import write_text
from detres.runs.settings import with_data_root


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

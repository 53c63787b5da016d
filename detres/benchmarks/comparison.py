"""Our detector and one made of torchvision's parts, trained by the same loop."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from detres.benchmarks.torchvision_parts import TorchvisionParts, require_expressible
from detres.config import to_yaml
from detres.console import write_line
from detres.detection.build import build_detector
from detres.detection.config import DetectionConfig, ModelConfig
from detres.detection.evaluation.protocol import DetectionEvaluation
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.detection.training import DetectionData, DetectionTraining
from detres.engine.distributed import Group
from detres.files import write_text
from detres.runs.environment import write_environment
from detres.runs.folder import CONFIG, ENVIRONMENT, new_run_folder
from detres.runs.judgement import Judgement
from detres.runs.run import TrainingRun


class UnkeptTraining(DetectionTraining):
    """A training of which only the numbers are wanted."""

    def judge(self, *, whole: bool) -> Judgement:  # noqa: ARG002
        """Return the numbers on all held-out images, without losses: torchvision's parts have none
        in eval mode.
        """
        val = self.held_out.val
        found = self.find(val, self.held_out.all_batches)
        return Judgement.of_all(self.measure(val, found, whole=True))

    def anchor_lines(self) -> list[str]:
        """Return nothing: both have the same anchors, and torchvision's parts no maps of ours."""
        return []

    def keep(self, run: TrainingRun, judgement: Judgement, *, improved: bool, whole: bool) -> None:
        """Keep no weights: those of torchvision's parts would be no file of ours."""


def compare(config: DetectionConfig, out: str | None, *, device: torch.device) -> None:
    """Train both models with the same data order, schedule, optimizer and seed, and print both
    results.

    out: folder, by default the next free runs/NAME-comparison; each model has its run folder in it.
    Raises what DetectionTraining.start and new_run_folder raise, ValueError for a configuration
    that torchvision cannot express.
    """
    require_expressible(config.model)
    if config.eval.improved_in_training:
        raise ValueError(
            "eval.improved_in_training does not go with torchvision's parts, which detect plainly: "
            "leave it out"
        )
    if config.train.scheme != "joint":
        raise ValueError(
            f"train.scheme={config.train.scheme}: torchvision's parts are trained jointly alone"
        )
    with new_run_folder(f"{config.name}-comparison", out) as lock:
        folder = lock.folder
        write_text(folder / CONFIG, to_yaml(config))
        write_environment(folder / ENVIRONMENT, device)
        results = {
            name: train_one(name, config, folder, device) for name in ("ours", "torchvision")
        }
        metrics = {name: {**e.metrics, "train_s": s} for name, (e, s) in results.items()}
        write_text(folder / "comparison.json", json.dumps(metrics, indent=2) + "\n")
    metric = results["ours"][0].best_metric
    for name, found in metrics.items():
        write_line(f"{name:<12} {metric} {found[metric]:.4f}  training {found['train_s']:.0f} s")
    difference = metrics["ours"][metric] - metrics["torchvision"][metric]
    write_line(f"difference   {difference:+.4f}")


def build_one(name: str, config: ModelConfig, num_classes: int) -> FasterRCNN | TorchvisionParts:
    """Return "ours" or "torchvision"'s, both from the weights of the backbone where it has some."""
    if name == "ours":
        return build_detector(config, num_classes)
    theirs = TorchvisionParts(config, num_classes)
    if config.backbone.weights is not None:
        theirs.copy_network(build_detector(config, num_classes))
    return theirs


def train_one(
    name: str, config: DetectionConfig, folder: Path, device: torch.device
) -> tuple[DetectionEvaluation, float]:
    """Return the last evaluation of one model, and the seconds of training and that evaluation."""
    write_line(f"== {name}")
    torch.manual_seed(config.seed)
    # evaluated once, at the end, so that the time is that of training
    train = config.train.model_copy(update={"eval_every": 0})
    config = config.model_copy(update={"train": train})
    data = DetectionData(config)
    num_classes = len(data.train.class_map)
    network = build_one(name, config.model, num_classes)
    training = UnkeptTraining(config, network, data, device, Group())
    run = TrainingRun.start(training, folder / name, device=device, resume_line=None)
    started = time.monotonic()
    with run:
        evaluation = run.train()
    return evaluation, time.monotonic() - started

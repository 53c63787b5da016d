"""Small configurations, and run folders as a training leaves them, for the tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import yaml

from backbones.files import write_safetensors
from detres.config import to_yaml, with_overrides
from detres.reproduction.evaluated import evaluated
from detres.reproduction.found import weights_name
from detres.reproduction.settings import config_of
from detres.reproduction.tables import Cell, Cost, Evaluation, Training

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

COST = Cost(3600 / 64_000 / 128, "an abacus", "counted beads")
RESNET = Training("train-cls", "cifar10_resnet20", "CIFAR", COST)
DETECTOR = Training("train-det", "voc0712_r101", "VOCdevkit")
LOCALISER = Training("train-loc", "shapes_loc_r18", None)

CELL = Cell(6, "a net", {"top1_error": 8.75}, (RESNET,))
VOC = Cell(7, "a detector", {"mAP": 76.4, "cat": 90.0}, (DETECTOR,))


def write_run(
    root: Path,
    training: Training,
    *settings: str,
    name: str | None = None,
    steps_left: int = 0,
    numbers: dict | None = None,
    arguments: tuple[str, ...] = (),
    content: float = 0.0,
) -> Path:
    """Write a run folder; settings: beside those of the training; content: of its weights."""
    config = config_of(training, CONFIGS)
    config = with_overrides(config, settings, "test")
    folder = root / (name or training.name)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    facts = {
        "arguments": list(arguments),
        "git_commit": "0123456789abcdef",
        "git_changed_files": [],
        "device": "an abacus",
        "cpu_count": 2,
        "torch": "2.14",
    }
    (folder / "env.json").write_text(json.dumps([facts]))
    step = config.train.steps - steps_left
    kinds = ["train", "eval"] if not steps_left else ["train"]
    if getattr(config.train, "recompute_batches", 0) and not steps_left:
        kinds.append("averaged")
    lines = [json.dumps({"step": step, "kind": kind, "loss": 1.0}) for kind in kinds]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 9']))  # cut off by a crash
    (folder / "last.pt").write_bytes(b"")
    if numbers is not None:
        (folder / "metrics.json").write_text(json.dumps({"step": step, **numbers}))
    tensors = {"w": torch.full((1,), content)}
    write_safetensors(folder / weights_name(training.command), tensors, {})
    return folder


def write_evaluation(folder: Path, cell: Cell, weights: list[Path], numbers: dict, *settings: str):
    """Write what tools/eval.py does; settings: in place of those of the cell."""
    how: Evaluation = cell.evaluation
    config = config_of(cell.runs[0], CONFIGS, settings or how.settings)
    content = {**numbers, "evaluated": evaluated(weights, config)}
    (folder / f"{how.label}.json").write_text(json.dumps(content))


def tiny_config(folder: Path, tree: dict) -> None:
    """Write a configuration under its own name."""
    folder.mkdir(exist_ok=True)
    (folder / f"{tree['name']}.yaml").write_text(yaml.safe_dump(tree))

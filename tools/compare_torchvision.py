"""Train our detector and one made of torchvision's parts by the same loop.

`python tools/compare_torchvision.py --cfg configs/bccd_r18.yaml --data DIR`
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from torch import nn

from detres.build import (
    build_detector,
    build_evaluation,
    build_optimizer,
    build_schedule,
    build_train_set,
    read_split,
)
from detres.config import Config, to_yaml
from detres.data.loader import train_loader
from detres.engine.checkpoint import write_text
from detres.engine.log import RunLog, new_run_folder, write_environment
from detres.engine.progress import Progress
from detres.engine.train import fit
from detres.tools.command_line import add_config_flags, add_seed_flag, config_from, run
from detres.tools.torchvision_parts import TorchvisionParts


def main(argv: list[str] | None = None) -> int:
    """Parse and train both; returns the exit status."""
    parser = argparse.ArgumentParser(
        description="train our detector and one made of torchvision's parts by the same loop"
    )
    add_config_flags(parser)
    add_seed_flag(parser)
    parser.add_argument(
        "--out", metavar="DIR", help="folder for the logs (default: runs/NAME-comparison)"
    )
    arguments = parser.parse_args(argv)
    return run(lambda: compare(arguments))


def compare(arguments: argparse.Namespace) -> None:
    """Train both models with the same data order, schedule, optimizer and seed, and print both
    scores.
    """
    config, device = config_from(arguments), torch.device(arguments.device)
    num_classes = len(read_split(config.data, "train").class_map)
    folder = new_run_folder(f"{config.name}-comparison", arguments.out)
    write_text(folder / "config.yaml", to_yaml(config))
    write_environment(folder, device)
    scores = {}
    for name in ("ours", "torchvision"):
        torch.manual_seed(config.seed)
        model = (
            build_detector(config.model, num_classes)
            if name == "ours"
            else TorchvisionParts(config.model, num_classes)
        )
        sys.stdout.write(f"== {name}\n")
        scores[name] = train_and_score(config, model.to(device), folder / name, device)
    write_text(folder / "comparison.json", json.dumps(scores, indent=2) + "\n")
    metric = config.eval.best_metric
    for name, found in scores.items():
        sys.stdout.write(
            f"{name:<12} {metric} {found[metric]:.4f}  training {found['train_s']:.0f} s\n"
        )
    sys.stdout.write(
        f"difference   {scores['ours'][metric] - scores['torchvision'][metric]:+.4f}\n"
    )


def keep_nothing(_progress: Progress) -> None:
    """Save no weights: the numbers are all that is wanted."""


def train_and_score(
    config: Config, model: nn.Module, folder: Path, device: torch.device
) -> dict[str, float | None]:
    """Return the held-out metrics after training, and `train_s`, the seconds of training and its
    last evaluation.
    """
    folder.mkdir()
    settings = config.train
    train_set, val = build_train_set(config), read_split(config.data, "val")
    schedule = build_schedule(settings, len(train_set))
    evaluation = build_evaluation(config, model, val, device)
    log = RunLog(folder, console=sys.stdout, steps=schedule.steps)

    def evaluate() -> dict[str, float | None]:
        result, _ = evaluation()
        log.line(result.table())
        return result.metrics

    started = time.monotonic()
    try:
        metrics = fit(
            model=model,
            optimizer=build_optimizer(settings, model),
            batches=train_loader(
                train_set,
                batch_size=settings.batch_size,
                steps=schedule.steps,
                seed=config.seed,
                num_workers=config.data.workers,
            ),
            progress=Progress(),
            schedule=schedule,
            evaluate=evaluate,
            best_metric=config.eval.best_metric,
            save_last=keep_nothing,
            save_best=keep_nothing,
            log=log,
            device=device,
            seed=config.seed,
            log_every=settings.log_every,
            eval_every=0,
            save_every=schedule.steps,
            clip_grad_norm=settings.clip_grad_norm,
            precision=settings.precision,
        )
    finally:
        log.close()
    return {**metrics, "train_s": time.monotonic() - started}


if __name__ == "__main__":
    sys.exit(main())

"""Train a classifier: `python tools/train_cls.py --cfg configs/cifar10_resnet20.yaml --data DIR`; alone, on the embedded shapes."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from backbones import recompute_batch_norm
from detres.build import with_data_root
from detres.build_classifier import (
    Images,
    build_class_optimizer,
    build_class_schedule,
    build_classifier,
    build_train_batches,
    read_class_splits,
    save_classifier,
    score_classifier,
)
from detres.cls_config import ClassificationConfig
from detres.config import check, load_config, to_yaml, what_differs
from detres.engine.checkpoint import load_model_state, load_state, save_state, write_text
from detres.engine.log import RunLog, new_run_folder, write_environment
from detres.engine.progress import Progress
from detres.engine.train import Interrupted, fit
from detres.models.classifier import Classifier
from detres.structures import ClassMap, ClassTargets, CropBatch, ImageArrays
from detres.tools.command_line import CONFIGS, add_config_flags, config_from, config_path, newest_run, run

DEFAULT_CONFIG = CONFIGS / "cls_shapes_r18.yaml"
STATE_KEYS = ("config", "classes", "progress", "model", "optimizer")
DAMAGED = "skipped.txt"
WEIGHTS = "weights.safetensors"
"""Of the last step, not of the best: choosing by the test set would flatter the number."""


def main(argv: list[str] | None = None) -> int:
    """Parse, build, train; returns the exit status."""
    parser = argparse.ArgumentParser(description="train a classifier")
    add_config_flags(parser, default=DEFAULT_CONFIG)
    parser.add_argument("--out", metavar="DIR", help="run folder (default: runs/NAME, else the next free runs/NAME-2, ...)")
    parser.add_argument("--resume", metavar="DIR", nargs="?", const="", help="continue a run (default: the newest of runs/NAME, -2, ...)")
    arguments = parser.parse_args(argv)
    if arguments.resume is not None:
        if arguments.set or arguments.out or arguments.seed is not None:
            parser.error("--resume continues with the run's own settings; --set, --seed and --out start a new run")
        return run(lambda: resume(arguments))
    return run(lambda: start(arguments))


def start(arguments: argparse.Namespace) -> None:
    """Train from the first step in a new run folder."""
    config = config_from(arguments, ClassificationConfig, DEFAULT_CONFIG)
    torch.manual_seed(config.seed)
    images = read_class_splits(config.data)
    model = build_classifier(config, images[0])
    folder = new_run_folder(config.name, arguments.out)
    write_text(folder / "config.yaml", to_yaml(config))
    train(config, images, model, folder, state=None, device=arguments.device)


def resume(arguments: argparse.Namespace) -> None:
    """Continue an interrupted run with its own configuration."""
    cfg = config_path(arguments.cfg, DEFAULT_CONFIG)
    folder = Path(arguments.resume) if arguments.resume else newest_run(load_config(cfg, kind=ClassificationConfig).name)
    state = load_state(folder / "last.pt", STATE_KEYS)
    config = check(ClassificationConfig, json.loads(state["config"]), str(folder / "last.pt"))
    if arguments.data:
        config = config.model_copy(update={"data": with_data_root(config.data, arguments.data)})
    images = read_class_splits(config.data)
    ClassMap.from_dict(state["classes"]).require_same(images[0].class_map, str(folder / "last.pt"), images[0].source)
    model = build_classifier(config, images[0])
    load_model_state(model, state["model"], folder / "last.pt")
    train(config, images, model, folder, state=state, device=arguments.device)


def train(
    config: ClassificationConfig,
    images: tuple[Images, Images],
    model: Classifier,
    folder: Path,
    *,
    state: dict | None,
    device: torch.device,
) -> None:
    """Train to the configured end, average the batch norm statistics where asked, score, and write the weights."""
    started = time.monotonic()
    training, held_out = images
    settings = config.train
    schedule = build_class_schedule(settings, len(training))
    model.to(device)
    if settings.compile is True or (settings.compile == "auto" and device.type == "cuda"):
        model.compile_training()
    optimizer = build_class_optimizer(settings, model)
    progress = Progress()
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
        progress = Progress(**state["progress"])
    write_environment(folder, device)
    log = RunLog(folder, console=sys.stdout, steps=schedule.steps, start_step=progress.step)
    log.line(f"{what_differs(config)}every setting, defaults included: {folder / 'config.yaml'}")
    log.line(
        f"train {training.source}: {len(training)} images of {len(training.class_map)} classes\nval   {held_out.source}: {len(held_out)}"
    )
    log.line(
        f"{folder}: steps {progress.step}..{schedule.steps}, lr {settings.effective_lr:g} at batch {settings.batch_size} "
        f"(lr {settings.lr:g} for {settings.reference_batch}), device {device}, {torch.get_num_threads()} threads"
    )

    damaged = folder / DAMAGED
    if isinstance(training, ImageArrays) and training.damaged:
        write_text(damaged, "".join(f"{name}\n" for name in training.damaged))
        log.line(f"{len(training.damaged)} damaged images left out, listed in {damaged}")
    batches = build_train_batches(config, training, steps=schedule.steps, start_step=progress.step, device=device)
    results = []

    def evaluate() -> dict[str, float]:
        results.append(score_classifier(config, model, held_out, device))
        log.line(results[-1].table())
        return results[-1].metrics

    def save_last(progress: Progress) -> None:
        tree = {
            "config": config.model_dump_json(),
            "classes": training.class_map.to_dict(),
            "progress": progress.to_dict(),
            "model": {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
            "optimizer": optimizer.state_dict(),
        }
        save_state(folder / "last.pt", tree)

    try:
        fit(
            model=model,
            optimizer=optimizer,
            batches=naming_damaged(batches, damaged, log),
            progress=progress,
            schedule=schedule,
            evaluate=evaluate,
            best_metric="top1",
            save_last=save_last,
            save_best=lambda progress: None,  # noqa: ARG005
            log=log,
            device=device,
            seed=config.seed,
            log_every=settings.log_every,
            eval_every=settings.eval_every,
            save_every=settings.save_every,
            clip_grad_norm=settings.clip_grad_norm,
            precision=settings.precision,
        )
        if settings.recompute_batches:
            average_statistics(config, model, training, schedule.steps, device)
            log.line(f"batch norm statistics averaged over {settings.recompute_batches} batches")
            log.evaluation(progress.step, evaluate())
    except Interrupted as stopped:
        log.line(f"stopped after step {stopped.step}; continue with: python tools/train_cls.py --resume {folder}")
        raise
    finally:
        log.close()
    save_classifier(folder / WEIGHTS, model, config, training.class_map, progress.step)
    write_text(folder / "metrics.json", json.dumps({"step": progress.step, **results[-1].to_dict()}, indent=2))
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    sys.stdout.write(f"done in {minutes} min {seconds} s; weights {folder / WEIGHTS}\n")


def naming_damaged(batches: Iterable[tuple[CropBatch, ClassTargets]], path: Path, log: RunLog) -> Iterator[tuple[CropBatch, ClassTargets]]:
    """Pass the batches on; write the names of images that could not be read into `path`, each once, and say so."""
    known = set(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else set()
    for images, targets in batches:
        new = [name for name in images.damaged if name not in known]
        if new:
            known.update(new)
            write_text(path, "".join(f"{name}\n" for name in sorted(known)))
            log.line(f"damaged, skipped: {', '.join(new)} ({len(known)} so far, listed in {path})")
        yield images, targets


def average_statistics(config: ClassificationConfig, model: Classifier, training: Images, step: int, device: torch.device) -> None:
    """Average the batch norm statistics over augmented batches that training would have seen next (paper, appendix A)."""
    end = step + config.train.recompute_batches
    batches = build_train_batches(config, training, steps=end, start_step=step, device=device)
    recompute_batch_norm(model.net, (model.normalizer(images.pixels.to(device)) for images, _ in itertools.islice(batches, end - step)))


if __name__ == "__main__":
    sys.exit(main())

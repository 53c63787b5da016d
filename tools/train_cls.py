"""Train a classifier: `python tools/train_cls.py --cfg configs/cifar10_resnet20.yaml --data DIR`;
alone, on the embedded shapes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from backbones import InputSpec, recompute_batch_norm
from detres.build_classifier import (
    Images,
    build_class_optimizer,
    build_class_schedule,
    build_classifier,
    build_train_batches,
    input_of,
    read_class_splits,
    save_classifier,
    score_classifier,
)
from detres.cls_config import ClassificationConfig
from detres.config import to_yaml
from detres.engine.checkpoint import load_model_state, write_text
from detres.engine.compilation import compile_failure
from detres.engine.log import RunLog, new_run_folder
from detres.models.classifier import Classifier
from detres.structures import ClassMap, ClassTargets, CropBatch, ImageArrays
from detres.tools.command_line import CONFIGS, config_from, run
from detres.tools.training import TrainingRun, add_training_flags, read_run, require_resumable

DEFAULT_CONFIG = CONFIGS / "cls_shapes_r18.yaml"
DAMAGED = "skipped.txt"
WEIGHTS = "weights.safetensors"
"""Of the last evaluation, not of the best: choosing by the test set would flatter the number."""


def main(argv: list[str] | None = None) -> int:
    """Parse, build, train; returns the exit status."""
    parser = argparse.ArgumentParser(description="train a classifier")
    add_training_flags(parser, DEFAULT_CONFIG)
    arguments = parser.parse_args(argv)
    if arguments.resume is None:
        return run(lambda: start(arguments))
    require_resumable(parser, arguments)
    return run(lambda: resume(arguments))


def start(arguments: argparse.Namespace) -> None:
    """Train from the first step in a new run folder."""
    config = config_from(arguments, ClassificationConfig, DEFAULT_CONFIG)
    torch.manual_seed(config.seed)
    images = read_class_splits(config.data)
    model = build_classifier(config, len(images[0].class_map))
    model.take_input(input_of(config, images[0], model.net.input_spec))
    compile_where_asked(config.train.compile, model, arguments.device)
    folder = new_run_folder(config.name, arguments.out)
    write_text(folder / "config.yaml", to_yaml(config))
    train(config, images, model, folder, state=None, device=arguments.device)


def resume(arguments: argparse.Namespace) -> None:
    """Continue an interrupted run with its own configuration."""
    folder, state, config = read_run(
        arguments, ClassificationConfig, DEFAULT_CONFIG, "input", "mean_image"
    )
    images = read_class_splits(config.data)
    ClassMap.from_dict(state["classes"]).require_same(
        images[0].class_map, str(folder / "last.pt"), images[0].source
    )
    spec = replace(InputSpec.from_json(state["input"]), mean_image=state["mean_image"])
    model = build_classifier(config, len(images[0].class_map), resumed=spec)
    load_model_state(model, state["model"], folder / "last.pt")
    compile_where_asked(config.train.compile, model, arguments.device)
    train(config, images, model, folder, state=state, device=arguments.device)


def compile_where_asked(
    asked: bool | Literal["auto"], model: Classifier, device: torch.device
) -> None:
    """Move the model to its device and compile its training steps if `asked`, "auto" being on a GPU
    where that works.

    Raises ValueError with the cause when True is asked and it does not work.
    """
    model.to(device)
    if asked is False or (asked == "auto" and device.type != "cuda"):
        return
    failure = compile_failure(device)
    if failure is None:
        model.compile_training()
    elif asked is True:
        raise ValueError(
            f"train.compile: torch.compile does not work here: {failure}; without it: --set "
            "train.compile=false"
        )
    else:
        sys.stdout.write(
            "note: training steps are not compiled, for torch.compile does not work here: "
            f"{failure}\n"
        )


def train(
    config: ClassificationConfig,
    images: tuple[Images, Images],
    model: Classifier,
    folder: Path,
    *,
    state: dict | None,
    device: torch.device,
) -> None:
    """Train a model on its device to the configured end, average the batch norm statistics where
    asked, score, and write the weights.
    """
    training, held_out = images
    settings = config.train
    schedule = build_class_schedule(settings, len(training))
    spec = model.net.input_spec
    results = []

    def evaluate() -> dict[str, float]:
        results.append(score_classifier(config, model, held_out, device))
        training_run.log.line(results[-1].table())
        if training_run.progress.step not in training_run.progress.scores:
            save_classifier(
                folder / WEIGHTS, model, config, training.class_map, training_run.progress.step
            )
        return results[-1].metrics

    def batches(start: int, end: int) -> Iterable[tuple[CropBatch, ClassTargets]]:
        found = build_train_batches(config, training, steps=end, start_step=start, device=device)
        return naming_damaged(found, folder / DAMAGED, training_run.log)

    with TrainingRun(
        folder,
        command="train_cls",
        config=config,
        class_map=training.class_map,
        model=model,
        optimizer=build_class_optimizer(settings, model),
        schedule=schedule,
        device=device,
        state=state,
        num_images=len(training),
        extra={"input": spec.to_json(), "mean_image": spec.mean_image},
    ) as training_run:
        progress = training_run.progress
        training_run.announce(
            f"train {training.source}: {len(training)} images of {len(training.class_map)} "
            "classes\n"
            f"val   {held_out.source}: {len(held_out)}",
            model.net.load_report,
        )
        if isinstance(training, ImageArrays) and training.damaged:
            write_text(folder / DAMAGED, "".join(f"{name}\n" for name in training.damaged))
            training_run.log.line(
                f"{len(training.damaged)} damaged images left out, listed in {folder / DAMAGED}"
            )
        training_run.fit(
            batches(progress.step, schedule.steps),
            evaluate=evaluate,
            best_metric="top1",
            save_best=lambda progress: None,  # noqa: ARG005
        )
        if settings.recompute_batches:
            more = batches(
                schedule.steps, schedule.steps + settings.recompute_batches
            )  # those that training would have seen next
            recompute_batch_norm(
                model.net, (model.normalizer(crops.pixels.to(device)) for crops, _ in more)
            )
            training_run.log.line(
                f"batch norm statistics averaged over {settings.recompute_batches} batches "
                "(paper, appendix A)"
            )
            training_run.log.averaged(progress.step, evaluate())
            save_classifier(folder / WEIGHTS, model, config, training.class_map, progress.step)
    write_text(
        folder / "metrics.json",
        json.dumps({"step": progress.step, **results[-1].to_dict()}, indent=2),
    )
    sys.stdout.write(f"done in {training_run.duration()}; weights {folder / WEIGHTS}\n")


def naming_damaged(
    batches: Iterable[tuple[CropBatch, ClassTargets]], path: Path, log: RunLog
) -> Iterator[tuple[CropBatch, ClassTargets]]:
    """Pass the batches on; write the names of images that could not be read into `path`, each once,
    and say so.
    """
    known = set(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else set()
    for images, targets in batches:
        new = [name for name in images.damaged if name not in known]
        if new:
            known.update(new)
            write_text(path, "".join(f"{name}\n" for name in sorted(known)))
            log.line(f"damaged, skipped: {', '.join(new)} ({len(known)} so far, listed in {path})")
        yield images, targets


if __name__ == "__main__":
    sys.exit(main())

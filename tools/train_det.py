"""Train a Faster R-CNN: `python tools/train_det.py --cfg configs/coco_r101.yaml --data DIR`; without arguments, the embedded shapes."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from detres.build import (
    build_detector,
    build_evaluation,
    build_optimizer,
    build_schedule,
    build_train_set,
    load_detector,
    read_split,
    save_detector,
    with_data_root,
)
from detres.config import Config, check, load_config, to_yaml, what_differs
from detres.data.loader import train_loader
from detres.draw import contact_sheet, draw_boxes
from detres.engine.checkpoint import load_model_state, load_state, replacing, save_state, write_text
from detres.engine.log import RunLog, new_run_folder, write_environment
from detres.engine.progress import Progress
from detres.engine.train import Interrupted, fit
from detres.evaluation.detection_files import to_coco_results
from detres.evaluation.diagnose import explain
from detres.image_io import read_image
from detres.structures import Annotations, ClassMap, Predictions
from detres.tools.command_line import add_config_flags, config_from, config_path, newest_run, run

STATE_KEYS = ("config", "classes", "progress", "model", "optimizer")
PICTURE_IMAGES = 12
PICTURE_SCORE = 0.5


def main(argv: list[str] | None = None) -> int:
    """Parse, build, train; returns the exit status."""
    parser = argparse.ArgumentParser(description="train a Faster R-CNN")
    add_config_flags(parser)
    parser.add_argument("--out", metavar="DIR", help="run folder (default: runs/NAME, else the next free runs/NAME-2, ...)")
    parser.add_argument("--resume", metavar="DIR", nargs="?", const="", help="continue a run (default: the newest of runs/NAME, -2, ...)")
    parser.add_argument("--init-from", metavar="FILE", help="start from a trained detector's weights (best.safetensors)")
    arguments = parser.parse_args(argv)
    if arguments.resume is not None:
        if arguments.set or arguments.out or arguments.init_from or arguments.seed is not None:
            parser.error("--resume continues with the run's own settings; --set, --seed, --out and --init-from start a new run")
        return run(lambda: resume(arguments))
    return run(lambda: start(arguments))


def start(arguments: argparse.Namespace) -> None:
    """Train from the first step in a new run folder."""
    config = config_from(arguments)
    torch.manual_seed(config.seed)
    data = read_data(config)
    detector = build_detector(config.model, len(data.train.class_map))
    if arguments.init_from:
        trained, _, class_map = load_detector(Path(arguments.init_from))
        class_map.require_same(data.train.class_map, arguments.init_from, data.train.source)
        load_model_state(detector, trained.state_dict(), Path(arguments.init_from))
    folder = new_run_folder(config.name, arguments.out)
    write_text(folder / "config.yaml", to_yaml(config))
    train(config, data, detector, folder, state=None, device=arguments.device)


def resume(arguments: argparse.Namespace) -> None:
    """Continue an interrupted run with its own configuration."""
    folder = Path(arguments.resume) if arguments.resume else newest_run(load_config(config_path(arguments.cfg)).name)
    state = load_state(folder / "last.pt", STATE_KEYS)
    config = check(Config, json.loads(state["config"]), str(folder / "last.pt"))
    if arguments.data:
        config = config.model_copy(update={"data": with_data_root(config.data, arguments.data)})
    data = read_data(config)
    ClassMap.from_dict(state["classes"]).require_same(data.train.class_map, str(folder / "last.pt"), data.train.source)
    detector = build_detector(config.model, len(data.train.class_map), pretrained=False)
    load_model_state(detector, state["model"], folder / "last.pt")
    train(config, data, detector, folder, state=state, device=arguments.device)


class Data:
    """The training set and the held-out annotations of one run."""

    def __init__(self, config: Config) -> None:
        self.train_set = build_train_set(config)
        self.train = self.train_set.annotations
        self.val = read_split(config.data, "val")
        self.train.class_map.require_same(self.val.class_map, self.train.source, self.val.source)
        if not (~(self.val.crowd | self.val.difficult)).any():
            raise ValueError(
                f"{self.val.source}: {len(self.val)} images but no object to score, so no weights could be chosen as the best. "
                "Check data.val, data.classes and the crowd or difficult flags"
            )


def read_data(config: Config) -> Data:
    """Read both splits; raises before anything is written when they cannot be used together."""
    return Data(config)


def train(config: Config, data: Data, detector: torch.nn.Module, folder: Path, *, state: dict | None, device: torch.device) -> None:
    """Train to the configured end, then print the table and draw a picture."""
    started = time.monotonic()
    settings = config.train
    schedule = build_schedule(settings, len(data.train))
    steps = schedule.steps
    detector.to(device)
    optimizer = build_optimizer(settings, detector)
    progress = Progress()
    if state is not None:
        optimizer.load_state_dict(state["optimizer"])
        progress = Progress(**state["progress"])
    write_environment(folder, device)
    log = RunLog(folder, console=sys.stdout, steps=steps, start_step=progress.step)
    log.line(f"{what_differs(config)}every setting, defaults included: {folder / 'config.yaml'}")
    log.line(f"train {data.train.describe()}\nval   {data.val.describe()}")
    log.line(
        f"{folder}: steps {progress.step}..{steps}, lr {settings.effective_lr:g} at batch {settings.batch_size} "
        f"(lr {settings.lr:g} for {settings.reference_batch}), device {device}, {torch.get_num_threads()} threads"
    )
    evaluation = build_evaluation(config, detector, data.val, device)
    last_result = []

    def evaluate() -> dict[str, float | None]:
        result, predictions = evaluation()
        last_result[:] = [result, predictions]
        log.line(result.table())
        for cause in explain(data.val, predictions, result.metrics[config.eval.best_metric]):
            log.line(f"note: {cause}")
        return result.metrics

    def save_best(progress: Progress) -> None:
        save_detector(folder / "best.safetensors", detector, config, data.train.class_map, progress.step)
        result, predictions = last_result
        write_text(folder / "predictions.json", json.dumps(to_coco_results(predictions)))
        write_text(folder / "metrics.json", json.dumps({"step": progress.step, **result.to_dict()}, indent=2))
        draw_picture(folder / "val.jpg", data.val, predictions)

    def save_last(progress: Progress) -> None:
        tree = {
            "config": config.model_dump_json(),
            "classes": data.train.class_map.to_dict(),
            "progress": progress.to_dict(),
            "model": {name: tensor.contiguous() for name, tensor in detector.state_dict().items()},
            "optimizer": optimizer.state_dict(),
        }
        save_state(folder / "last.pt", tree)

    loader = train_loader(
        data.train_set,
        batch_size=settings.batch_size,
        steps=steps,
        seed=config.seed,
        start_step=progress.step,
        num_workers=config.data.workers,
    )
    try:
        fit(
            model=detector,
            optimizer=optimizer,
            batches=loader,
            progress=progress,
            schedule=schedule,
            evaluate=evaluate,
            best_metric=config.eval.best_metric,
            save_last=save_last,
            save_best=save_best,
            log=log,
            device=device,
            seed=config.seed,
            log_every=settings.log_every,
            eval_every=settings.eval_every,
            save_every=settings.save_every,
            clip_grad_norm=settings.clip_grad_norm,
            precision=settings.precision,
        )
    except Interrupted as stopped:
        log.line(f"stopped after step {stopped.step}; continue with: python tools/train_det.py --resume {folder}")
        raise
    finally:
        log.close()
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    sys.stdout.write(f"done in {minutes} min {seconds} s; weights {folder / 'best.safetensors'}, picture {folder / 'val.jpg'}\n")


def draw_picture(path: Path, truth: Annotations, predictions: Predictions) -> None:
    """Draw what was found in the first held-out images."""
    images = []
    for index in range(min(PICTURE_IMAGES, len(truth))):
        height, width = truth.image_sizes[index].tolist()
        image = read_image(str(truth.image_files[index]), stated_size=(height, width))
        rows = np.flatnonzero((predictions.image_ids == truth.image_ids[index]) & (predictions.scores >= PICTURE_SCORE))
        rows = rows[np.argsort(-predictions.scores[rows])]
        labels = predictions.labels[rows].tolist()
        captions = [f"{truth.class_map.name_of(label)} {score:.2f}" for label, score in zip(labels, predictions.scores[rows], strict=True)]
        images.append(draw_boxes(image, predictions.boxes[rows], labels, captions))
    sheet = contact_sheet(images, columns=4, cell=384)
    with replacing(path) as temporary:
        temporary.write_bytes(cv2.imencode(".jpg", sheet[:, :, ::-1])[1].tobytes())


if __name__ == "__main__":
    sys.exit(main())

"""Train a Faster R-CNN: `python tools/train_det.py --cfg configs/coco_r101.yaml --data DIR`;
without arguments, the embedded shapes.
"""

from __future__ import annotations

import argparse
import json
import sys
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
)
from detres.config import Config, to_yaml
from detres.data.loader import train_loader
from detres.draw import contact_sheet, draw_boxes
from detres.engine.checkpoint import load_model_state, replacing, write_text
from detres.engine.log import new_run_folder
from detres.engine.progress import Progress
from detres.evaluation.detection_files import to_coco_results
from detres.evaluation.diagnose import explain
from detres.image_io import read_image
from detres.structures import Annotations, ClassMap, Predictions
from detres.tools.command_line import DEFAULT_CONFIG, config_from, run
from detres.tools.training import TrainingRun, add_training_flags, read_run, require_resumable

PICTURE_IMAGES = 12
PICTURE_SCORE = 0.5


def main(argv: list[str] | None = None) -> int:
    """Parse, build, train; returns the exit status."""
    parser = argparse.ArgumentParser(description="train a Faster R-CNN")
    add_training_flags(parser, DEFAULT_CONFIG)
    parser.add_argument(
        "--init-from",
        metavar="FILE",
        help="start from a trained detector's weights (best.safetensors)",
    )
    arguments = parser.parse_args(argv)
    if arguments.resume is None:
        return run(lambda: start(arguments))
    require_resumable(parser, arguments, "--init-from")
    return run(lambda: resume(arguments))


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
    folder, state, config = read_run(arguments, Config, DEFAULT_CONFIG)
    data = read_data(config)
    ClassMap.from_dict(state["classes"]).require_same(
        data.train.class_map, str(folder / "last.pt"), data.train.source
    )
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
                f"{self.val.source}: {len(self.val)} images but no object to score, so no weights "
                "could be chosen as the best. "
                "Check data.val, data.classes and the crowd or difficult flags"
            )


def read_data(config: Config) -> Data:
    """Read both splits; raises before anything is written when they cannot be used together."""
    return Data(config)


def train(
    config: Config,
    data: Data,
    detector: torch.nn.Module,
    folder: Path,
    *,
    state: dict | None,
    device: torch.device,
) -> None:
    """Train to the configured end, then print the table and draw a picture."""
    settings = config.train
    schedule = build_schedule(settings, len(data.train))
    detector.to(device)
    evaluation = build_evaluation(config, detector, data.val, device)
    last_result = []

    def evaluate() -> dict[str, float | None]:
        result, predictions = evaluation()
        last_result[:] = [result, predictions]
        training_run.log.line(result.table())
        for cause in explain(data.val, predictions, result.metrics[config.eval.best_metric]):
            training_run.log.line(f"note: {cause}")
        return result.metrics

    def save_best(progress: Progress) -> None:
        save_detector(
            folder / "best.safetensors", detector, config, data.train.class_map, progress.step
        )
        result, predictions = last_result
        write_text(folder / "predictions.json", json.dumps(to_coco_results(predictions)))
        write_text(
            folder / "metrics.json",
            json.dumps({"step": progress.step, **result.to_dict()}, indent=2),
        )
        draw_picture(folder / "val.jpg", data.val, predictions)

    with TrainingRun(
        folder,
        command="train_det",
        config=config,
        class_map=data.train.class_map,
        model=detector,
        optimizer=build_optimizer(settings, detector),
        schedule=schedule,
        device=device,
        state=state,
        num_images=len(data.train),
    ) as training_run:
        training_run.announce(
            f"train {data.train.describe()}\nval   {data.val.describe()}",
            detector.backbone.load_report,
        )
        batches = train_loader(
            data.train_set,
            batch_size=settings.batch_size,
            steps=schedule.steps,
            seed=config.seed,
            start_step=training_run.progress.step,
            num_workers=config.data.workers,
        )
        training_run.fit(
            batches, evaluate=evaluate, best_metric=config.eval.best_metric, save_best=save_best
        )
    sys.stdout.write(
        f"done in {training_run.duration()}; weights {folder / 'best.safetensors'}, picture "
        f"{folder / 'val.jpg'}\n"
    )


def draw_picture(path: Path, truth: Annotations, predictions: Predictions) -> None:
    """Draw what was found in the first held-out images."""
    images = []
    for index in range(min(PICTURE_IMAGES, len(truth))):
        height, width = truth.image_sizes[index].tolist()
        image = read_image(str(truth.image_files[index]), stated_size=(height, width))
        rows = np.flatnonzero(
            (predictions.image_ids == truth.image_ids[index])
            & (predictions.scores >= PICTURE_SCORE)
        )
        rows = rows[np.argsort(-predictions.scores[rows])]
        labels = predictions.labels[rows].tolist()
        captions = [
            f"{truth.class_map.name_of(label)} {score:.2f}"
            for label, score in zip(labels, predictions.scores[rows], strict=True)
        ]
        images.append(draw_boxes(image, predictions.boxes[rows], labels, captions))
    sheet = contact_sheet(images, columns=4, cell=384)
    with replacing(path) as temporary:
        temporary.write_bytes(cv2.imencode(".jpg", sheet[:, :, ::-1])[1].tobytes())


if __name__ == "__main__":
    sys.exit(main())

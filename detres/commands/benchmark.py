"""Time detectors, their input and evaluation, classifiers and commands against those of other
libraries, a detector's stages, what padding costs, and what a run writes: `benchmark WHAT`.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import torch

from detres.benchmarks.annotations import benchmark_annotations
from detres.benchmarks.backbone import benchmark_backbone
from detres.benchmarks.cifar import benchmark_cifar
from detres.benchmarks.crops import benchmark_crops
from detres.benchmarks.detector import benchmark_padding
from detres.benchmarks.evaluation import benchmark_evaluation
from detres.benchmarks.inference import benchmark_inference, benchmark_training
from detres.benchmarks.loading import benchmark_loading
from detres.benchmarks.machine import machine
from detres.benchmarks.recorder import benchmark_recorder
from detres.benchmarks.stages import benchmark_stages
from detres.benchmarks.start import benchmark_start
from detres.benchmarks.timing import Timing
from detres.cli.flags import DETECTION_CONFIG, say
from detres.config import load_config
from detres.detection.config import DetectionConfig
from detres.files import write_text


def benchmark(arguments: argparse.Namespace) -> None:
    """Print one row a job: seconds of ours and of others, and how many times as fast it is; with
    --json write them too.
    """
    warnings.simplefilter("ignore")  # of the libraries, between the rows
    torch.manual_seed(0)
    timing = Timing(arguments.device, arguments.repeats)
    facts = f"torch {torch.__version__}, {machine(timing.device)}; medians of {timing.repeats}"
    say(f"{facts}, in turns")
    run(arguments, timing)
    if arguments.json:
        content = {"machine": facts, "rows": timing.rows}
        write_text(Path(arguments.json), json.dumps(content, indent=1) + "\n")


def run(arguments: argparse.Namespace, timing: Timing) -> None:
    """Do what was asked for."""
    side, backbone = arguments.short_side, arguments.backbone
    if arguments.what == "infer":
        benchmark_inference(timing, arguments.network, side, arguments.rois)
    elif arguments.what == "stages":
        benchmark_stages(timing, arguments.network, side, arguments.rois)
    elif arguments.what == "train":
        benchmark_training(timing, arguments.network, side)
    elif arguments.what == "data":
        benchmark_loading(timing, side)
        benchmark_crops(timing, Path(arguments.images) if arguments.images else None)
    elif arguments.what == "eval":
        benchmark_evaluation(timing)
    elif arguments.what == "cls":
        benchmark_backbone(timing, backbone, arguments.batch)
        benchmark_cifar(timing)
    elif arguments.what == "start":
        benchmark_start(timing)
    elif arguments.what == "annotations":
        benchmark_annotations(timing)
    elif arguments.what == "padding":
        benchmark_padding(timing, backbone, side, arguments.rois or 300)
    else:
        benchmark_recorder(timing, load_config(DETECTION_CONFIG, DetectionConfig))

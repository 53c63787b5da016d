"""Time a detector, its input and evaluation, a backbone, or the input and training of a classifier
against torchvision's and pycocotools, what padding costs, and what a run writes: `benchmark WHAT`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from detres.benchmarks.annotations import benchmark_annotations
from detres.benchmarks.backbone import benchmark_backbone
from detres.benchmarks.cifar import benchmark_cifar
from detres.benchmarks.crops import benchmark_crops
from detres.benchmarks.detector import benchmark_detector, benchmark_padding
from detres.benchmarks.evaluation import benchmark_evaluation
from detres.benchmarks.loading import benchmark_loading
from detres.benchmarks.pyramid import benchmark_pyramid
from detres.benchmarks.recorder import benchmark_recorder
from detres.benchmarks.timing import Timing
from detres.cli.flags import DETECTION_CONFIG, say
from detres.config import load_config
from detres.detection.config import DetectionConfig


def benchmark(arguments: argparse.Namespace) -> None:
    """Print one row a job: seconds of both, and how many times as fast the first is."""
    torch.manual_seed(0)
    timing = Timing(arguments.device, arguments.repeats)
    say(
        f"torch {torch.__version__}, {timing.device}, {torch.get_num_threads()} threads; medians "
        f"of {timing.repeats}, both in turns"
    )
    if arguments.what == "backbone":
        benchmark_backbone(timing, arguments.backbone, arguments.batch)
    elif arguments.what == "cifar":
        benchmark_cifar(timing)
    elif arguments.what == "crops":
        benchmark_crops(timing, Path(arguments.images) if arguments.images else None)
    elif arguments.what == "data":
        benchmark_loading(timing, arguments.short_side)
    elif arguments.what == "annotations":
        benchmark_annotations(timing)
    elif arguments.what == "eval":
        benchmark_evaluation(timing)
    elif arguments.what == "pyramid":
        benchmark_pyramid(timing, arguments.short_side)
    elif arguments.what == "recorder":
        benchmark_recorder(timing, load_config(DETECTION_CONFIG, DetectionConfig))
    elif arguments.what == "padding":
        benchmark_padding(timing, arguments.backbone, arguments.short_side, arguments.rois)
    else:
        benchmark_detector(timing, arguments.backbone, arguments.short_side, arguments.rois)

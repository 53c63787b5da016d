"""Train our detector and one made of torchvision's parts by the same loop:
`compare-torchvision --cfg configs/bccd_r18.yaml --data DIR`.
"""

from __future__ import annotations

import argparse

from detres.benchmarks.comparison import compare
from detres.cli.flags import DETECTION_CONFIG
from detres.commands.configured import config_from
from detres.detection.config import DetectionConfig


def train(arguments: argparse.Namespace) -> None:
    """Train both, and compare them."""
    config = config_from(arguments, DetectionConfig, DETECTION_CONFIG)
    compare(config, arguments.out, device=arguments.device)

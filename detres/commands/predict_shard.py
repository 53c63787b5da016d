"""Detect in a part of many images: `predict --weights FILE IMAGE_OR_FOLDER... --shard I/N`."""

from __future__ import annotations

import argparse
from pathlib import Path

from detres.classification.weights_file import is_classifier
from detres.cli.flags import say
from detres.commands.configured import require_free, weights_of
from detres.detection import sharding
from detres.detection.choices import TILE_OVERLAP
from detres.detection.predictor import Predictor
from detres.storage import Folder
from detres.user_files import is_url


def predict_shard(arguments: argparse.Namespace) -> None:
    """Write the shard of --shard into --out, unless it is there.

    Raises ValueError for a classifier, and what find_shard_images and sharding.predict_shard raise.
    """
    if not is_url(arguments.out):
        require_free(Path(arguments.out), [])
    out = Folder(arguments.out)
    images = sharding.find_shard_images(arguments.images)
    weights = weights_of(arguments.weights, offline=arguments.offline)
    if is_classifier(Path(weights)):
        raise ValueError(f"--shard goes with a detector's boxes; {weights} is a classifier")
    predictor = Predictor(
        weights,
        score=arguments.score or 0.0,
        device=str(arguments.device),
        tile=arguments.tile,
        overlap=TILE_OVERLAP if arguments.overlap is None else arguments.overlap,
        whole=not arguments.tiles_only,
        precision=arguments.precision,
    )
    sharding.predict_shard(predictor, images, sharding.Shard(*arguments.shard), out, say)

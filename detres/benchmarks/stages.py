"""Where the time of a detector goes, stage by stage."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import torch

from detres.benchmarks.inference import best_rates, flop_of
from detres.benchmarks.peers import peers_of
from detres.benchmarks.timing import Timing
from detres.detection.inference.fast import fast_copy
from detres.detection.models.faster_rcnn import FasterRCNN
from detres.detection.structures import ImageBatch


def benchmark_stages(
    timing: Timing, networks: list[str], short_side: int, rois: int | None
) -> None:
    """Time each stage of `networks` on one image of `short_side` px with `rois` proposals,
    rewritten for inference in float32 and bf16; what follows the others is given what they made.
    """
    rates = best_rates(timing)
    for network in networks:
        peer = peers_of(network, short_side, rois, timing.device, batch=1)[-1]
        plain = peer.ours.eval()
        ways = {way: _stages(fast_copy(plain, way), peer.images) for way in rates}
        with torch.inference_mode():
            operations = {name: flop_of(call) for name, call in _stages(plain, peer.images).items()}
        for name, flop in operations.items():
            said, row = f"{peer.job}: {name}", {"job": f"stage, {peer.job}", "stage": name}
            line = f"{said:<72}"
            for way, rate in rates.items():
                seconds = _median(ways[way][name], timing)
                line += f"  {way} {1e3 * seconds:7.1f} ms"
                row[f"{way}_s"] = seconds
                if flop > _COUNTED:
                    line += f" ({flop / seconds / 1e9:.0f} GFLOP/s)"
                    row |= {f"{way}_share_of_best": flop / seconds / rate}
            timing.add({**row, "gflop": flop / 1e9}, f"{line}  {flop / 1e9:.0f} GFLOP")


_COUNTED = 1e9
"""Floating-point operations of a stage whose rate says something."""


def _stages(model: FasterRCNN, images: ImageBatch) -> dict[str, Callable[[], object]]:
    """The stages by name, in their order; each gives what the next ones are given here."""
    with torch.inference_mode():
        features = model.features(images)
        maps = model.rpn.on_maps(features)
        counts = model.rpn.settings.test_counts
        found = [boxes for boxes, _ in model.rpn.propose(maps, images, counts)]
        head = model.roi_head
        regions = head.region_features(features, found)
        scored = head.predictor(regions)
    return {
        "backbone, with its pyramid": functools.partial(model.features, images),
        "RPN": functools.partial(model.rpn.on_maps, features),
        "boxes to proposals": functools.partial(model.rpn.propose, maps, images, counts),
        "regions pooled, and the layers behind": functools.partial(
            head.region_features, features, found
        ),
        "scores and deltas": functools.partial(head.predictor, regions),
        "boxes to detections": functools.partial(head.postprocess, *scored, found, images.sizes),
    }


@torch.inference_mode()
def _median(call: Callable[[], object], timing: Timing) -> float:
    """Seconds of `call`, after one that is not counted."""
    times = []
    for _ in range(timing.repeats + 1):
        started = time.perf_counter()
        call()
        if timing.device.type == "cuda":
            torch.cuda.synchronize(timing.device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])

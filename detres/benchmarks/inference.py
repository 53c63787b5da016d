"""Detectors on one image and in a training step, beside those of other libraries."""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision import ops

from detres.benchmarks.detector import pool_ours, pool_theirs, random_rois
from detres.benchmarks.machine import best_rate
from detres.benchmarks.peers import Peer, peers_of
from detres.benchmarks.timing import Timing
from detres.boxes import nms
from detres.detection.inference.fast import fast_copy

TRAIN_BATCH = 2
"""Images of a training step."""


def benchmark_inference(
    timing: Timing, networks: list[str], short_side: int, rois: int | None
) -> None:
    """Time each of `networks` on one image of `short_side` px with `rois` proposals, rewritten for
    inference in float32 and bf16, against every library that has it, which is tried under bf16
    autocast too; then RoIAlign and NMS alone.
    """
    rates = best_rates(timing)
    for network in networks:
        for peer in peers_of(network, short_side, rois, timing.device, batch=1):
            ours, theirs = peer.ours.eval(), peer.theirs.eval()
            ways: dict[str, Callable[[], object]] = {
                way: functools.partial(fast_copy(ours, way), peer.images) for way in rates
            }
            ways[f"{peer.name} bf16"] = functools.partial(_in_bf16, peer, peer.infer)
            with torch.inference_mode():
                flop = flop_of(lambda ours=ours, peer=peer: ours(peer.images))
                job = f"inference, {peer.job}"
                timing.contest(job, {**ways, peer.name: peer.infer}, flop=flop, rates=rates)
            theirs.train()
    _parts(timing, rois or 300)


def benchmark_training(timing: Timing, networks: list[str], short_side: int) -> None:
    """Time forward and backward of each of `networks` on TRAIN_BATCH images of `short_side` px with
    TRAIN_ROIS regions each, conv1 and conv2_x frozen, in float32 and under bf16 autocast, against
    every library that has it; and the most memory that a step takes, in processes of their own.
    """
    rates = best_rates(timing)
    for network in networks:
        made = peers_of(network, short_side, None, timing.device, TRAIN_BATCH)
        for number, peer in enumerate(made):
            peer.ours.train()
            peer.theirs.train()
            ways = {
                "fp32": functools.partial(_step, peer, bf16=False),
                "bf16": functools.partial(_step, peer, bf16=True),
                f"{peer.name} bf16": functools.partial(_in_bf16, peer, _their_step, peer),
                peer.name: functools.partial(_their_step, peer),
            }
            flop = flop_of(ways["fp32"])
            timing.contest(f"training step, {peer.job}", ways, flop=flop, rates=rates)
            _memory(timing, network, number, short_side, peer)


def best_rates(timing: Timing) -> dict[str, float]:
    """Return, and print, the operations a second that the machine does at best, by precision."""
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    rates = {name: best_rate(dtype, timing.device) for name, dtype in dtypes.items()}
    said = ", ".join(f"{name} {rate / 1e9:.0f} GFLOP/s" for name, rate in rates.items())
    row = {"job": "best convolution", **{f"{name}_flop_s": rate for name, rate in rates.items()}}
    timing.add(row, f"the best convolution that was found: {said}")
    return rates


def flop_of(call: Callable[[], object]) -> float:
    """Return the floating-point operations of `call`, of convolutions and matrix products."""
    with FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def _step(peer: Peer, *, bf16: bool) -> None:
    with torch.autocast(peer.images.pixels.device.type, torch.bfloat16, enabled=bf16):
        total = peer.ours(peer.images, peer.targets).total()
    total.backward()
    peer.ours.zero_grad(set_to_none=True)


def _in_bf16(peer: Peer, call: Callable[..., object], *given: object) -> None:
    """Their way to bf16, which leaves each layer as it is."""
    with torch.autocast(peer.images.pixels.device.type, torch.bfloat16):
        call(*given)


def _their_step(peer: Peer) -> None:
    peer.losses().backward()
    peer.theirs.zero_grad(set_to_none=True)


def _memory(timing: Timing, network: str, number: int, short_side: int, peer: Peer) -> None:
    """Print what a step adds to the memory of a process, ours beside theirs."""
    if timing.device.type == "cuda" or not sys.platform.startswith("linux"):
        return
    mine, other = (_added_bytes(network, number, short_side, which) for which in ("ours", "theirs"))
    job = f"memory of a training step, {peer.job}"
    timing.add(
        {"job": job, "bytes": mine, "peer": peer.name, "peer_bytes": other},
        f"{job:<58}  fp32 {mine / 2**30:.2f} GiB  {peer.name} {other / 2**30:.2f} GiB  "
        f"{mine / other:.2f} of it",
    )


def _added_bytes(network: str, number: int, short_side: int, which: str) -> int:
    call = f"added_by_a_step({network!r}, {number}, {short_side}, {which!r})"
    program = f"from detres.benchmarks.inference import added_by_a_step\nprint({call})"
    done = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    return int(done.stdout.split()[-1])


def added_by_a_step(network: str, number: int, short_side: int, which: str) -> int:
    """Return the bytes that two training steps add at most to what this process holds before them,
    of "ours" or "theirs" of the peer of this number. Linux alone.
    """
    peer = peers_of(network, short_side, None, torch.device("cpu"), TRAIN_BATCH)[number]
    peer.ours.train()
    peer.theirs.train()
    before = _resident("VmRSS")
    for _ in range(2):
        if which == "ours":
            _step(peer, bf16=False)
        else:
            _their_step(peer)
    return _resident("VmHWM") - before


def _resident(key: str) -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        (line,) = [line for line in file if line.startswith(f"{key}:")]
    return int(line.split()[1]) * 1024


def _parts(timing: Timing, rois: int) -> None:
    """Time RoIAlign with its gradient, and the proposal layer's suppression."""
    feature = torch.randn((1, 1024, 38, 57), device=timing.device)
    feature = feature.to(memory_format=torch.channels_last)
    regions = random_rois(rois, timing.device)
    timing.row(
        "RoIAlign 14x14, forward + backward",
        lambda: pool_ours(feature, regions, 14, 1 / 16),
        lambda: pool_theirs(feature, regions, 14, 1 / 16),
    )
    boxes = random_rois(12000, timing.device)[:, 1:]
    scores = torch.rand(len(boxes), device=timing.device)
    timing.row(
        "proposals, NMS of 12000 boxes to 2000",
        lambda: nms(boxes, scores, 0.7, 2000),
        lambda: ops.nms(boxes, scores, 0.7)[:2000],
    )

"""How long commands take to answer, and to begin."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

from detres.benchmarks.timing import Timing
from detres.console import write_line

_MAIN = "import sys; from detres.cli.{command} import main; sys.exit(main(sys.argv[1:]))"

_ANSWERS = {
    "train_det --help": ("train_det", ["--help"]),
    "train_det, a wrong flag": ("train_det", ["--zzz"]),
    "eval --help": ("eval", ["--help"]),
    "predict --help": ("predict", ["--help"]),
}


def benchmark_start(timing: Timing) -> None:
    """Print the seconds until commands answer that read arguments alone, and until torch and
    torchvision are imported, beside a bare Python.
    """
    bare = _seconds([sys.executable, "-c", "pass"], timing.repeats)
    jobs = {
        name: [sys.executable, "-c", _MAIN.format(command=command), *flags]
        for name, (command, flags) in _ANSWERS.items()
    }
    jobs["import torch, torchvision"] = [sys.executable, "-c", "import torch, torchvision"]
    jobs["import detres; detres.Detector"] = [
        sys.executable,
        "-c",
        "import detres; detres.Detector",
    ]
    for name, command in jobs.items():
        seconds = _seconds(command, timing.repeats)
        write_line(f"{name:<58}  {seconds:.2f} s, of it Python {bare:.2f} s")
        timing.rows.append({"job": name, "s": seconds, "python_s": bare})


def _seconds(command: list[str], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        subprocess.run(command, check=False, capture_output=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])

"""How long commands take to answer, and to begin."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from detres.benchmarks.timing import Timing
from detres.detection.data.shapes import ensure_shapes

_MAIN = "import sys; from detres.cli.{command} import main; sys.exit(main(sys.argv[1:]))"

_ANSWERS = {
    "train_det --help": ("train_det", ["--help"]),
    "train_det, a wrong flag": ("train_det", ["--zzz"]),
    "eval --help": ("eval", ["--help"]),
    "predict --help": ("predict", ["--help"]),
}


def benchmark_start(timing: Timing) -> None:
    """Print the seconds until commands answer that read arguments alone, until torch and
    torchvision are imported, and until a training of the embedded shapes has done its first step,
    beside a bare Python.
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
        _add(timing, name, _seconds(command, timing.repeats), bare)
    ensure_shapes()
    firsts = [_until_the_first_step() for _ in range(timing.repeats + 1)]
    _add(timing, "train_det, to the line of step 1", statistics.median(firsts[1:]), bare)


def _add(timing: Timing, job: str, seconds: float, bare: float) -> None:
    line = f"{job:<58}  {seconds:.2f} s, of it Python {bare:.2f} s"
    timing.add({"job": job, "s": seconds, "python_s": bare}, line)


def _until_the_first_step() -> float:
    """Seconds that a training takes to say that its first step is done; it is ended then."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--out", str(Path(folder) / "run"), "--device", "cpu"]
        command = [sys.executable, "-u", "-c", _MAIN.format(command="train_det"), *flags]
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
            next(line for line in run.stdout if line.startswith(b"step 1/"))
            took = time.perf_counter() - began
            run.terminate()
            run.communicate()
    return took


def _seconds(command: list[str], repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        subprocess.run(command, check=False, capture_output=True)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])

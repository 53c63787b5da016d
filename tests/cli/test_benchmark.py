from __future__ import annotations

import importlib.util
import re
import sys

import pytest

from detres.benchmarks.process_cost import cost_of
from detres.cli import benchmark


@pytest.mark.slow
@pytest.mark.parametrize("side", ["--short-side", "--shorter"])
def test_benchmark_prints_a_row_a_job(side, capsys):
    assert (
        benchmark.main(["--backbone", "resnet18", side, "128", "--rois", "20", "--repeats", "1"])
        == 0
    )
    rows = [line for line in capsys.readouterr().out.splitlines() if "times as fast" in line]
    assert [row.split(",")[0].split()[0] for row in rows] == [
        "inference",
        "forward",
        "RoIAlign",
        "NMS",
    ]


@pytest.mark.slow
def test_benchmark_of_the_padding(capsys):
    small = ["padding", "--backbone", "resnet18", "--short-side", "64", "--rois", "5"]
    assert benchmark.main([*small, "--repeats", "1"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "not masked" in line]
    assert [row.split(",")[0] for row in rows] == ["inference", "training"]


@pytest.mark.slow
def test_benchmark_of_a_pyramid(capsys):
    assert benchmark.main(["pyramid", "--short-side", "96", "--repeats", "1"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "times as fast" in line]
    assert [row.split(",")[0] for row in rows] == ["inference", "forward + backward"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "jobs"), [("cifar", ["30 training", "the same,"]), ("crops", ["200 JPEG"])]
)
def test_benchmark_of_the_classifier_s_input(what, jobs, capsys):
    assert benchmark.main([what, "--repeats", "1"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "times as fast" in line]
    assert [" ".join(row.split()[:2]) for row in rows] == jobs


@pytest.mark.slow
def test_benchmark_of_what_a_run_keeps(capsys):
    assert benchmark.main(["recorder", "--repeats", "1", "--device", "cpu"]) == 0
    *_, row, parts = capsys.readouterr().out.splitlines()
    assert row.startswith("a training step of shapes_r18")
    assert "times as fast" in row
    share = float(re.search(r"of a step: flight recorder .* together (\S+)%$", parts)[1])
    assert share > 0


@pytest.mark.slow
def test_benchmark_of_reading_annotations(capsys):
    assert benchmark.main(["annotations", "--repeats", "1"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "times as fast" in line]
    assert "860,000 boxes" in row


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells it")
def test_the_memory_of_a_job_is_its_own():
    held = bytearray(b"a") * (200 << 20)  # of this process, which starts the job
    _, small = cost_of("", "1")
    _, large = cost_of("", "bytearray(b'a') * (100 << 20)")
    assert len(held) > 2 * small
    assert large - small == pytest.approx(100 << 20, rel=0.2)


@pytest.mark.slow
def test_benchmark_of_the_evaluation(capsys):
    assert benchmark.main(["eval", "--repeats", "1"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "times as fast" in line]
    assert [row.split("numbers")[1].split(" s,")[0].split()[1] for row in rows] == [
        "pycocotools",
        *(["hotcoco"] if importlib.util.find_spec("hotcoco") else []),
    ]


@pytest.mark.slow
def test_benchmark_of_a_detector_s_input(capsys):
    assert benchmark.main(["data", "--repeats", "1"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "times as fast" in line]
    assert [row[:58].rstrip() for row in rows] == [
        "100 JPEG of 500x375 px to 600",
        "100 JPEG of 500x375 px to 600, cached",
        "20 JPEG of 1600x1200 px to 600",
        "20 JPEG of 1600x1200 px to 600, reduced decoding",
        "20 JPEG of 1600x1200 px to 600, cached",
    ]

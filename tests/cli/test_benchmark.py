from __future__ import annotations

import importlib.util
import json
import re
import sys

import pytest

from detres.benchmarks.process_cost import cost_of
from detres.cli import benchmark


@pytest.mark.parametrize("flag", ["--short-side", "--rois", "--batch", "--repeats"])
@pytest.mark.parametrize("value", ["0", "-1", "x"])
def test_a_number_below_one_is_refused_before_anything_is_timed(flag, value, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["infer", flag, value])
    written = capsys.readouterr()
    assert f"{value!r}, expected a whole number of 1 or more" in written.err
    assert not written.out


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["eval", "--network", "vgg16"], "--network goes with infer, train, stages, not with eval"),
        (["train", "--rois", "20"], "--rois goes with infer, stages, padding, not with train"),
        (["cls", "--short-side", "99"], "not with cls"),
        (["--images", "x"], "--images goes with data, not with infer"),
    ],
)
def test_a_flag_that_a_job_does_not_take_is_refused(given, said, capsys):
    with pytest.raises(SystemExit) as ended:
        benchmark.main(given)
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith(f"{said}\n")


@pytest.mark.slow
def test_benchmark_of_the_stages_and_its_rows_as_json(capsys, tmp_path):
    small = ["--network", "r18-c4", "r50-fpn", "--short-side", "128", "--repeats", "1"]
    file = tmp_path / "rows.json"
    assert benchmark.main(["stages", *small, "--rois", "20", "--json", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    best, *rows = json.loads(file.read_text())["rows"]
    assert best["bf16_flop_s"] > 0
    stages = [row["stage"] for row in rows]
    assert stages[: len(stages) // 2] == stages[len(stages) // 2 :]
    assert len(lines) == 2 + len(rows)
    for row in rows:
        assert row["fp32_s"] > 0
        assert row["bf16_s"] > 0
    assert "20 RoIs" in rows[-1]["job"]


@pytest.mark.slow
@pytest.mark.parametrize("side", ["--short-side", "--shorter"])
def test_benchmark_prints_a_row_a_job(side, capsys):
    small = ["--network", "r18-c4", side, "128", "--rois", "20", "--repeats", "1"]
    assert benchmark.main(["infer", *small]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "times as fast" in line]
    assert [row.split()[0] for row in rows] == [
        "inference,",  # float32, bf16, and theirs in bf16
        "inference,",
        "inference,",
        "RoIAlign",
        "proposals,",
    ]


@pytest.mark.slow
def test_benchmark_of_the_padding(capsys):
    small = ["padding", "--backbone", "resnet18", "--short-side", "64", "--rois", "5"]
    assert benchmark.main([*small, "--repeats", "1"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "not masked" in line]
    assert [row.split(",")[0] for row in rows] == ["inference", "training"]


@pytest.mark.slow
def test_benchmark_of_classifiers_and_its_rows_as_json(capsys, tmp_path):
    file = tmp_path / "rows.json"
    small = ["--backbone", "resnet18", "--batch", "2", "--repeats", "1", "--json", str(file)]
    assert benchmark.main(["cls", *small]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == len(capsys.readouterr().out.splitlines()) - 1
    (folded,) = [row for row in rows if row["job"] == "folded logits"]
    assert 0 < folded["largest_difference"] < 1e-3


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
        "200 JPEG files to 224 px crops, one core",
    ]

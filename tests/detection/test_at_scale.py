"""The recipes of docs/at_scale.md, as they stand there, on 500 pictures cut out of photographs."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import detres
from detres.class_map import ClassMap
from detres.config import check
from detres.detection.build import build_detector
from detres.detection.config import DetectionConfig
from detres.detection.data.shapes import SHAPES_CLASSES
from detres.detection.weights_file import save_detector
from detres.images.decode import read_image
from tests.detection.configs import TINY

ROOT = Path(__file__).resolve().parents[2]
RECIPES = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "at_scale.md").read_text("utf-8"), re.DOTALL
)
NUM, DAMAGED = 500, 137
"""Pictures, and the one of them that is cut off."""


def recipe(word: str) -> str:
    (code,) = [block for block in RECIPES if word in block]
    return code


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Those of runs/shapes_r18 in the working directory: of a small detector that finds something
    anywhere; one thread, as the workers have.
    """
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    settings = {
        "name": "shapes_r18",
        "data": {"format": "shapes"},
        "model": TINY,
        "train": {"steps": 1},
    }
    config = check(DetectionConfig, settings, "test")
    model = build_detector(config.model, len(SHAPES_CLASSES))
    nn.init.normal_(model.roi_head.predictor.cls_score.weight, std=0.03)
    path = Path("runs/shapes_r18/best.safetensors")
    save_detector(path, model, config, ClassMap.of_names(SHAPES_CLASSES), step=1)
    yield
    torch.set_num_threads(threads)


def cut_pictures(sources: list[Path], number: int) -> None:
    """Write so many crops, of 64 to 160 px, as photos/*.jpg, one of them cut off."""
    Path("photos").mkdir()
    rng = np.random.default_rng(0)
    for index in range(number):
        image = read_image(sources[index % len(sources)])
        height, width = (int(rng.integers(64, 161)) for _ in range(2))
        y = int(rng.integers(0, image.shape[0] - height + 1))
        x = int(rng.integers(0, image.shape[1] - width + 1))
        crop = image[y : y + height, x : x + width, ::-1]
        data = cv2.imencode(".jpg", crop)[1].tobytes()
        cut = len(data) // 2 if index == DAMAGED else None
        Path(f"photos/{index:03d}.jpg").write_bytes(data[:cut])


def plain_rows() -> dict[str, dict]:
    """What the detector finds in every picture that is whole, by its name."""
    files = sorted(Path("photos").iterdir())
    whole = [file for file in files if file.stem != f"{DAMAGED:03d}"]
    found = [each.above(0.3) for each in detres.load("runs/shapes_r18").predict(whole)]
    return {
        each.image.name: {
            "height": each.size[0],
            "width": each.size[1],
            "boxes": each.boxes.tolist(),
            "scores": each.scores.tolist(),
            "names": each.names,
            "category_ids": each.labels.tolist(),  # of shapes, which count from 1 as labels do
            "error": "",
        }
        for each in found
    }


def require_each_once(rows: list[dict], expected: dict[str, dict]) -> None:
    """Nothing lost, nothing there twice, and the numbers of the detector, but for the rounding of
    float32 sums by another number of threads.
    """
    names = [Path(row["path"]).name for row in rows]
    assert sorted(names) == sorted(path.name for path in Path("photos").iterdir())
    by_name = dict(zip(names, rows, strict=True))
    damaged = by_name.pop(f"{DAMAGED:03d}.jpg", None)
    if damaged is not None:
        assert "cannot be read" in damaged["error"]
        assert damaged["boxes"] == []
    assert by_name.keys() == expected.keys()
    for name, wanted in expected.items():
        row = by_name[name]
        for key in ("height", "width", "error", "names", "category_ids"):
            assert row[key] == wanted[key], name
        for key in ("boxes", "scores"):
            assert np.allclose(row[key], wanted[key], rtol=1e-4, atol=1e-4), name
    assert sum(len(row["boxes"]) for row in rows) > len(rows)


def rows_in(folder: str) -> list[dict]:
    files = Path(folder).glob("*.json")
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def below(process: int) -> Iterator[tuple[int, str]]:
    """The processes that one has started, at any depth, with the names they show."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat = (path / "stat").read_text()
            name = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:  # it has ended
            continue
        parents[int(path.name)] = (int(stat.rpartition(")")[2].split()[1]), name)
    for each, (_, name) in parents.items():
        above = each
        while above in parents and above != process:
            above = parents[above][0]
        if above == process and each != process:
            yield each, name


class Killer(threading.Thread):
    """Ends one of Ray's workers that look at pictures, once it is at work and some are done."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.killed: tuple[int, str] | None = None
        self.over = False

    def run(self) -> None:
        mine, at_work = os.getpid(), {}
        while not self.over:
            for process, name in below(mine):
                if name.startswith("ray::MapWorker(") and name.endswith(".submit"):
                    at_work[process] = at_work.get(process, 0) + 1
                    if at_work[process] == 6:
                        os.kill(process, signal.SIGKILL)
                        self.killed = (process, name)
                        return
            time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("weights")
def test_ray_loses_nothing_and_doubles_nothing_where_a_worker_is_killed(
    shared_data, tmp_path_factory, monkeypatch
):
    ray = pytest.importorskip("ray", reason="pip install 'ray[data]'")
    pytest.importorskip("ray.data", reason="pip install 'ray[data]'")
    sources = shared_data("voc_mini") / "VOCdevkit" / "VOC2012" / "JPEGImages"
    cut_pictures(sorted(sources.glob("*.jpg"))[:100], NUM)
    expected = plain_rows()
    monkeypatch.setenv("RAY_worker_niceness", "0")  # else another load may hold it up for ever
    own = tmp_path_factory.mktemp("r")
    monkeypatch.setenv("HOME", str(own))  # where it leaves a token
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, _temp_dir=str(own))
    killer = Killer()
    try:
        killer.start()
        exec(compile(recipe("import ray"), "docs/at_scale.md", "exec"), {})
    finally:
        killer.over = True
        killer.join()
        ray.shutdown()
    assert killer.killed is not None
    require_each_once(rows_in("found_by_ray"), expected)


@pytest.mark.usefixtures("weights")
def test_what_spark_calls_takes_and_gives_frames(shared_data):
    """Without Spark, whose part is to bring frames of its columns."""
    pandas = pytest.importorskip("pandas", reason="pip install pandas")
    sources = shared_data("voc_mini") / "VOCdevkit" / "VOC2012" / "JPEGImages"
    cut_pictures(sorted(sources.glob("*.jpg"))[:10], 20)
    functions = (
        recipe("mapInPandas")
        .split("SCHEMA")[0]
        .replace("from pyspark.sql import SparkSession\n", "")
    )
    names: dict = {}
    exec(compile(functions, "docs/at_scale.md", "exec"), names)
    files = sorted(Path("photos").iterdir())
    frames = [
        pandas.DataFrame(
            {"path": list(map(str, part)), "content": [file.read_bytes() for file in part]},
            columns=["path", "content"],
        )
        for part in (files[:7], [], files[7:])
    ]
    given = list(names["predict"](iter(frames)))
    assert [len(frame) for frame in given] == [7, 0, 13]
    columns = re.findall(r"(\w+) (?:string|int|array)", recipe("mapInPandas"))
    assert [list(frame.columns) for frame in given] == [columns] * 3
    require_each_once(pandas.concat(given).to_dict("records"), plain_rows())


@pytest.mark.slow
@pytest.mark.usefixtures("weights")
def test_spark_gives_every_picture_once(shared_data, monkeypatch):
    pytest.importorskip("pandas", reason="pip install pandas")
    sql = pytest.importorskip("pyspark.sql", reason="pip install pyspark")
    sources = shared_data("voc_mini") / "VOCdevkit" / "VOC2012" / "JPEGImages"
    cut_pictures(sorted(sources.glob("*.jpg"))[:100], DAMAGED + 10)
    expected = plain_rows()
    monkeypatch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
    builder = sql.SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false")
    try:
        spark = builder.getOrCreate()
    except Exception as error:
        pytest.skip(f"Spark does not start here: {error}")
    try:
        exec(compile(recipe("mapInPandas"), "docs/at_scale.md", "exec"), {"__name__": "__main__"})
    finally:
        spark.stop()
    require_each_once(rows_in("found_by_spark"), expected)

"""The detector that engines call: what it takes, returns and is pickled as."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import detres
from detres.config import check
from detres.detection.build import build_detector
from detres.detection.config import DetectionConfig
from detres.detection.inference.pictures import write_jpeg
from detres.detection.predictor import Predictor
from detres.detection.weights_file import save_detector
from detres.files import CheckpointError
from tests.detection.configs import TINY
from tests.helpers import CLASSES

COLUMNS = ["path", "height", "width", "boxes", "scores", "names", "category_ids", "error"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a detector that finds something in noise."""
    torch.manual_seed(0)
    settings = {"name": "t", "data": {"format": "shapes"}, "model": TINY, "train": {"steps": 1}}
    config = check(DetectionConfig, settings, "test")
    model = build_detector(config.model, len(CLASSES))
    nn.init.normal_(model.roi_head.predictor.cls_score.weight, std=0.01)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    save_detector(path, model, config, CLASSES, step=1)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Three JPEG files of different sizes."""
    rng = np.random.default_rng(0)
    paths = []
    for name, size in (("a", (60, 90)), ("b", (200, 80)), ("c", (64, 64))):
        paths.append(tmp_path / f"{name}.jpg")
        write_jpeg(paths[-1], rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    return paths


def batch_of(paths: list[Path]) -> dict[str, np.ndarray]:
    """As Ray Data hands them over."""
    return {
        "path": np.array([str(path) for path in paths], dtype=object),
        "bytes": np.array([path.read_bytes() for path in paths], dtype=object),
    }


def rows_of(columns: dict[str, list]) -> list[dict]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@pytest.mark.parametrize("settings", [{}, {"tile": 64, "overlap": 0.5, "whole": False}])
def test_numbers_are_those_of_the_detector(
    settings: dict, weights: Path, photos: list[Path]
) -> None:
    found = detres.load(weights).predict(photos, **settings)
    columns = Predictor(weights, device="cpu", **settings)(batch_of(photos))
    assert list(columns) == COLUMNS
    assert [type(column) for column in columns.values()] == [list] * len(COLUMNS)
    for row, results in zip(rows_of(columns), found, strict=True):
        assert row == {
            "path": str(results.image),
            "height": results.size[0],
            "width": results.size[1],
            "boxes": results.boxes.tolist(),
            "scores": results.scores.tolist(),
            "names": results.names,
            "category_ids": [record["category_id"] for record in results.to_coco()],
            "error": "",
        }
        assert row["boxes"]


def test_only_what_reaches_the_score_is_returned(weights: Path, photos: list[Path]) -> None:
    all_of_it = Predictor(weights)(batch_of(photos))
    score = float(np.median(np.concatenate(all_of_it["scores"])))
    columns = Predictor(weights, score=score)(batch_of(photos))
    for all_row, row in zip(rows_of(all_of_it), rows_of(columns), strict=True):
        num = sum(each >= score for each in all_row["scores"])
        for name in ("boxes", "scores", "names", "category_ids"):
            assert row[name] == all_row[name][:num]
    assert 0 < sum(map(len, columns["scores"])) < sum(map(len, all_of_it["scores"]))


@pytest.mark.parametrize("batch_size", [1, 2, 9])
def test_a_damaged_image_has_an_error_and_the_others_what_is_in_them(
    batch_size: int, weights: Path, photos: list[Path], tmp_path: Path
) -> None:
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(photos[0].read_bytes()[:700])
    nothing = tmp_path / "nothing.png"
    nothing.write_bytes(b"")
    given = [cut, photos[0], nothing, photos[1], photos[2]]
    rows = rows_of(Predictor(weights, batch_size=batch_size)(batch_of(given)))
    assert [row["path"] for row in rows] == [str(path) for path in given]
    assert [bool(row["error"]) for row in rows] == [True, False, True, False, False]
    assert rows[2] == {
        "path": str(nothing),
        "height": 0,
        "width": 0,
        "boxes": [],
        "scores": [],
        "names": [],
        "category_ids": [],
        "error": f"image file {nothing} cannot be read: the file is empty",
    }
    sizes = [(row["height"], row["width"]) for row in rows]
    assert sizes == [(0, 0), (60, 90), (0, 0), (200, 80), (64, 64)]
    assert all(rows[index]["boxes"] for index in (1, 3, 4))
    only = rows_of(Predictor(weights)(batch_of([cut])))  # of images none of which can be read
    assert only == rows[:1]


def test_no_images_are_columns_of_nothing(weights: Path) -> None:
    empty = {name: [] for name in COLUMNS}
    assert Predictor(weights)({"path": [], "bytes": []}) == empty
    assert Predictor(weights)(batch_of([])) == empty


def test_a_pickle_holds_settings_and_no_weights(
    weights: Path, photos: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is called in another directory than it was made in."""
    monkeypatch.chdir(weights.parent)
    predictor = Predictor(weights.name, score=0.01)
    columns = predictor(batch_of(photos))
    assert predictor._detector is not None
    pickled = pickle.dumps(predictor)
    assert len(pickled) < 1000 < weights.stat().st_size
    monkeypatch.chdir("/")
    other = pickle.loads(pickled)
    assert other._detector is None
    assert repr(other) == repr(predictor) == f"Predictor('{weights}', score=0.01)"
    assert other(batch_of(photos)) == columns
    detector = other._detector
    other(batch_of(photos))
    assert other._detector is detector  # loaded once


def test_what_cannot_work_is_said_where_it_is_made(weights: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights file at nowhere"):
        Predictor("nowhere.safetensors")
    with pytest.raises(CheckpointError, match="detectron2/faster_rcnn_R_9"):
        Predictor("detectron2/faster_rcnn_R_9")
    with pytest.raises(ValueError, match="batch_size is 0"):
        Predictor(weights, batch_size=0)
    for load in (Predictor, detres.Detector.load):
        with pytest.raises(ValueError, match="precision is 'fp16', expected one of fp32, bf16, a"):
            load(weights, precision="fp16")
    with pytest.raises(ValueError, match="a tile of 3 px"):
        Predictor(weights, tile=3)
    with pytest.raises(KeyError, match="bytes"):
        Predictor(weights)({"path": []})


def test_a_published_detector_is_fetched_where_it_is_called() -> None:
    """Its weights are in the cache of each machine."""
    name = "torchvision/fasterrcnn_resnet50_fpn.coco"
    assert pickle.loads(pickle.dumps(Predictor(name))).weights == name

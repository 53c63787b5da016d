"""`convert` end to end: a file of others, our weights, a prediction, a start for other classes."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import detres
from backbones import PUBLISHED
from detres.cli import convert, eval, predict, train_cls, train_det, train_loc
from detres.detection.detector import Detector
from detres.detection.inference.pictures import write_jpeg
from detres.detection.published import PUBLISHED_DETECTORS
from detres.detection.weights_file import load_detector
from tests.detection.test_import_weights import detectron2_state
from tests.file_server import FileServer, serving


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("published") / "model_final.pth"
    torch.save({"model": detectron2_state("resnet50", pyramid=True, num_classes=3)}, path)
    return path


def test_a_file_of_detectron2_predicts_and_starts_another(
    source: Path,
    coco_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ["circle", "square", "owl"]
    assert convert.main([str(source), "--out", "x/w.safetensors", "--classes", *names]) == 0
    shown = capsys.readouterr()
    assert "resnet50, layout fpn, 3 classes: circle, square, owl\n" in shown.out
    assert shown.out.endswith("train it further: --init-from x/w.safetensors\n")
    assert "a detector of detectron2, 295 tensors" in shown.err
    assert Detector.load("x/w.safetensors").class_map.names == tuple(names)
    write_jpeg(Path("a.jpg"), np.full((60, 80, 3), 90, np.uint8))
    assert predict.main(["a.jpg", "--weights", "x/w.safetensors", "--device", "cpu"]) == 0
    few = ["train.steps=1", "train.batch_size=1", "data.workers=0", "eval.batch_size=1"]
    few += ["model.input.short_side=64", "model.input.train_short_sides=[64]", "train.log_every=1"]
    few += ["model.rpn.train_post_nms_top_n=20", "model.rpn.test_post_nms_top_n=5"]
    more = ["--init-from", "x/w.safetensors", "--device", "cpu", "--out", "run", "--set", *few]
    assert train_det.main(["--data", str(coco_folder), *more]) == 0
    assert "classes by name of its 3: " in capsys.readouterr().out
    _, config, _ = load_detector(Path("run/best.safetensors"))
    assert config.model.layout == "fpn"
    assert config.model.input.resize == "pillow"


def test_what_is_there_is_left(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.safetensors"
    out.write_text("mine")
    assert convert.main([str(source), "--out", str(out)]) == 2
    assert "is there and is left as it is" in capsys.readouterr().err
    assert out.read_text() == "mine"
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"no weights")
    assert convert.main([str(bad), "--out", str(tmp_path / "x.safetensors")]) == 2
    assert "bad.pth" in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()
    with pytest.raises(SystemExit):
        convert.main([str(source), "--out", str(tmp_path / "x.pt")])
    assert "weights are written as .safetensors" in capsys.readouterr().err


NAME = "detectron2/faster_rcnn_R_50_FPN_3x"


@pytest.fixture
def published(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FileServer]:
    """Serve the file as NAME, in a fresh directory with an image and an empty cache."""
    content = source.read_bytes()
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()[:6]
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    write_jpeg(Path("a.jpg"), np.full((60, 80, 3), 90, np.uint8))
    with serving(content, f"model_final_{digest}.pkl") as server:
        entry = dataclasses.replace(PUBLISHED_DETECTORS[NAME], url=server.url)
        monkeypatch.setitem(PUBLISHED_DETECTORS, NAME, entry)
        yield server


def test_a_published_name_is_taken_where_weights_are(
    published: FileServer, coco_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = PUBLISHED_DETECTORS[NAME].converted_path(Path(torch.hub.get_dir()))
    assert convert.main([NAME, "--out", "w.safetensors"]) == 0
    shown = capsys.readouterr()
    assert "resnet50, layout fpn, 3 classes: class 1, class 2, class 3\n" in shown.out
    assert shown.err.startswith(f"downloading {published.url}: ")
    assert not made.exists()
    assert predict.main(["a.jpg", "--weights", NAME, "--device", "cpu", "--offline"]) == 0
    assert f"note: {NAME}: {made}\n" in capsys.readouterr().err
    assert made.is_file()
    data = ["--data", str(coco_folder), "--device", "cpu", "--offline"]
    assert eval.main(["--weights", NAME, *data]) == 2  # of other classes than these data
    said = capsys.readouterr().err
    assert str(made) in said
    assert "class 1" in said
    few = ["train.steps=1", "train.batch_size=1", "data.workers=0", "train.eval_every=0"]
    few += ["model.input.short_side=64", "model.input.train_short_sides=[64]", "train.log_every=1"]
    few += ["model.rpn.train_post_nms_top_n=20", "model.rpn.test_post_nms_top_n=5"]
    more = ["--init-from", NAME, "--out", "run", "--set", *few]
    assert train_det.main([*data, *more]) == 0
    assert f"{made}: 0 of " in capsys.readouterr().out
    assert published.starts == [0]


def test_offline_nothing_is_downloaded(
    published: FileServer, coco_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = PUBLISHED_DETECTORS[NAME].path(Path(torch.hub.get_dir()))
    for main, given in (
        (convert.main, [NAME, "--out", "w.safetensors"]),
        (predict.main, ["a.jpg", "--weights", NAME]),
        (eval.main, ["--weights", NAME]),
        (train_det.main, ["--data", str(coco_folder), "--init-from", NAME]),
    ):
        assert main([*given, "--offline"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert lines[0].startswith(f"error: {NAME} is not here, and offline ")
        assert f"it would be {place}; put the file of {published.url} there" in lines[0]
    assert published.starts == []


def test_offline_goes_for_backbones_and_classifiers_too(
    published: FileServer, coco_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "torchvision/resnet18.v1"
    own = ["--set", f"model.backbone.weights={name}"]
    for main, given in (
        (eval.main, ["--weights", name]),
        (train_det.main, ["--data", str(coco_folder), *own]),
        (train_det.main, ["--cfg", "shapes_r18", *own]),
        (train_cls.main, ["--set", f"model.network.weights={name}"]),
        (train_loc.main, own),
    ):
        assert main([*given, "--offline"]) == 2
        said = capsys.readouterr().err
        assert f"error: {name} is not here, and offline nothing is downloaded: it would be " in said
        assert f"put the file of {PUBLISHED[name].url} there" in said
    assert published.starts == []


def test_offline_goes_for_python_too(published: FileServer, coco_folder: Path) -> None:
    backbone = "torchvision/resnet18.v1"
    for name, given in (
        (NAME, {"init_from": NAME}),
        (backbone, {"settings": {"model.backbone.weights": backbone}}),
    ):
        with pytest.raises(ValueError, match=f"^{name} is not here, and offline nothing is "):
            detres.train(coco_folder, **given, device="cpu", offline=True)
    assert published.starts == []
    assert not Path("runs").exists()


def test_a_detector_of_others_given_where_ours_belong_is_to_be_converted(
    source: Path, coco_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pickled = tmp_path / "model_final.pkl"
    pickled.write_bytes(pickle.dumps({"model": {}}))
    data = ["--data", str(coco_folder), "--device", "cpu"]
    for main, given in (
        (predict.main, [str(coco_folder / "val"), "--weights", str(source)]),
        (predict.main, [str(coco_folder / "val"), "--weights", str(pickled)]),
        (eval.main, ["--weights", str(source), *data]),
        (train_det.main, ["--init-from", str(source), *data]),
    ):
        assert main(given) == 2
        assert "`convert` makes weights" in capsys.readouterr().err


def test_of_many_classes_the_first_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = detectron2_state("resnet50", pyramid=True, num_classes=20)
    torch.save(state, tmp_path / "m.pth")
    assert convert.main([str(tmp_path / "m.pth"), "--out", str(tmp_path / "w.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "20 classes: aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, c" in said
    assert "chair, cow and 10 more\n" in said

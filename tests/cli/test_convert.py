"""`convert` end to end: a file of others, our weights, a prediction, a start for other classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from detres.cli import convert, predict, train_det
from detres.detection.detector import Detector
from detres.detection.inference.pictures import write_jpeg
from detres.detection.weights_file import load_detector
from tests.detection.test_import_weights import detectron2_state


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

from __future__ import annotations

import json

import yaml

from detres.cli import compare_torchvision
from tests.cli.conftest import TINY

TORCHVISION_TOO = {
    "anchors": {"sizes": [16, 32, 64], "style": "torchvision"},
    "rpn": {**TINY["model"]["rpn"], "width": 256},
    "roi": {**TINY["model"]["roi"], "smooth_l1_beta": 1 / 9},
}


def write_config(folder, model):
    tree = {**TINY, "model": {**TINY["model"], **model}}
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree))
    return str(folder / "tiny.yaml")


def test_both_detectors_are_trained_and_scored(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert compare_torchvision.main(["--cfg", write_config(tmp_path, TORCHVISION_TOO)]) == 0
    scores = json.loads((tmp_path / "runs/tiny-comparison/comparison.json").read_text())
    for name in ("ours", "torchvision"):
        assert 0 <= scores[name]["AP"] <= 1
        losses = [
            json.loads(line)
            for line in (tmp_path / "runs/tiny-comparison" / name / "metrics.jsonl")
            .read_text()
            .splitlines()
        ]
        assert [record["step"] for record in losses if record["kind"] == "train"] == [1, 2]
    assert "difference" in capsys.readouterr().out


def test_a_model_that_torchvision_cannot_express_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert compare_torchvision.main(["--cfg", write_config(tmp_path, {})]) == 2
    assert "anchors.style=torchvision" in capsys.readouterr().err


def test_another_scheme_of_training_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--cfg", write_config(tmp_path, TORCHVISION_TOO), "--set", "train.scheme=rpn"]
    assert compare_torchvision.main(flags) == 2
    assert "train.scheme=rpn: torchvision's parts are trained jointly" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()

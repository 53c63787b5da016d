from __future__ import annotations

import json

import pytest
import torch
import yaml

from backbones import resnet18, save_weights
from detres.benchmarks.comparison import build_one
from detres.benchmarks.torchvision_parts import require_expressible
from detres.cli import compare_torchvision
from detres.config import check
from detres.detection.config import ModelConfig
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


@pytest.mark.parametrize("kind", ["frozen", "batch"])
def test_both_start_from_the_weights_of_the_backbone(tmp_path, kind):
    torch.manual_seed(5)
    net = resnet18()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    save_weights(net, tmp_path / "net.safetensors")
    backbone = {**TINY["model"]["backbone"], "norm": kind}
    backbone["weights"] = str(tmp_path / "net.safetensors")
    model = {**TINY["model"], **TORCHVISION_TOO, "backbone": backbone}
    config = check(ModelConfig, model, "test")
    theirs = build_one("torchvision", config, 3).model
    ours = build_one("ours", config, 3)
    for mine, other in (
        (net.conv1, theirs.backbone.net["conv1"]),
        (net.layer3, theirs.backbone.net["layer3"]),
        (net.layer4, theirs.roi_heads.box_head.layer4),
        (ours.backbone.bn1, theirs.backbone.net["bn1"]),
    ):
        found = other.state_dict()
        for name, tensor in mine.state_dict().items():
            if name in found:
                assert torch.equal(found[name], tensor), name


def test_a_model_that_torchvision_cannot_express_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert compare_torchvision.main(["--cfg", write_config(tmp_path, {})]) == 2
    assert "anchors.style=torchvision" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "norm", "freeze_at", "message"),
    [
        ("vgg16_bn", "frozen", 2, r"need model.backbone.norm=batch \(of a VGG\)$"),
        ("vgg16_bn", "batch", 2, r"need model.backbone.freeze_at=0 \(with norm=batch\)$"),
        ("resnet18", "batch", 1, r"need model.backbone.freeze_at=0 \(with norm=batch\)$"),
    ],
)
def test_a_norm_that_counts_where_ours_is_fixed_is_refused(name, norm, freeze_at, message):
    model = {**TINY["model"], **TORCHVISION_TOO}
    model["roi"] = {**model["roi"], "pool_size": 7}
    backbone = {"name": name, "norm": norm, "freeze_at": freeze_at, "weights": "x"}
    if name == "resnet18":
        backbone["stride_placement"] = "torchvision"
    config = check(ModelConfig, {**model, "backbone": backbone}, "test")
    with pytest.raises(ValueError, match=message):
        require_expressible(config)


def test_another_scheme_of_training_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--cfg", write_config(tmp_path, TORCHVISION_TOO), "--set", "train.scheme=rpn"]
    assert compare_torchvision.main(flags) == 2
    assert "train.scheme=rpn: torchvision's parts are trained jointly" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()

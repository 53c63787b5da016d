from __future__ import annotations

import json

import pytest
import torch

from backbones.files import write_safetensors
from detres.reproduction.evaluated import evaluated, fault_of, numbers_of, weights_digest
from detres.reproduction.settings import config_of
from tests.reproduction.folders import CONFIGS, RESNET


@pytest.fixture
def weights(tmp_path):
    for name, value in (("a", 1.0), ("b", 2.0)):
        tensors = {"w": torch.full((2,), value)}
        write_safetensors(tmp_path / f"{name}.safetensors", tensors, {})
    return [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]


def config(*settings):
    return config_of(RESNET, CONFIGS, settings)


def test_weights_are_told_apart_by_the_digest_they_carry(weights, tmp_path):
    digests = [weights_digest(file) for file in weights]
    assert len(set(digests)) == 2
    assert all(len(digest) == 64 for digest in digests)
    (tmp_path / "none.safetensors").write_bytes(b"no weights")
    assert weights_digest(tmp_path / "none.safetensors") is None
    assert weights_digest("torchvision/resnet50.v1") is None


def test_what_was_evaluated_is_told_again(weights, tmp_path):
    dense = config("eval.views=dense", "eval.scales=[32]")
    path = tmp_path / "n.json"

    def fault(files, wanted, **said):
        path.write_text(json.dumps({"evaluated": evaluated(files, dense, **said)}))
        return fault_of(path, weights, wanted)

    assert fault(weights, dense) is None
    moved = config("eval.views=dense", "eval.scales=[32]", "data.root=/far", "eval.batch_size=7")
    assert fault(weights, moved) is None
    assert fault(weights, config()) == (
        "n.json: eval.scales is [32], not [224, 256, 384, 480, 640]; "
        "eval.views is dense, not center"
    )
    assert fault(weights[:1], dense) == "n.json is of other weights than are there now"
    assert fault(weights[::-1], dense) == "n.json is of other weights than are there now"
    assert fault(weights, dense, split="train") == "n.json: split is train, not val"
    assert fault(weights, dense, iou=0.3) == "n.json: iou is 0.3, not 0.5"
    path.write_text("{}")
    assert "does not say what was evaluated" in fault_of(path, weights, dense)


def test_weights_without_a_digest_prove_nothing(tmp_path):
    path = tmp_path / "n.json"
    path.write_text(json.dumps({"evaluated": evaluated(["gone"], config())}))
    assert "other weights" in fault_of(path, [tmp_path / "gone"], config())


def test_numbers_by_metric_and_by_class(tmp_path):
    path = tmp_path / "n.json"
    path.write_text(json.dumps({"mAP": 0.5, "per_class": {"cat": 0.25, "dog": None}, "AP": None}))
    assert numbers_of(path, ["mAP", "cat", "dog", "AP", "x"]) == {"mAP": 0.5, "cat": 0.25}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "n.json: expected numbers by name, got a list"),
        ("nonsense", "n.json is not JSON"),
        ('{"mAP": 50.1}', "n.json: mAP is 50.1, expected a fraction"),
        ('{"mAP": "0.5"}', "n.json: mAP is '0.5', expected a fraction"),
        ('{"mAP": true}', "n.json: mAP is True, expected a fraction"),
        ('{"mAP": NaN}', "n.json: mAP is nan, expected a fraction"),
        ('{"per_class": 3}', "n.json has none of mAP"),
    ],
)
def test_numbers_that_are_none(tmp_path, content, message):
    (tmp_path / "n.json").write_text(content)
    with pytest.raises(ValueError) as error:
        numbers_of(tmp_path / "n.json", ["mAP"])
    assert message in str(error.value)

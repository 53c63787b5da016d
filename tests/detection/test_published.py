"""The table of published detectors: what a name must keep, and where its file lies."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from torchvision.models.detection import faster_rcnn, keypoint_rcnn, mask_rcnn
from torchvision.models.detection.faster_rcnn import (
    FasterRCNN_ResNet50_FPN_V2_Weights,
    FasterRCNN_ResNet50_FPN_Weights,
)

from backbones import PUBLISHED
from detres.detection.import_weights import WITHOUT_EPSILON
from detres.detection.published import (
    COCO_AP,
    PUBLISHED_DETECTORS,
    fault_of_name,
    hub_folder,
)


def test_what_torchvision_says_of_its_own_is_what_the_table_says() -> None:
    for name, theirs in (
        ("fasterrcnn_resnet50_fpn", FasterRCNN_ResNet50_FPN_Weights.COCO_V1),
        ("fasterrcnn_resnet50_fpn_v2", FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1),
    ):
        entry = PUBLISHED_DETECTORS[f"torchvision/{name}.coco"]
        assert entry.url == theirs.url
        assert entry.size_mib == theirs.meta["_file_size"]
        assert entry.score == theirs.meta["_metrics"]["COCO-val2017"]["box_map"]
        assert entry.metric == COCO_AP
        assert entry.digest == "sha256"
    first = PUBLISHED_DETECTORS["torchvision/fasterrcnn_resnet50_fpn.coco"]
    assert first.digest_prefix in WITHOUT_EPSILON


def test_the_files_without_an_epsilon_are_those_torchvision_loads_so() -> None:
    """By its sources: the weights for which it calls overwrite_eps, of two-stage detectors."""
    found = {}
    for module in (faster_rcnn, mask_rcnn, keypoint_rcnn):
        source = inspect.getsource(module)
        (weights,) = re.findall(r"if weights == (\w+)\.COCO_V1:\s+overwrite_eps", source)
        file = getattr(module, weights).COCO_V1.url.rpartition("/")[2]
        model, _, digits = file.removesuffix(".pth").rpartition("_coco-")
        found[digits] = model
    assert found == WITHOUT_EPSILON


def test_files_and_names_are_distinct_and_no_backbone_s() -> None:
    entries = PUBLISHED_DETECTORS.values()
    hub = Path("hub")
    places = {entry.path(hub) for entry in entries} | {
        entry.converted_path(hub) for entry in entries
    }
    assert len(places) == 2 * len(entries)
    assert not PUBLISHED.keys() & PUBLISHED_DETECTORS.keys()
    for entry in entries:
        digits = {"md5": 6, "sha256": 8}[entry.digest]
        assert len(entry.digest_prefix) == digits
        int(entry.digest_prefix, 16)
        assert entry.url.startswith("https://")
    c4 = PUBLISHED_DETECTORS["detectron2/faster_rcnn_R_50_C4_1x"]
    assert c4.path(hub) == Path(
        "hub/checkpoints/detectron2/faster_rcnn_R_50_C4_1x/model_final_721ade.pkl"
    )
    assert c4.digest_prefix == "721ade"
    voc = PUBLISHED_DETECTORS["detectron2/faster_rcnn_R_50_C4_voc"]
    assert voc.url.endswith(
        "/PascalVOC-Detection/faster_rcnn_R_50_C4/142202221/model_final_b1acc2.pkl"
    )
    assert voc.path(hub).parent.name == "faster_rcnn_R_50_C4_voc"
    assert PUBLISHED_DETECTORS["detectron2/faster_rcnn_R_101_FPN_3x"].backbone == "resnet101"


@pytest.mark.parametrize(
    "variables",
    [{"TORCH_HOME": "~/here"}, {"TORCH_HOME": "/a"}, {"XDG_CACHE_HOME": "/b"}, {}],
)
def test_the_cache_is_torch_s(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCH_HOME", "XDG_CACHE_HOME", "TORCH_HUB"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    assert hub_folder() == Path(torch.hub.get_dir())


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("detectron2/faster_rcnn_R101_C4_3x", "detectron2/faster_rcnn_R_101_C4_3x or "),
        ("torchvision/fasterrcnn_resnet50_fpn", "torchvision/fasterrcnn_resnet50_fpn.coco or "),
        ("detectron2/x", None),
        ("torchvision/fasterrcnn", "torchvision/fasterrcnn_resnet50_fpn.coco"),
    ],
)
def test_a_name_that_is_none_says_the_nearest(name: str, meant: str | None) -> None:
    said = fault_of_name(name)
    assert said.startswith(f"no published detector is called {name}; ")
    assert said.endswith("`detres --list` names all")
    assert ("did you mean" in said) == (meant is not None)
    assert meant is None or f"did you mean {meant}" in said


def test_what_may_be_something_else_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        *PUBLISHED_DETECTORS,
        "torchvision/resnet50.v1",
        "mine",
        "runs/a/best.safetensors",
    ):
        assert fault_of_name(name) is None
    monkeypatch.chdir(tmp_path)
    Path("detectron2").mkdir()
    assert fault_of_name("detectron2/model.pkl") is None

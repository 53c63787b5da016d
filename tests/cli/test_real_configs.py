"""The configurations as they ship, on real photographs at their real input size; and eight
photographs learned by heart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from backbones import create_backbone
from detres.cli import train_det, train_loc
from tests.cli.conftest import records, tensors

pytestmark = pytest.mark.slow

SharedData = Callable[[str], Path]
VAL_IMAGES = 3
EIGHT = (72258, 172123, 196393, 213148, 294914, 330993, 420862, 524291)
"""Photographs of coco_mini with two to five objects each, none small, none a crowd."""


def backbone_file(name: str, folder: Path) -> Path:
    """Write a state dict as torchvision names it, random but of bounded activations, with a
    classifier to be left out.
    """
    net = create_backbone(name, num_classes=10)
    for module_name, module in net.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.bias, std=0.1)
            torch.nn.init.constant_(module.weight, 0.2 if module_name.endswith("bn3") else 1.0)
    path = folder / f"{name}.pth"
    torch.save(net.state_dict(), path)
    return path


def train(config: str, data: Path, *settings: str) -> Path:
    """Train `config` of the toolkit in the folder `run`, with what a few steps on two cores need
    changed.
    """
    flags = [
        "--cfg",
        f"configs/{config}.yaml",
        "--data",
        str(data),
        "--out",
        "run",
        "--device",
        "cpu",
    ]
    assert train_det.main([*flags, "--set", "train.log_every=1", "data.workers=1", *settings]) == 0
    return Path("run")


def coco_subset(annotation_file: Path, image_ids: tuple[int, ...], path: Path) -> Path:
    """Write the annotations of these images, with the classes of all."""
    content = json.loads(annotation_file.read_text())
    content["images"] = [image for image in content["images"] if image["id"] in image_ids]
    content["annotations"] = [
        item for item in content["annotations"] if item["image_id"] in image_ids
    ]
    path.write_text(json.dumps(content))
    return path


def require_finite(folder: Path, steps: int) -> None:
    losses = records(folder, "train")
    assert [record["step"] for record in losses] == list(range(1, steps + 1))
    assert all(
        math.isfinite(value)
        for record in losses
        for name, value in record.items()
        if name != "kind"
    )
    assert all(tensor.isfinite().all() for tensor in tensors(folder).values())


def require_frozen_parts_only_unchanged(folder: Path, backbone: Path) -> None:
    """conv1, conv2_x and every batch norm are as in the file; every convolution behind them has
    learned.
    """
    given = {
        name: tensor
        for name, tensor in torch.load(backbone, weights_only=True).items()
        if not name.startswith("fc.")
    }
    trained = in_torchvision_names(tensors(folder))
    assert trained.keys() == {name for name in given if not name.endswith("num_batches_tracked")}
    for name, tensor in trained.items():
        learns = tensor.dim() == 4 and not name.startswith(("conv1.", "layer1."))
        assert torch.equal(tensor, given[name]) != learns, name


def in_torchvision_names(detector: dict[str, Tensor]) -> dict[str, Tensor]:
    """The backbone of a detector, conv5 back in its place."""
    stages = {"backbone.": "", "roi_head.box_head.conv5.": "layer4."}
    return {
        name.replace(old, new, 1): tensor
        for name, tensor in detector.items()
        for old, new in stages.items()
        if name.startswith(old)
    }


@pytest.fixture(autouse=True)
def _fresh_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("config", "backbone"), [("coco_r50", "resnet50"), ("coco_r101", "resnet101")]
)
def test_the_coco_configs_train_on_photographs(
    config: str, backbone: str, shared_data: SharedData, tmp_path: Path
) -> None:
    data, weights = shared_data("coco_mini"), backbone_file(backbone, tmp_path)
    val_file = data / "annotations" / "instances_val2017.json"
    first_ids = tuple(
        image["id"] for image in json.loads(val_file.read_text())["images"][:VAL_IMAGES]
    )
    val = coco_subset(val_file, first_ids, tmp_path / "val.json")
    folder = train(
        config,
        data,
        *("data.train=[annotations/instances_train2017.json]", "data.train_images=[train2017]"),
        *(f"data.val=[{val}]", "data.val_images=[val2017]"),
        *(
            f"model.backbone.weights={weights}",
            "train.batch_size=2",
            "train.steps=2",
            "train.milestones=[]",
            "train.warmup_steps=0",
        ),
    )
    require_finite(folder, steps=2)
    require_frozen_parts_only_unchanged(folder, weights)
    first = records(folder, "train")[0]
    assert first["loss_roi_cls"] == pytest.approx(math.log(81), abs=0.5)
    assert json.loads((folder / "metrics.json").read_text())["protocol"].startswith("COCO")


def test_the_voc_config_trains_on_photographs(shared_data: SharedData, tmp_path: Path) -> None:
    shared, weights = shared_data("voc_mini"), backbone_file("resnet101", tmp_path)
    data = few_of_2012(shared / "VOCdevkit" / "VOC2012", tmp_path / "VOCdevkit")
    folder = train(
        "voc0712_r101",
        data,
        *("data.train=[2012/train]", "data.val=[2012/val]", "eval.protocol=voc12"),
        *(
            f"model.backbone.weights={weights}",
            "train.steps=2",
            "train.milestones=[]",
            "train.warmup_steps=0",
        ),
    )
    require_finite(folder, steps=2)
    require_frozen_parts_only_unchanged(folder, weights)
    first = records(folder, "train")[0]
    assert first["loss_roi_cls"] == pytest.approx(math.log(21), abs=0.5)
    numbers = json.loads((folder / "metrics.json").read_text())
    assert len(numbers["per_class"]) == 20
    assert "2010-2012" in numbers["protocol"]


@pytest.mark.parametrize(("config", "dropout"), [("voc0712_vgg16", 0.5), ("coco_vgg16", 0.0)])
def test_the_vgg_configs_train_on_photographs(
    config: str, dropout: float, shared_data: SharedData, tmp_path: Path
) -> None:
    shared, weights = shared_data("voc_mini"), tmp_path / "vgg16.pth"
    torch.save(create_backbone("vgg16", num_classes=10).state_dict(), weights)
    data = few_of_2012(shared / "VOCdevkit" / "VOC2012", tmp_path / "VOCdevkit")
    splits = ("data.format=voc", "data.train=[2012/train]", "data.val=[2012/val]")
    folder = train(
        config,
        data,
        *(*splits, "data.train_images=[]", "data.val_images=[]", "data.test=[]"),
        *("data.test_images=[]", "eval.protocol=voc12"),
        *(f"model.backbone.weights={weights}", "train.batch_size=1", "train.steps=2"),
        *("train.milestones=[]", "train.warmup_steps=0"),
    )
    require_finite(folder, steps=2)
    assert json.loads((folder / "metrics.json").read_text())["mAP"] >= 0
    assert (
        yaml.safe_load((folder / "config.yaml").read_text())["model"]["roi"]["dropout"] == dropout
    )
    given, trained = torch.load(weights, weights_only=True), tensors(folder)
    fixed = {f"features.{n}" for n in (0, 2, 5, 7)}  # conv1_1, conv1_2, conv2_1, conv2_2
    of_head = {"classifier.0": "layers.0", "classifier.3": "layers.3"}
    for name, tensor in given.items():
        layer, _, kind = name.rpartition(".")
        own = (
            f"roi_head.box_head.{of_head[layer]}.{kind}" if layer in of_head else f"backbone.{name}"
        )
        if layer != "classifier.6":
            assert torch.equal(trained[own], tensor) == (layer in fixed), name


def test_the_localisation_config_trains_on_photographs(
    shared_data: SharedData, tmp_path: Path
) -> None:
    shared, weights = shared_data("voc_mini"), backbone_file("resnet101", tmp_path)
    data = few_of_2012(shared / "VOCdevkit" / "VOC2012", tmp_path / "VOCdevkit")
    flags = ["--data", str(data), "--device", "cpu", "--set", "train.log_every=1"]
    settings = [
        *("data.format=voc", "data.train=[2012/train]", "data.val=[2012/val]", "data.workers=1"),
        *(f"model.backbone.weights={weights}", "train.batch_size=4", "train.steps=2"),
        *("train.milestones=[]", "train.warmup_steps=0"),
    ]
    config = ["--cfg", "configs/imagenet_loc_r101.yaml"]
    assert train_loc.main([*config, "--out", "loc", *flags, *settings]) == 0
    first = records(Path("loc"), "train")[0]
    assert first["loss_rpn_cls"] == pytest.approx(math.log(2), abs=0.3)
    numbers = json.loads(Path("loc/metrics.json").read_text())
    assert "centre crop, 224 px of short side 256 px" in numbers["protocol"]
    rcnn = ["model.kind=rcnn", "model.rcnn.proposals=loc/best.safetensors", "train.steps=1"]
    small = ["data.train=[2012/val]", "eval.rcnn_batch_size=50"]
    assert train_loc.main([*config, "--out", "rcnn", *flags, *settings, *rcnn, *small]) == 0
    require_finite(Path("rcnn"), steps=1)


def few_of_2012(year: Path, devkit: Path) -> Path:
    """A VOCdevkit whose VOC2012 is `year` with fewer photographs to score."""
    lists = devkit / "VOC2012" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name in ("Annotations", "JPEGImages"):
        (devkit / "VOC2012" / name).symlink_to((year / name).resolve())
    stems = {
        split: (year / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
        for split in ("train", "val")
    }
    (lists / "train.txt").write_text("\n".join(stems["train"]))
    (lists / "val.txt").write_text("\n".join(stems["val"][:VAL_IMAGES]))
    return devkit


def test_the_blood_cell_config_trains_and_counts_the_boxes_without_area(
    shared_data: SharedData, capsys: pytest.CaptureFixture[str]
) -> None:
    data = shared_data("bccd") / "BCCD"
    settings = ("train.steps=3", "train.warmup_steps=1", "train.eval_every=0")
    folder = train("bccd_r18", data, *settings)
    require_finite(folder, steps=3)
    train_line, val_line = (
        line for line in capsys.readouterr().out.splitlines() if line.startswith(("train ", "val "))
    )
    assert "292 images" in train_line
    assert "72 images" in val_line
    assert "of 3 classes: Platelets" in train_line
    dropped = sum(
        int(part.split()[0]) for part in train_line.split("; ") if part.endswith("box without area")
    )
    assert dropped == 2


OVERFIT = {
    "name": "overfit",
    "data": {
        "format": "coco",
        "flip": 0.0,
        "workers": 0,
        "train_images": ["train2017"],
        "val_images": ["train2017"],
    },
    "model": {
        "backbone": {
            "name": "resnet18",
            "stride_placement": "torchvision",
            "norm": "batch",
            "freeze_at": 0,
        },
        "input": {"short_side": 256, "max_side": 400},
        "anchors": {
            "sizes": [32, 64, 128, 256],
            "aspect_ratios": [0.5, 1.0, 2.0],
            "style": "torchvision",
        },
        "rpn": {
            "width": 128,
            "objectness": "sigmoid",
            "train_anchors": "all",
            "min_size": 4,
            "train_pre_nms_top_n": 600,
            "train_post_nms_top_n": 100,
            "test_pre_nms_top_n": 600,
            "test_post_nms_top_n": 100,
        },
        "roi": {
            "pool": "roi_align",
            "pool_size": 7,
            "sampling_ratio": 1,
            "batch_size": 32,
            "positive_fraction": 0.5,
            "smooth_l1_beta": 0.1111,
            "nms_thresh": 0.5,
        },
    },
    "train": {
        "batch_size": 4,
        "reference_batch": 4,
        "steps": 300,
        "optimizer": "adamw",
        "lr": 3e-4,
        "weight_decay": 1e-4,
        "schedule": "cosine",
        "warmup_steps": 20,
        "clip_grad_norm": 10.0,
        "precision": "auto",
        "log_every": 10,
    },
}


def test_eight_photographs_are_learned_by_heart(shared_data: SharedData, tmp_path: Path) -> None:
    data = shared_data("coco_mini")
    eight = coco_subset(
        data / "annotations" / "instances_train2017.json", EIGHT, tmp_path / "eight.json"
    )
    (tmp_path / "overfit.yaml").write_text(yaml.safe_dump(OVERFIT))
    splits = [f"data.train=[{eight}]", f"data.val=[{eight}]"]
    flags = ["--cfg", "overfit.yaml", "--data", str(data), "--out", "run", "--device", "cpu"]
    assert train_det.main([*flags, "--set", *splits]) == 0
    numbers = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert numbers["AP50"] >= 0.95
    assert numbers["AP"] >= 0.75

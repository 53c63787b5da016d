"""From a folder alone to the configuration of a run; and a configuration of other data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detres.config import ConfigError, check, given_settings, load_config
from detres.detection.build import build_detector
from detres.detection.config import DetectionConfig
from detres.detection.data.read import read_split
from detres.detection.data.recognise import UnrecognisedDataError
from detres.detection.own_data import OwnData, name_of, replaced_data
from detres.detection.pretrained import FOLDER
from detres.files import CheckpointError
from detres.runs.settings import with_data_root

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _no_weights_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(FOLDER, raising=False)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures in COCO's layout, train and val."""
    root = tmp_path / "My Fish, 2nd try"
    rng = np.random.default_rng(0)
    for split, number in (("train", 8), ("val", 2)):
        (root / split).mkdir(parents=True)
        images, objects = [], []
        for row in range(1, number + 1):
            pixels = rng.integers(0, 255, (120, 160, 3), np.uint8)
            cv2.imwrite(str(root / split / f"{row}.jpg"), pixels)
            images.append({"id": row, "file_name": f"{row}.jpg", "height": 120, "width": 160})
            box = [10 + row, 20, 60, 50]
            objects.append({"id": row, "image_id": row, "category_id": 4, "bbox": box})
        content = {
            "images": images,
            "annotations": objects,
            "categories": [{"id": 4, "name": "fish"}],
        }
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return root


def test_a_folder_is_all_that_is_needed(folder: Path) -> None:
    said: list[str] = []
    own = OwnData.read(folder, [], device=CPU, say=said.append)
    config, choices = own.configured()
    assert config.name == "My-Fish-2nd-try"
    assert config.data.format == "coco"
    assert config.eval.protocol == "coco"
    assert len(read_split(config.data, "train")) == 8
    assert (len(own.train), len(own.val)) == (8, 2)
    assert said[0].startswith(f"data {folder}: COCO JSON; ")
    assert said[1].startswith("the same by hand: --set data.format=coco ")
    lines = own.lines(choices)
    assert lines[0] == "chosen, each to be overridden with --set:"
    assert all("  # " in line for line in lines[1 : 1 + len(choices)])
    (advice,) = lines[1 + len(choices) :]
    assert advice.startswith("note: from random weights: no pretrained backbone is at hand")
    assert FOLDER in advice
    build_detector(config.model, 1)


def test_the_lines_by_hand_say_the_same(folder: Path) -> None:
    own = OwnData.read(folder, [], device=CPU)
    again = OwnData.read(folder, own.recognised.settings(), device=CPU)
    assert again.recognised is None
    assert again.configured()[0] == own.configured()[0]


def test_the_chosen_lines_given_back_say_the_same(folder: Path) -> None:
    own = OwnData.read(folder, [], device=CPU)
    config, choices = own.configured()
    settings = [setting for choice in choices for setting in choice.settings()]
    told = OwnData.read(folder, settings, device=CPU)
    again, left = told.configured()
    assert again == config
    assert left == []


def test_what_the_user_sets_is_not_chosen(folder: Path) -> None:
    overrides = ["train.steps=7", "data.flip=0.25", "model.anchors={sizes: [50]}", "seed=9"]
    config, choices = OwnData.read(folder, overrides, device=CPU).configured()
    assert (config.train.steps, config.data.flip, config.seed) == (7, 0.25, 9)
    assert config.model.anchors.sizes == (50.0,)
    assert config.model.anchors.style == "detectron2"
    settings = {setting.partition("=")[0] for choice in choices for setting in choice.settings()}
    assert not settings & {"train.steps", "data.flip", "model.anchors.sizes"}
    assert {"train.warmup_steps", "model.anchors.aspect_ratios"} <= settings


def test_a_pyramid_takes_the_data_too(folder: Path) -> None:
    config, _ = OwnData.read(folder, ["model.layout=fpn"], device=CPU).configured()
    assert len(config.model.anchors.sizes) == 5
    build_detector(config.model, 1)
    with pytest.raises(ConfigError, match=r"give 5 anchors\.sizes, there are 2"):
        OwnData.read(folder, ["model.layout=fpn", "model.anchors.sizes=[8,16]"], device=CPU)


def test_another_way_to_say_what_is_val_takes_the_place_of_the_one_found(folder: Path) -> None:
    own = OwnData.read(folder, ["data.hold_out=3"], device=CPU)
    assert (own.data.val, own.data.hold_out) == ((), 3)
    assert (len(own.train), len(own.val)) == (5, 3)
    shutil.rmtree(folder / "val")
    (folder / "annotations" / "val.json").unlink()
    shared = OwnData.read(folder, [], device=CPU)
    assert (shared.data.val, len(shared.train) + len(shared.val)) == ((), 8)
    told = ["data.val=[annotations/train.json]", "data.val_images=[train]"]
    own = OwnData.read(folder, told, device=CPU)
    assert (len(own.train), len(own.val)) == (8, 8)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.lrr=1", "unknown key 'train.lrr'; did you mean 'train.lr'?"),
        ("model.input.short_side=wide", "model.input.short_side"),
        ("train.batch_size=0", "train.batch_size"),
        ("model.backbone.name=resnet20", "expected one of"),
        ("train.steps", "expected key=value"),
    ],
)
def test_settings_that_cannot_be_are_named(folder: Path, setting: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        OwnData.read(folder, [setting], device=CPU)
    assert message in str(error.value)
    assert str(error.value).count("\n") < 3


@pytest.mark.parametrize(
    "setting",
    [
        "model.input.max_side=250",
        "model.input.short_side=1200",
        "model.backbone.weights=null",
        "model.backbone.norm=group",
        "model.backbone.name=vgg16_bn",
        "train.schedule=plateau",
        "train.epochs=2",
        "train.milestones=[5]",
    ],
)
def test_one_setting_is_enough(folder: Path, setting: str) -> None:
    config, _ = OwnData.read(folder, [setting], device=CPU).configured()
    assert config.train.steps is None or config.train.steps > 0


def test_settings_that_do_not_go_together_are_named(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"milestone 60 lies at or beyond the end"):
        OwnData.read(folder, ["train.steps=50", "train.milestones=[60]"], device=CPU)
    own = OwnData.read(folder, ["train.milestones=[6000]"], device=CPU)
    with pytest.raises(ConfigError, match=r"settings for .*: milestone 6000 lies .* training, 600"):
        own.configured()


def test_a_name_is_made_of_the_folders(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("names: [a]")
    names = {
        tmp_path / "BCCD": "BCCD",
        tmp_path / "a b/c d": "c-d",
        tmp_path / "größe": "groe",
        tmp_path / "лица": "own_data",
        tmp_path / "..data.": "data",
        tmp_path / "data.yaml": tmp_path.name,
        None: "shapes",
    }
    for path, name in names.items():
        assert name_of(path) == name


def test_a_folder_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnrecognisedDataError, match="is empty"):
        OwnData.read(tmp_path / "empty", [], device=CPU)


def test_of_two_formats_the_one_that_is_said_is_read(folder: Path) -> None:
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split in ("train", "val"):
        (lists / f"{split}.txt").write_text("1\n")
    with pytest.raises(UnrecognisedDataError, match=r"2 formats: .*data\.format=coco"):
        OwnData.read(folder, [], device=CPU)
    own = OwnData.read(folder, ["data.format=coco"], device=CPU)
    assert own.configured()[0].data.format == "coco"
    assert len(own.train) == 8


def test_weights_at_hand_are_taken(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_data: object
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    source = shared_data("resnet50_half") / "resnet50_half.safetensors"
    (weights / source.name).symlink_to(source)
    monkeypatch.setenv(FOLDER, str(weights))
    own = OwnData.read(folder, [], device=CPU)
    config, choices = own.configured()
    backbone = config.model.backbone
    assert backbone.weights == str(weights / source.name)
    assert (backbone.name, backbone.width, backbone.pool1) == ("resnet50", 0.5, "caffe")
    assert (backbone.stride_placement, backbone.norm) == ("original", "frozen")
    assert (backbone.freeze_at, config.train.optimizer, config.train.lr) == (2, "sgd", 5e-3)
    assert config.model.input.channel_order == "bgr"
    assert config.model.input.mean == (104.0, 117.0, 123.0)
    assert not any("random weights" in line for line in own.lines(choices))
    detector = build_detector(config.model, 1)
    assert detector.backbone.load_report is not None
    random = ["model.backbone.weights=null"]
    config, _ = OwnData.read(folder, random, device=CPU).configured()
    assert (config.model.backbone.weights, config.model.backbone.norm) == (None, "batch")
    other = ["model.backbone.name=resnet34"]
    config, _ = OwnData.read(folder, other, device=CPU).configured()
    assert (config.model.backbone.weights, config.model.backbone.name) == (None, "resnet34")


def test_weights_that_are_named_bring_their_traits(folder: Path) -> None:
    """By a published name, which nothing fetches before the detector is built."""
    named = ["model.backbone.weights=torchvision/resnet50.v1"]
    config, _ = OwnData.read(folder, named, device=CPU).configured()
    assert config.model.backbone.stride_placement == "torchvision"
    assert (config.model.backbone.name, config.model.backbone.norm) == ("resnet50", "frozen")


def test_only_a_detector_can_be_fine_tuned(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError):
        OwnData.read(folder, [], device=CPU, init_from=tmp_path / "a.safetensors")


# ---- a configuration of other data ----


def voc_config() -> DetectionConfig:
    return load_config(ROOT / "configs/bccd_r18.yaml", DetectionConfig)


def test_a_configuration_of_other_data_is_used_with_those_that_are_there(folder: Path) -> None:
    config, found = replaced_data(voc_config(), folder, {})
    assert found.kind.startswith("COCO")
    own = voc_config()
    assert (config.model, config.train, config.eval, config.name) == (
        own.model,
        own.train,
        own.eval,
        own.name,
    )
    assert config.data.format == "coco"
    assert config.data.root == str(folder)
    assert config.data.workers == own.data.workers
    assert len(read_split(config.data, "train")) == 8


def test_its_own_entries_are_used_where_they_are_there(folder: Path) -> None:
    section = {
        "format": "coco",
        "train": ["annotations/train.json"],
        "train_images": ["train"],
        "val": ["annotations/gone.json"],  # a slip of the pen is an error, not other data
        "val_images": ["val"],
    }
    config = check(
        DetectionConfig, {**voc_config().model_dump(mode="json"), "data": section}, "test"
    )
    assert replaced_data(config, folder, {}) is None
    for split in ("train", "val"):
        file = folder / "annotations" / f"{split}.json"
        file.rename(file.with_name(f"instances_{split}.json"))
    assert replaced_data(config, folder, {}) is not None


def test_what_the_user_says_of_the_data_is_not_replaced(folder: Path) -> None:
    told = given_settings(DetectionConfig, ["data.train=[trainval]", "data.workers=0"])
    assert replaced_data(voc_config(), folder, told) is None
    assert replaced_data(voc_config(), folder, {"data.workers": 0}) is not None


def test_what_is_not_recognised_is_read_as_configured(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("nothing")
    assert replaced_data(voc_config(), tmp_path, {}) is None
    with pytest.raises(FileNotFoundError, match="trainval"):
        read_split(with_data_root(voc_config().data, tmp_path), "train")


def test_a_voc_list_is_looked_for_in_its_folder(tmp_path: Path) -> None:
    lists = tmp_path / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("a\n")
    assert replaced_data(voc_config(), tmp_path, {}) is None


def test_shapes_of_a_configuration_give_way_to_what_is_there(folder: Path, tmp_path: Path) -> None:
    shapes = load_config(ROOT / "configs/shapes_r18.yaml", DetectionConfig)
    config, _ = replaced_data(shapes, folder, {})
    assert config.data.format == "coco"
    cache = tmp_path / "cache"
    (cache / "shapes-v3-8-4-0").mkdir(parents=True)
    assert replaced_data(shapes, cache, {}) is None

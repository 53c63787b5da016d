"""What is chosen for which data and machine, and that what the user gives is followed."""

from __future__ import annotations

import itertools
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from backbones import InputSpec
from backbones.weights import FileFacts
from detres.class_map import ClassMap
from detres.config import check, load_config, nested
from detres.detection.annotations import Annotations
from detres.detection.chosen_settings import (
    FINE_TUNED_RATE,
    Choice,
    Machine,
    Start,
    Trained,
    choose,
    quoted,
)
from detres.detection.config import AnchorConfig, DetectionConfig, InputConfig, ModelConfig
from detres.detection.data.anchor_fit import ENOUGH, boxes_in_training, fit_of
from detres.detection.pretrained import Pretrained
from tests.detection.boxed import annotated, many

ROOT = Path(__file__).resolve().parents[2]
CPU = Machine("cpu", 24.0, 2)
GPU = Machine("cuda", 80.0, 16)
HALF = Pretrained(
    "half.safetensors",
    FileFacts(
        "resnet50 of 0.5 times the width",
        {"name": "resnet50", "width": 0.5, "stride_placement": "original", "pool1": "caffe"},
        InputSpec(channel_order="bgr", mean=(104.0, 117.0, 123.0), std=(1.0, 1.0, 1.0)),
        ours=False,
    ),
    "in a folder",
)
OWN = replace(HALF, facts=FileFacts("resnet18", {"name": "resnet18"}, InputSpec(), ours=True))


def cells(number: int = 820, side: float = 100.0, **more: object) -> Annotations:
    """About as many images, of that size, as BCCD has."""
    return many(number, side, **more)


def chosen(
    train: Annotations,
    *,
    machine: Machine = CPU,
    start: Start = None,
    given: dict | None = None,
    steps: int | None = None,
) -> DetectionConfig:
    """The configuration that comes of what was chosen, checked, with what was given."""
    given = given or {}
    choices = choose(
        train, 72, machine=machine, start=start, protocol="coco", given=given, steps=steps
    )
    assert not {choice.key for choice in choices} & given.keys()
    tree = [("name", "own"), ("data", {"format": "shapes"})]
    tree += [(choice.key, choice.value) for choice in choices]
    return check(DetectionConfig, nested([*tree, *given.items()]), "chosen")


def test_settings_are_written_as_a_shell_takes_them() -> None:
    for setting in ("a=b", "root=/my data", "root=/Bob's data/x", "x=[1, 2]", "a=$HOME"):
        assert shlex.split(quoted(setting)) == [setting]


def test_on_a_processor_the_recipe_is_that_of_the_measured_configuration() -> None:
    found = chosen(cells())
    measured = load_config(ROOT / "configs/bccd_r18.yaml", DetectionConfig)
    assert found.model.backbone == measured.model.backbone
    assert found.model.rpn == measured.model.rpn
    assert found.model.roi == measured.model.roi
    assert found.train.steps == measured.train.steps == 600
    for key in ("batch_size", "optimizer", "lr", "reference_batch", "schedule", "warmup_steps"):
        assert getattr(found.train, key) == getattr(measured.train, key)
    for key in ("weight_decay", "clip_grad_norm", "precision"):
        assert getattr(found.train, key) == getattr(measured.train, key)
    assert (found.eval.batch_size, found.data.workers) == (4, 1)
    assert 300 <= found.model.input.short_side <= 320


def test_from_pretrained_weights_it_is_that_of_theirs() -> None:
    train = many(1500, 150.0, (375, 500), per_image=2)
    found = chosen(replace(train, class_map=ClassMap.of_names(tuple("abcdefghijkl"))), start=HALF)
    measured = load_config(ROOT / "configs/voc_r50_half.yaml", DetectionConfig)
    assert found.model.backbone == measured.model.backbone.model_copy(
        update={"weights": "half.safetensors"}
    )
    assert found.model.rpn == measured.model.rpn
    assert found.model.roi == measured.model.roi
    assert found.data.color == measured.data.color
    for key in ("batch_size", "optimizer", "lr", "reference_batch", "schedule", "warmup_steps"):
        assert getattr(found.train, key) == getattr(measured.train, key)
    assert found.model.input == measured.model.input


def test_on_a_gpu_images_and_regions_are_the_papers() -> None:
    found = chosen(cells(), machine=GPU, start=HALF)
    assert (found.model.input.short_side, found.model.input.max_side) == (600, 1000)
    paper = ModelConfig(backbone={"weights": "w"})
    one_box = {"class_agnostic": True}  # few objects a class
    assert found.model.roi == paper.roi.model_copy(update=one_box)
    assert found.train.lr == 1e-3
    assert found.train.batch_size == 8
    small = chosen(cells(), machine=replace(GPU, memory=12.0), start=HALF)
    assert small.train.batch_size == 2


@pytest.mark.parametrize("side", [60.0, 100.0, 200.0, 350.0])
@pytest.mark.parametrize("machine", [CPU, GPU])
def test_anchors_cover_the_boxes_at_the_chosen_size(side: float, machine: Machine) -> None:
    train = cells(side=side)
    found = chosen(train, machine=machine)
    scaled = boxes_in_training(train, found.model.input)
    inside = found.model.rpn.train_anchors == "inside"
    assert fit_of(scaled, found.model.anchors, inside=inside).on_grid >= ENOUGH


def test_small_boxes_take_larger_images() -> None:
    sides = [chosen(cells(side=side)).model.input.short_side for side in (100.0, 45.0, 20.0)]
    assert sides == sorted(sides)
    assert sides[0] == 300 < sides[1] <= sides[2] == 400


def test_small_images_are_not_enlarged_without_need() -> None:
    train = many(400, 60.0, (176, 176))
    assert chosen(train).model.input.short_side == 176
    assert chosen(train, machine=GPU).model.input.short_side == 352


def test_what_depends_on_a_given_setting_follows_it() -> None:
    train = cells()
    given = {"model.input.short_side": 200, "train.batch_size": 8}
    found = chosen(train, given=given)
    assert found.model.input.max_side == 333
    scaled = boxes_in_training(train, InputConfig(short_side=200, max_side=333))
    assert fit_of(scaled, found.model.anchors).on_grid >= ENOUGH
    assert found.train.steps == 300  # as many images
    assert chosen(train, given={"train.steps": 77}).train.warmup_steps == 15
    epochs = chosen(train, given={"train.epochs": 3.0})
    assert (epochs.train.steps, epochs.train.epochs) == (None, 3.0)


def test_anchors_fit_where_half_of_them_is_given() -> None:
    given = {"model.anchors.sizes": [64.0], "model.anchors.style": "torchvision"}
    anchors = chosen(cells(), given=given).model.anchors
    assert (anchors.sizes, anchors.style) == ((64.0,), "torchvision")


def test_the_half_that_is_not_given_is_fitted_to_the_other() -> None:
    """Bars of 20 by 110 px: no number of squares helps, beside 64 px one ratio does."""
    bars = annotated([(480, 640)] * 40, [(row, 200, 200, 220, 310) for row in range(40)])
    whole = {"model.input.short_side": 480, "model.input.max_side": 640}
    free = chosen(bars, given=whole).model.anchors
    assert (len(free.sizes), free.aspect_ratios) == (1, (4.0,))
    tall = chosen(bars, given={**whole, "model.anchors.sizes": [64.0]}).model.anchors
    assert (tall.sizes, tall.aspect_ratios) == ((64.0,), (4.0,))
    given = {**whole, "model.anchors.aspect_ratios": [1.0]}
    square = choose(bars, 4, machine=CPU, start=None, protocol="coco", given=given)
    (anchors,) = [choice for choice in square if choice.key == "model.anchors"]
    assert anchors.value.keys() == {"sizes", "style"}
    assert anchors.reason.startswith("0.0% of 40 boxes reach IoU 0.5 with one")


def test_a_pyramid_has_anchors_on_every_level() -> None:
    given = {"model.layout": "fpn", "model.backbone.name": "resnet18"}
    model = chosen(cells(side=30.0), given=given).model
    assert len(model.anchors.sizes) == 5
    assert all(b == 2 * a for a, b in itertools.pairwise(model.anchors.sizes))
    assert model.fpn.canonical_side == round(7 * model.anchors.sizes[0])
    assert (model.input.multiple_of, model.roi.pool_size) == (32, 7)
    assert model.input.short_side == chosen(cells(side=100.0)).model.input.short_side
    scaled = boxes_in_training(cells(side=30.0), model.input)
    assert fit_of(scaled, model.anchors, pyramid=True).on_grid >= ENOUGH
    sizes = [20.0, 40.0, 80.0, 160.0, 320.0]
    told = chosen(cells(), given={**given, "model.anchors.sizes": sizes}).model
    assert (list(told.anchors.sizes), told.fpn.canonical_side) == (sizes, 140)


def test_a_schedule_with_milestones_is_multistep() -> None:
    found = chosen(cells(), given={"train.milestones": [100.0]})
    assert found.train.schedule == "multistep"


def test_a_plateau_waits_for_evaluations() -> None:
    found = chosen(cells(), given={"train.schedule": "plateau"})
    assert found.train.eval_every == 30


def test_a_given_cap_holds_for_what_is_chosen() -> None:
    for start in (None, HALF):
        found = chosen(cells(side=20.0), start=start, given={"model.input.max_side": 250})
        given = found.model.input
        assert max(given.short_side, *given.train_short_sides, 0) <= given.max_side == 250
    sides = {"model.input.train_short_sides": [900, 1000]}
    assert chosen(cells(), given=sides).model.input.max_side == 1000


def test_another_optimizer_has_its_own_rate() -> None:
    assert chosen(cells(), given={"train.optimizer": "sgd"}).train.lr == 5e-3
    assert chosen(cells(), start=HALF, given={"train.optimizer": "adamw"}).train.lr == 1e-3


@pytest.mark.parametrize(
    ("num_images", "steps"), [(5, 600), (300, 600), (650, 1300), (10_000, 4000)]
)
def test_steps_follow_the_number_of_images(num_images: int, steps: int) -> None:
    boxes = [(row, 10, 10, 110, 110) for row in range(num_images)]
    assert chosen(annotated([(300, 400)] * num_images, boxes)).train.steps == steps


def test_steps_may_be_what_a_time_allows() -> None:
    found = chosen(cells(), steps=123)
    assert (found.train.steps, found.train.warmup_steps) == (123, 24)


def test_a_batch_is_no_larger_than_memory_and_images_allow() -> None:
    sizes = {24.0: 4, 6.0: 4, 5.9: 2, 3.0: 2, 2.9: 1, 0.5: 1}
    for memory, size in sizes.items():
        assert chosen(cells(), machine=replace(CPU, memory=memory)).train.batch_size == size
    two = annotated([(300, 400)] * 2, [(0, 10, 10, 110, 110), (1, 10, 10, 110, 110)])
    assert chosen(two).train.batch_size == 2


def test_one_box_for_all_classes_is_learnt_from_few_objects() -> None:
    """Below 1,000 of each class."""
    for number, agnostic in ((999, True), (1000, False)):
        found = chosen(cells(number=number, per_image=1), start=HALF)
        assert found.model.roi.class_agnostic is agnostic


def test_full_images_keep_more_detections() -> None:
    found = chosen(many(900, 30.0, per_image=300))
    assert found.model.roi.detections_per_image == 300
    assert found.model.rpn.test_post_nms_top_n == found.model.rpn.train_post_nms_top_n == 600


def test_weights_of_ones_own_go_on_learning() -> None:
    found = chosen(cells(), start=OWN)
    assert (found.model.backbone.norm, found.model.backbone.freeze_at) == ("batch", 0)
    assert found.model.backbone.weights == "half.safetensors"
    assert found.train.optimizer == "adamw"


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_a_vgg_has_what_it_has(name: str) -> None:
    found = chosen(cells(), given={"model.backbone.name": name})
    assert found.model.roi.pool_size == 7
    assert found.model.backbone.stride_placement is None


def trained_model(norm: str) -> ModelConfig:
    backbone = {"name": "resnet50", "norm": norm, "weights": "w.pth" if norm == "frozen" else None}
    return ModelConfig(
        backbone={**backbone, "freeze_at": 2 if norm == "frozen" else 0},
        input={"short_side": 111, "max_side": 222, "channel_order": "bgr"},
        anchors=AnchorConfig(sizes=(9.0,), aspect_ratios=(1.0,), style="torchvision"),
        roi={"class_agnostic": True, "pool_size": 5},
    )


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_fine_tuning_keeps_the_model_and_goes_gently(norm: str) -> None:
    start = Trained(Path("/runs/a/best.safetensors"), trained_model(norm))
    found, scratch = chosen(cells(), start=start), chosen(cells(), start=HALF)
    if norm == "batch":
        scratch = chosen(cells())
    for section in ("input", "anchors", "rpn", "roi"):
        assert getattr(found.model, section) == getattr(start.model, section)
    assert found.model.backbone.freeze_at == 2
    assert found.model.backbone.norm == norm
    assert found.model.backbone.weights == "/runs/a/best.safetensors"
    assert found.train.lr == pytest.approx(scratch.train.lr * FINE_TUNED_RATE)
    assert found.train.optimizer == scratch.train.optimizer
    assert found.train.steps == pytest.approx(scratch.train.steps / 2, abs=5)
    told = chosen(cells(), start=start, given={"model.input.short_side": 150, "train.lr": 0.5})
    assert (told.model.input.short_side, told.train.lr) == (150, 0.5)
    assert told.model.input.max_side == 300


@pytest.mark.parametrize(
    ("given", "short_side", "max_side", "train_short_sides"),
    [
        ({}, 800, 1333, (640, 720, 800)),
        ({"short_side": 800}, 800, 1333, (640, 720, 800)),
        ({"short_side": 320}, 320, 533, (256, 288, 320)),
        ({"short_side": 1600}, 1600, 2666, (1280, 1440, 1600)),  # above the old max_side
        ({"short_side": 900, "max_side": 900}, 900, 900, (720, 810, 900)),
        ({"short_side": 320, "train_short_sides": [99]}, 320, 533, (99,)),
        ({"max_side": 900}, 800, 900, (640, 720, 800)),
    ],
)
def test_fine_tuning_at_another_size_has_all_sizes_in_proportion(
    given: dict, short_side: int, max_side: int, train_short_sides: tuple[int, ...]
) -> None:
    sizes = {"short_side": 800, "max_side": 1333, "train_short_sides": (640, 720, 800)}
    model = trained_model("frozen")
    model = model.model_copy(update={"input": InputConfig(**sizes, channel_order="bgr")})
    start = Trained(Path("/runs/a/best.safetensors"), model)
    told = {f"model.input.{key}": value for key, value in given.items()}
    found = chosen(cells(), start=start, given=told).model.input
    assert (found.short_side, found.max_side) == (short_side, max_side)
    assert found.train_short_sides == train_short_sides
    assert found.channel_order == "bgr"


def test_a_choice_is_a_line_that_a_shell_takes() -> None:
    assert Choice("train.steps", 600, "many").line() == "train.steps=600  # many"
    several = Choice("model.anchors", {"sizes": [16.0, 32.0], "style": "torchvision"}, "few")
    assert several.line() == (
        "'model.anchors.sizes=[16.0, 32.0]' model.anchors.style=torchvision  # few"
    )
    assert several.settings()[0] == "model.anchors.sizes=[16.0, 32.0]"


def test_without_stated_sizes_or_boxes_something_is_chosen() -> None:
    train = cells()
    unknown = replace(train, image_sizes=np.zeros_like(train.image_sizes))
    assert chosen(unknown).model.input.short_side == 300


def test_this_machine_is_described() -> None:
    machine = Machine.of(torch.device("cpu"))
    assert machine.device == "cpu"
    assert machine.cores >= 1
    assert 0.5 < machine.memory < 1e5
